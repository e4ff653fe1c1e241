"""The contract between the exporter that writes a bundle and the runtime that reads it.

A bundle is a folder:

    manifest.json   this module's `Manifest` as JSON; MUST be there, names every other file
    model.onnx      the graph; MUST have exactly the inputs and outputs of the state table, plus one input, one output
    prompt.onnx     MAY be there: the same for calls of `chunk` tokens, where model.onnx takes one; reads the same weights
    model.onnx.data weights, external to the graph so that they can be memory-mapped
    vectors.json    test vectors; MUST be there, so that a device can check itself
    tokenizer.json  MAY be there

Every file that the graph reads MUST be listed with its size and sha256; a name MUST be a plain file name, so that a bundle
cannot reach outside its folder. A file MAY be a link into `blobs/` two levels up, as the Hugging Face cache lays out
`models--NAME/snapshots/REVISION/`, and no other link. A reader MUST refuse another `schema` and keys that it does not know,
because a wrong guess would compute nonsense silently.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import BundleError, shown, shown_path
from .layout import MANIFEST, VECTORS, weights_of
from .manifest_sections import (
    HASH,
    SAMPLING,
    CompiledGraph,
    Dimensions,
    FileEntry,
    GraphInfo,
    Quantization,
    SpecialTokens,
    TokenizerInfo,
    read_compiled,
    read_dimensions,
    read_files,
    read_graph,
    read_quantization,
    read_sampling,
    read_special,
    read_state,
    read_tokenizer,
)
from .reading import Reader, open_regular, parse_json, read_bytes
from .state import StateTable

__all__ = [
    "CompiledGraph",
    "Dimensions",
    "FileEntry",
    "GraphInfo",
    "Manifest",
    "Quantization",
    "SpecialTokens",
    "TokenizerInfo",
    "check_hash",
    "file_entry",
    "has_manifest",
    "read_manifest",
]

FORMAT = "xlstm-edge"
SCHEMA = 5
LARGEST_MANIFEST = 8 << 20
# A state is about as large as the weights that move it; what asks for far more memory is no bundle of ours.
STATE_PER_BYTE, SMALL_STATE = 64, 64 << 20
# Every block has a matrix of about width times width numbers, of 2 bits at least.
WIDTH_PER_ROOT, SMALL_WIDTH = 16, 1 << 13
VERSION = r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}"
WORD = r"[ -~]{1,100}"
SECTIONS = (
    "format schema producer family minimum_runtime source model graph tokenizer special_tokens sampling quantization "
    "compiled state files"
).split()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Manifest:
    """Everything a runtime must know before it touches the graph."""

    family: str
    producer: str
    onnxruntime: str
    source: str
    model: Dimensions
    graph: GraphInfo
    tokenizer: TokenizerInfo
    special_tokens: SpecialTokens
    state: StateTable
    files: Mapping[str, FileEntry]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    quantization: Quantization = field(default_factory=Quantization)
    compiled: Mapping[str, CompiledGraph] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Manifest({self.summary()})"

    def summary(self) -> str:
        """Family, parameters, and bytes of all files and of a session's state, in a few words."""
        size = sum(entry.bytes for entry in self.files.values())
        return (
            f"{self.family}, {self.model.parameters:,} parameters, {size / 1e6:.2f} MB, "
            f"{self.state.nbytes:,} bytes of state a session"
        )

    def to_json(self) -> str:
        """The text of manifest.json."""
        document = {
            "format": FORMAT,
            "schema": SCHEMA,
            "producer": self.producer,
            "family": self.family,
            "minimum_runtime": {"onnxruntime": self.onnxruntime},
            "source": {"sha256": self.source},
            "model": dataclasses.asdict(self.model),
            "graph": dataclasses.asdict(self.graph),
            "tokenizer": dataclasses.asdict(self.tokenizer),
            "special_tokens": dataclasses.asdict(self.special_tokens),
            "sampling": dict(self.sampling),
            "quantization": self.quantization.as_dict(),
            "compiled": {name: dataclasses.asdict(entry) for name, entry in sorted(self.compiled.items())},
            "state": {
                "dtype": "float32",
                "bytes_per_session": self.state.nbytes,
                "tensors": [
                    {"name": row.name, "input": row.input_name, "output": row.output_name}
                    | {"shape": list(row.shape), "head_splits": row.head_splits}
                    | {"offset": list(row.offset), "initial": row.initial}
                    for row in self.state
                ],
            },
            "files": {name: dataclasses.asdict(entry) for name, entry in sorted(self.files.items())},
        }
        return json.dumps(document, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Manifest":
        """Parse and check; BundleError names the first thing that is wrong."""
        document = parse_json(text, MANIFEST, advice="export the bundle again")
        _check_schema(document)
        root = Reader(document, MANIFEST, SECTIONS)
        model = read_dimensions(root.section("model", [f.name for f in dataclasses.fields(Dimensions)]))
        manifest = Manifest(
            family=root.text("family", pattern=WORD),
            producer=root.text("producer", pattern=WORD),
            onnxruntime=root.section("minimum_runtime", ["onnxruntime"]).text("onnxruntime", pattern=VERSION),
            source=root.section("source", ["sha256"]).text("sha256", pattern=HASH),
            model=model,
            graph=read_graph(root.section("graph", [f.name for f in dataclasses.fields(GraphInfo)])),
            tokenizer=read_tokenizer(root.section("tokenizer", ["kind", "file"])),
            special_tokens=read_special(
                root.section("special_tokens", ["bos", "pad", "stop", "add_bos"]), model.vocab_size
            ),
            state=read_state(root.section("state", ["dtype", "bytes_per_session", "tensors"])),
            files=read_files(root.section("files", None)),
            sampling=read_sampling(root.section("sampling", (), optional=SAMPLING)),
            compiled=read_compiled(root.section("compiled", None)),
            quantization=read_quantization(root.section("quantization", (), optional=("recipe", "tensors"))),
        )
        _check_references(manifest)
        return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a bundle folder, every listed file checked to be there, inside the folder and of its stated size."""
    folder = Path(folder)
    try:
        _inside(folder, MANIFEST)
        content = read_bytes(folder / MANIFEST, LARGEST_MANIFEST)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        got = "nothing"
        if has_manifest(folder):
            got = getattr(error, "strerror", None) or str(error)
        elif _is_dir(folder):
            got = "a folder without one"
        raise BundleError(
            f"expected a bundle folder with {MANIFEST} at {shown_path(folder)}, got {got}; check the path"
        ) from error
    try:
        manifest = Manifest.from_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BundleError(f"expected {MANIFEST} as UTF-8 text, got other bytes; export the bundle again") from error
    for name, entry in manifest.files.items():
        try:
            size = _inside(folder, name)
        except OSError as error:
            raise BundleError(
                f"expected the bundle's file {name}, got {error.strerror or error}; copy the whole folder"
            ) from error
        if size != entry.bytes:
            raise BundleError(
                f"expected {name} with {entry.bytes} bytes, got {size}; the file is damaged, copy it again"
            )
    return manifest


def _inside(folder: Path, name: str) -> int:
    """Size of a regular file of the bundle; OSError for none, and for a link that is not the Hugging Face cache's."""
    path = folder / name
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        snapshot = folder.resolve()
        if path.resolve().parent != snapshot.parent.parent / "blobs" or snapshot.parent.name != "snapshots":
            raise OSError("a link out of the folder")
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("no regular file")
    return found.st_size


def has_manifest(folder: str | Path) -> bool:
    """Whether a path is a folder with something under the manifest's name, whatever is in it."""
    with contextlib.suppress(OSError, ValueError):  # a name that no file system takes
        return (Path(folder) / MANIFEST).exists()
    return False


def _is_dir(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return folder.is_dir()
    return False


def check_hash(folder: Path, name: str, entry: FileEntry) -> None:
    """BundleError unless the file's content is what the manifest says."""
    if (got := file_entry(folder / name).sha256) != entry.sha256:
        raise BundleError(
            f"expected {name} with sha256 {entry.sha256[:12]}..., got {got[:12]}...; the file is damaged, copy it again"
        )


def file_entry(path: Path) -> FileEntry:
    """Measure a regular file, reading it block by block; OSError for anything else."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(open_regular(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return FileEntry(size, digest.hexdigest())


def _check_schema(document: object) -> None:
    """Before the keys, which another schema may have others of."""
    root = Reader(document, MANIFEST, None)
    got = root.value.get("format"), root.value.get("schema")
    if got != (FORMAT, SCHEMA) or isinstance(got[1], (bool, float)):
        raise BundleError(
            f"expected a bundle of format {FORMAT}, schema {SCHEMA}, got {shown(got[0])}, {shown(got[1])}; "
            "export the checkpoint again with this version"
        )


def _check_references(manifest: Manifest) -> None:
    needed = [*manifest.graph.files, weights_of(manifest.graph.file), VECTORS]
    needed += [manifest.tokenizer.file] if manifest.tokenizer.file else []
    needed += [name for entry in manifest.compiled.values() for name in entry.files]
    if missing := [name for name in needed if name not in manifest.files]:
        raise BundleError(
            f"expected {missing[0]} among the bundle's files, got a list without it; export the bundle again"
        )
    total = sum(entry.bytes for entry in manifest.files.values())
    if manifest.state.nbytes > max(SMALL_STATE, STATE_PER_BYTE * total):
        raise BundleError(
            f"expected a state that fits a bundle of {total:,} bytes, got one of {manifest.state.nbytes:,}; "
            "do not trust this bundle"
        )
    if manifest.model.width > max(SMALL_WIDTH, WIDTH_PER_ROOT * math.isqrt(total)):
        raise BundleError(
            f"expected a width that fits a bundle of {total:,} bytes, got {manifest.model.width:,}; "
            "do not trust this bundle"
        )
