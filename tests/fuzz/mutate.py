"""Structure-aware mutations: of documents by their fields, of binaries by their numbers, of protobuf by its wire format.

Everything takes a `random.Random`, so that a mutation is made again from its number alone.
"""

import copy
import io
import json
import struct
import zipfile
from random import Random
from typing import Any

ESCAPE = "\x1b]0;title\x07\x1b[31m[bold]"
TEXTS = (
    "", "../x", "/etc/passwd", "a/b", ".", "..", "model.onnx", "manifest.json", "nul\0byte", "x" * 300, "y" * 5000, ESCAPE,
    "\udcff", "é", "float32", "2001-99-99", "NaN", "1e999", "0x10", "past.blocks.0.C", "[red]", "%s", "${oc.env:HOME}",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 16, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63, -(2**63), 10**30, 10**400, 1.5, 2.0, -0.0,
    1e308, 5e-324, float("inf"), float("nan"),
)  # fmt: skip
OTHERS = (None, True, False, [], {}, [[]], {"": 0}, [None], [1.5, "a"], [0] * 1000)
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def value(rng: Random, old: object = None) -> Any:
    """A value to put in the place of another: near it, of its kind, or of any kind."""
    if isinstance(old, (int, float)) and not isinstance(old, bool) and abs(old) < 1e300 and rng.random() < 0.4:
        return rng.choice((old + 1, old - 1, -old, old * 100_000, old * 2, float(old), str(old)))
    if isinstance(old, str) and old and rng.random() < 0.4:
        return rng.choice((old + "x", old[:-1], old.upper(), old * 2, f"../{old}", old + "\0", f"{old}\n"))
    kind = rng.random()
    return copy.deepcopy(rng.choice(TEXTS if kind < 0.4 else NUMBERS if kind < 0.75 else OTHERS))


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every value in a document of mappings and lists."""
    found = [path] if path else []
    members = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, member in members:
        found += places(member, (*path, key))
    return found


def document(rng: Random, original: Any) -> Any:
    """A copy of a document with one to three fields changed, dropped, added, renamed, repeated or exchanged."""
    mutated = copy.deepcopy(original)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = places(mutated)
        if not paths:
            return mutated
        _change(rng, mutated, rng.choice(paths), paths)
    return mutated


def _change(rng: Random, mutated: Any, path: tuple[Any, ...], paths: list[tuple[Any, ...]]) -> None:
    parent, key = _parent(mutated, path), path[-1]
    what = rng.random()
    if what < 0.55:
        parent[key] = value(rng, parent[key])
    elif what < 0.7:
        del parent[key]
    elif what < 0.8:
        other = rng.choice(paths)
        parent[key] = copy.deepcopy(_parent(mutated, other)[other[-1]])
    elif isinstance(parent, dict):
        name = rng.choice((*TEXTS, str(key).upper(), f"{key}s", "extra"))
        parent[name] = parent.pop(key) if what < 0.9 else value(rng)
    elif what < 0.9:
        parent.extend(copy.deepcopy(parent[: rng.choice((1, 3, 50))]))
    else:
        rng.shuffle(parent)


def _parent(mutated: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        mutated = mutated[key]
    return mutated


def json_bytes(rng: Random, original: Any) -> bytes:
    """A mutated document as JSON, sometimes damaged as text as well."""
    content = json.dumps(document(rng, original)).encode("utf-8", "surrogatepass")
    return binary(rng, content) if rng.random() < 0.15 else content


def binary(rng: Random, content: bytes) -> bytes:
    """Bits flipped, numbers overwritten, parts cut, repeated or moved; near the start more often, where headers are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not data:
            return bytes(data)
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 256))
        what = rng.random()
        if what < 0.35:
            data[at] ^= 1 << rng.randrange(8)
        elif what < 0.6:
            size = rng.choice("BHIQ")
            number = struct.pack(f"<{size}", rng.choice(EXTREMES) & (2 ** (8 * struct.calcsize(size)) - 1))
            data[at : at + len(number)] = number
        elif what < 0.75:
            del data[at : at + rng.choice((1, 4, 100, len(data)))]
        elif what < 0.9:
            data[at:at] = data[at : at + rng.choice((1, 8, 64))]
        else:
            data[at:at] = rng.choice((b"\0" * 16, b"\xff" * 8, b"{" * 200, b"[" * 5000, b'"', b"9" * 5000))
    return bytes(data)


def protobuf(rng: Random, content: bytes, depth: int = 0) -> bytes:
    """One field, at any depth, changed, dropped, repeated or renumbered, with every length around it made right again."""
    fields = _fields(content)
    if not fields:
        return binary(rng, content)
    index = rng.randrange(len(fields))
    number, kind, payload = fields[index]
    what = rng.random()
    if kind == 2 and depth < 8 and what < 0.75:
        fields[index] = (number, kind, protobuf(rng, payload, depth + 1))
    elif what < 0.82:
        fields[index] = (number, kind, _other_payload(rng, kind, payload))
    elif what < 0.88:
        del fields[index]
    elif what < 0.94:
        fields.insert(rng.randrange(len(fields) + 1), rng.choice(fields))
    else:
        fields[index] = (rng.choice((number + 1, max(number - 1, 1), 1, 20, 100)), kind, payload)
    return b"".join(_encode(*field) for field in fields)


def _other_payload(rng: Random, kind: int, payload: bytes) -> bytes:
    if kind == 0:
        return _varint(rng.choice(EXTREMES))
    if kind == 2:
        return rng.choice(
            (b"", payload * 2, payload[:-1], b"../x", b"/etc/passwd", b"\xff" * 9, b"past.blocks.0.C", b"location")
        )
    return bytes(rng.randrange(256) for _ in payload)


def _fields(content: bytes) -> list[tuple[int, int, bytes]]:
    """(number, wire type, payload) of a message; empty where the bytes are none."""
    fields, at = [], 0
    try:
        while at < len(content):
            key, at = _read_varint(content, at)
            kind, begin = key & 7, at
            if kind == 0:
                _, at = _read_varint(content, at)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            elif kind == 2:
                length, begin = _read_varint(content, at)
                at = begin + length
            else:
                return []
            if at > len(content) or key >> 3 == 0:
                return []
            fields.append((key >> 3, kind, content[begin:at]))
    except IndexError:
        return []
    return fields


def _encode(number: int, kind: int, payload: bytes) -> bytes:
    return _varint(number << 3 | kind) + (_varint(len(payload)) if kind == 2 else b"") + payload


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80 or shift > 63:
            return number, at


def archive(rng: Random, content: bytes) -> bytes:
    """A zip file with members dropped, repeated, renamed or damaged; sometimes damaged itself."""
    if rng.random() < 0.3:
        return binary(rng, content)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        members = [(name, old.read(name)) for name in old.namelist()]
        index = rng.randrange(len(members))
        name, data = members[index]
        what = rng.random()
        if what < 0.6:
            members[index] = (name, binary(rng, data))
        elif what < 0.75:
            del members[index]
        else:
            renamed = f"{name.split('/')[0]}/{rng.choice(('data.pkl', 'data/0', 'version', '../x', 'y' * 300, 'code/evil.py'))}"
            members[index] = (renamed, data)
        names = set[str]()
        for name, data in members:
            if name not in names:
                new.writestr(zipfile.ZipInfo(name), data, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
            names.add(name)
    return out.getvalue()


def safetensors(rng: Random, content: bytes) -> bytes:
    """The header's fields, or the bytes."""
    if rng.random() < 0.25:
        return binary(rng, content)
    (length,) = struct.unpack("<Q", content[:8])
    header = json_bytes(rng, json.loads(content[8 : 8 + length]))
    stated = rng.choice((len(header),) * 8 + EXTREMES)
    return struct.pack("<Q", stated) + header + content[8 + length :]
