"""The contract between the exporter that writes a bundle and the runtime that reads it.

A bundle is a folder:

    manifest.json   this module's `Manifest` as JSON; MUST be there, names every other file
    model.onnx      the graph; MUST have exactly the inputs and outputs of the state table, plus one input, one output
    model.onnx.data weights, external to the graph so that they can be memory-mapped
    vectors.json    test vectors; MUST be there, so that a device can check itself
    tokenizer.json  MAY be there

Every file MUST be listed with its size and sha256; a name MUST be a plain file name, so that a bundle cannot reach
outside its folder. A reader MUST refuse another `schema`, because a wrong guess would compute nonsense silently.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import BundleError, StateError
from .state import StateSpec, StateTable

FORMAT = "xlstm-edge"
SCHEMA = 1
MANIFEST = "manifest.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LARGEST_MANIFEST = 64 << 20
LARGEST_INITIAL = 3e38  # what float32 holds
LONGEST_PATH = 4000  # systems raise errors of their own for longer ones


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and hex sha256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """What the model is; `vocab_size` None means float vectors in and out."""

    width: int
    vocab_size: int | None
    blocks: tuple[str, ...]
    parameters: int
    tied: bool
    context_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInfo:
    """How to call the graph: `chunk` is the largest number of tokens in one call."""

    file: str
    flavour: str
    opset: int
    input: str
    output: str
    chunk: int
    all_logits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerInfo:
    """`kind` is byte, huggingface or none; `file` is None where the kind needs none."""

    kind: Literal["byte", "huggingface", "none"]
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Ids; `stop` ends a generation, `bos` is put before a prompt if `add_bos`."""

    bos: int | None = None
    pad: int | None = None
    stop: tuple[int, ...] = ()
    add_bos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
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
    quantization: Mapping[str, Any] = field(default_factory=dict)

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
            "quantization": dict(self.quantization),
            "state": {
                "dtype": "float32",
                "bytes_per_session": self.state.nbytes,
                "tensors": [
                    {"name": row.name, "input": row.input_name, "output": row.output_name}
                    | {"shape": list(row.shape), "pieces": row.pieces, "initial": row.initial}
                    for row in self.state
                ],
            },
            "files": {name: dataclasses.asdict(entry) for name, entry in sorted(self.files.items())},
        }
        return json.dumps(document, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Manifest":
        """Parse and check; BundleError names the first thing that is wrong."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                "expected manifest.json to be JSON, came something else; export the bundle again"
            ) from error
        root = _Reader(document, "manifest.json")
        if root.get("format", str) != FORMAT or (schema := root.get("schema", int)) != SCHEMA:
            came = document.get("format"), document.get("schema")
            raise BundleError(
                f"expected a bundle of format {FORMAT!r}, schema {SCHEMA}, came {came}; use a matching version"
            )
        del schema
        manifest = Manifest(
            family=root.get("family", str),
            producer=root.get("producer", str),
            onnxruntime=root.section("minimum_runtime").get("onnxruntime", str),
            source=root.section("source").get("sha256", str),
            model=_dimensions(root.section("model")),
            graph=_graph(root.section("graph")),
            tokenizer=_tokenizer(root.section("tokenizer")),
            special_tokens=_special(root.section("special_tokens")),
            state=_state(root.section("state")),
            files=_files(root.section("files")),
            sampling=root.get("sampling", dict),
            quantization=root.get("quantization", dict),
        )
        _check_references(manifest)
        return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a bundle folder, every listed file checked to be there and of its stated size."""
    folder = Path(folder)
    path = folder / MANIFEST
    if len(str(path)) > LONGEST_PATH or not path.is_file():
        came = "a folder without one" if _is_dir(folder) else "nothing"
        raise BundleError(
            f"expected a bundle folder with {MANIFEST} at {str(folder)[:200]}, came {came}; check the path"
        )
    if path.stat().st_size > LARGEST_MANIFEST:
        raise BundleError(
            f"expected {MANIFEST} under {LARGEST_MANIFEST} bytes, came {path.stat().st_size}; export again"
        )
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BundleError(f"expected {MANIFEST} as UTF-8 text, came other bytes; export the bundle again") from error
    for name, entry in manifest.files.items():
        file = folder / name
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"expected the bundle's file {name}, came none; copy the whole folder")
        if (size := file.stat().st_size) != entry.bytes:
            raise BundleError(
                f"expected {name} with {entry.bytes} bytes, came {size}; the file is damaged, copy it again"
            )
    return manifest


def _is_dir(folder: Path) -> bool:
    return len(str(folder)) <= LONGEST_PATH and folder.is_dir()


def check_hash(folder: Path, name: str, entry: FileEntry) -> None:
    """BundleError unless the file's content is what the manifest says."""
    if (came := file_entry(folder / name).sha256) != entry.sha256:
        raise BundleError(
            f"expected {name} with sha256 {entry.sha256[:12]}..., came {came[:12]}...; the file is damaged, copy it again"
        )


def file_entry(path: Path) -> FileEntry:
    """Measure a file, reading it block by block."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return FileEntry(size, digest.hexdigest())


class _Reader:
    """Typed access to untrusted JSON, with the path of what is wrong in the error."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"expected {where} to be an object, came {type(value).__name__}; export the bundle again")
        self.value, self.where = value, where

    def get(self, key: str, *kinds: type) -> Any:
        """A member of one of these types (a bool is no int)."""
        value = self.value.get(key)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise BundleError(
                f"expected {self.where} {key} as {names}, came {type(value).__name__}; export the bundle again"
            )
        return value

    def section(self, key: str) -> "_Reader":
        """A nested object."""
        return _Reader(self.value.get(key), f"{self.where} {key}")

    def items(self, key: str, *kinds: type) -> tuple[Any, ...]:
        """A list of members of one of these types."""
        values = self.get(key, list)
        if not all(isinstance(v, kinds) and not isinstance(v, bool) for v in values):
            raise BundleError(f"expected {self.where} {key} as a list of one type, came {values!r:.80}; export again")
        return tuple(values)


def _dimensions(reader: _Reader) -> Dimensions:
    return Dimensions(
        width=reader.get("width", int),
        vocab_size=reader.get("vocab_size", int, type(None)),
        blocks=reader.items("blocks", str),
        parameters=reader.get("parameters", int),
        tied=reader.get("tied", bool),
        context_length=reader.get("context_length", int, type(None)),
    )


def _graph(reader: _Reader) -> GraphInfo:
    names = {key: reader.get(key, str) for key in ("file", "flavour", "input", "output")}
    graph = GraphInfo(
        **names,
        opset=reader.get("opset", int),
        chunk=reader.get("chunk", int),
        all_logits=reader.get("all_logits", bool),
    )
    if graph.chunk < 1:
        raise BundleError(f"expected a chunk of 1 or more tokens, came {graph.chunk}; export the bundle again")
    return graph


def _tokenizer(reader: _Reader) -> TokenizerInfo:
    kind = reader.get("kind", str)
    if kind not in ("byte", "huggingface", "none"):
        raise BundleError(f"expected a tokenizer of kind byte, huggingface or none, came {kind[:40]!r}; export again")
    return TokenizerInfo(kind=kind, file=reader.get("file", str, type(None)))


def _special(reader: _Reader) -> SpecialTokens:
    return SpecialTokens(
        bos=reader.get("bos", int, type(None)),
        pad=reader.get("pad", int, type(None)),
        stop=reader.items("stop", int),
        add_bos=reader.get("add_bos", bool),
    )


def _state(reader: _Reader) -> StateTable:
    if reader.get("dtype", str) != "float32":
        raise BundleError(f"expected a float32 state, came {reader.value['dtype']!r}; export the bundle again")
    rows = []
    for index, item in enumerate(reader.get("tensors", list)):
        row = _Reader(item, f"{reader.where} tensors {index}")
        initial = row.get("initial", int, float)
        if not abs(initial) < LARGEST_INITIAL:
            raise BundleError("expected finite initial states, came another number; export the bundle again")
        spec = StateSpec(row.get("name", str), row.items("shape", int), float(initial), row.get("pieces", int))
        if spec.pieces != 1 and (len(spec.shape) != 3 or spec.pieces < 1 or spec.shape[0] % spec.pieces):
            raise BundleError(
                f"expected state {spec.name} in pieces of its last axis, came {spec.pieces} of {spec.shape}; export again"
            )
        if any(size < 1 for size in spec.shape):
            raise BundleError(
                f"expected state {spec.name} with positive sizes, came {spec.shape}; export the bundle again"
            )
        if (row.get("input", str), row.get("output", str)) != (spec.input_name, spec.output_name):
            raise BundleError(
                f"expected state {spec.name} to go through {spec.input_name}, came another name; export again"
            )
        rows.append(spec)
    try:
        table = StateTable(rows)
    except StateError as error:
        raise BundleError(str(error)) from error
    if reader.get("bytes_per_session", int) != table.nbytes:
        raise BundleError(
            f"expected bytes_per_session {table.nbytes} for this state table, came {reader.value['bytes_per_session']}; "
            "the manifest is damaged, export again"
        )
    return table


def _files(reader: _Reader) -> dict[str, FileEntry]:
    entries = {}
    for name in reader.value:
        entry = reader.section(name)
        if not PLAIN_NAME.fullmatch(name):
            raise BundleError(f"expected plain file names, came {name!r}; do not trust this bundle")
        entries[name] = FileEntry(entry.get("bytes", int), entry.get("sha256", str))
    return entries


def _check_references(manifest: Manifest) -> None:
    needed = [manifest.graph.file, "vectors.json"] + ([manifest.tokenizer.file] if manifest.tokenizer.file else [])
    if missing := [name for name in needed if name not in manifest.files]:
        raise BundleError(
            f"expected {missing[0]} among the bundle's files, came a list without it; export the bundle again"
        )
