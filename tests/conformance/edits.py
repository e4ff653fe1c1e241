"""Edits of good manifests, snapshots and files as data: what the cases of the index say is done here."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

Edit = dict[str, Any]


def edited_text(text: str, edit: Edit) -> bytes:
    """A JSON document after `set`, `remove`, `replace`, or another one as `text` or `hex` says it."""
    if "hex" in edit:
        return bytes.fromhex(edit["hex"])
    if "text" in edit:
        return (edit["text"] * edit.get("times", 1)).encode()
    if "replace" in edit:
        old, new = edit["replace"]
        assert old in text, old
        return text.replace(old, new, 1).encode()
    document = json.loads(text)
    for path, value in edit.get("set", ()):
        parent = _parent(document, path)
        if isinstance(parent, list) and path[-1] == len(parent):
            parent.append(value)
        else:
            parent[path[-1]] = value
    for path in edit.get("remove", ()):
        del _parent(document, path)[path[-1]]
    return json.dumps(document).encode()


def edited_snapshot(content: bytes, edit: Edit) -> bytes:
    """A snapshot with an edited header, with other bytes in its data, cut, longer, or another file as `hex` says it."""
    if "hex" in edit:
        return bytes.fromhex(edit["hex"])
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], bytearray(content[8 + length :])
    if edit.keys() & {"set", "remove", "replace"}:
        header = edited_text(header.decode(), edit)
    for tensor, at, numbers in edit.get("data", ()):
        begin = json.loads(header)[tensor]["data_offsets"][0] + at
        data[begin : begin + len(numbers) // 2] = bytes.fromhex(numbers)
    spoiled = struct.pack("<Q", edit.get("length", len(header))) + header + data
    return spoiled[: len(spoiled) - edit.get("cut", 0)] + bytes.fromhex(edit.get("append", ""))


def edit_file(bundle: Path, edit: Edit) -> None:
    """A file of a bundle missing, cut, longer, or with other bytes in one place; `rehash` makes the manifest agree again."""
    path = bundle / edit["file"]
    content = path.read_bytes()
    path.unlink()
    if edit.get("missing"):
        return
    content = content[: len(content) - edit.get("cut", 0)] + bytes.fromhex(edit.get("append", ""))
    if "replace_hex" in edit:
        old, new = map(bytes.fromhex, edit["replace_hex"])
        assert old in content, edit
        content = content.replace(old, new, 1)
    path.write_bytes(content)
    if edit.get("rehash"):
        document = json.loads((bundle / "manifest.json").read_text())
        document["files"][edit["file"]] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (bundle / "manifest.json").write_text(json.dumps(document))


def _parent(document: Any, path: list[Any]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document
