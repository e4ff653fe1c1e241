"""The sections of a manifest: what each holds, and how it is read from JSON that nobody trusts.

`manifest` puts them together. Each reader takes a `Reader` whose keys are checked already and raises BundleError.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .errors import BundleError, InputError, StateError, shown
from .layout import COMPILED, MANIFEST
from .reading import Reader
from .sampling import SamplingOptions
from .state import SLSTM_INITIAL_M, SMALL_INITIAL_M, StateSpec, StateTable

LARGEST_DIMENSION, LARGEST_CHUNK = 1 << 31, 4096
MOST_HEADS, LARGEST_OFFSET, MOST_COMPILED = 1 << 16, 1e6, 32
MOST_FILES, MOST_BLOCKS, MOST_TENSORS, MOST_STOPS, MOST_AXES = 64, 1 << 14, 1 << 17, 1024, 8
FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
TENSOR_NAME = r"[A-Za-z0-9._]{1,200}"
CHIP = r"[a-z0-9]{1,20}"
# Where a graph is for, and what loads its other forms.
TARGETS = ("cpu", "portable", "web", "coreml", "qnn", "openvino", "litert", "genai")
LOADERS = ("qnn", "coreml", "openvino", "litert", "genai")
HASH = r"[0-9a-f]{64}"
KINDS = ("byte", "huggingface", "none")
# What decided an export, and the type of each: the options of the exporter's recipe.
RECIPE: dict[str, type | tuple[type, ...]] = {
    "target": str,
    "soc": str,
    "ahead_of_time": bool,
    "chunk": int,
    "all_logits": bool,
    "quantize": str,
    "method": str,
    "calibrate": str,
    "calibration_tokens": int,
    "block_size": int,
    "embedding_bits": int,
    "head_bits": int,
    "target_mb": (int, float),
    "target_bpw": (int, float),
    "keep": dict,
    "tokenizer": str,
}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "penalty_window")


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
    """How to call the graph: `chunk` is the largest number of tokens in one call.

    Where `prompt` names a second graph, `file` takes one token and that one exactly `chunk`, with the same inputs and outputs.
    """

    file: str
    target: str
    opset: int
    input: str
    output: str
    chunk: int
    all_logits: bool
    prompt: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The graph, and that for prompts if there is one."""
        return (self.file,) if self.prompt is None else (self.file, self.prompt)


@dataclass(frozen=True, slots=True)
class CompiledGraph:
    """The graph in a form made ahead of time: its first file, the provider, or another runtime, that loads it, its weights.

    `prompt` is the same of the graph for prompts, where that was compiled too.
    """

    file: str
    provider: str
    weights: str
    prompt: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The graph, and that for prompts if there is one."""
        return (self.file,) if self.prompt is None else (self.file, self.prompt)


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


A_SCALE_AN_OUTPUT = 0  # in the place of a block size


@dataclass(frozen=True, slots=True)
class TensorQuantization:
    """One tensor's integers: `bits` each, `block_size` of them with one scale, or all that make an output with one."""

    bits: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a bundle's weights are stored: `tensors` by canonical name, the others float32; `recipe` as the export was told.

    False where everything is float32.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, TensorQuantization] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tensors)

    @property
    def in_graph(self) -> bool:
        """Whether the graph itself says how activations are rounded, so that no kernel can do without it."""
        return any(tensor.block_size == A_SCALE_AN_OUTPUT for tensor in self.tensors.values())

    @property
    def calibrated(self) -> bool:
        """Whether the integers depend on a calibration (gptq), not on the weights alone (rtn)."""
        return (self.recipe.get("method") or ("gptq" if self.recipe.get("calibrate") else "rtn")) == "gptq"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest; {} where everything is float32."""
        if not self:
            return {}
        return {"recipe": dict(self.recipe), "tensors": {name: asdict(tensor) for name, tensor in self.tensors.items()}}


def read_dimensions(reader: Reader) -> Dimensions:
    """What the model is."""
    return Dimensions(
        width=reader.integer("width", 1, LARGEST_DIMENSION),
        vocab_size=None if reader.is_null("vocab_size") else reader.integer("vocab_size", 1, LARGEST_DIMENSION),
        blocks=reader.texts("blocks", MOST_BLOCKS, pattern="mlstm|slstm"),
        parameters=reader.integer("parameters", 0),
        tied=reader.flag("tied"),
        context_length=None if reader.is_null("context_length") else reader.integer("context_length", 1),
    )


def read_graph(reader: Reader) -> GraphInfo:
    """How the graph is called."""
    info = GraphInfo(
        file=reader.text("file", pattern=FILE_NAME),
        target=reader.text("target", among=TARGETS),
        opset=reader.integer("opset", 1, 1000),
        input=reader.text("input", pattern=TENSOR_NAME),
        output=reader.text("output", pattern=TENSOR_NAME),
        chunk=reader.integer("chunk", 1, LARGEST_CHUNK),
        all_logits=reader.flag("all_logits"),
        prompt=None if reader.is_null("prompt") else reader.text("prompt", pattern=FILE_NAME),
    )
    if info.prompt is not None and info.chunk == 1:
        raise reader.refuse(f"{reader.where} prompt", "no graph for prompts of one token", info.prompt)
    return info


def read_compiled(reader: Reader) -> dict[str, CompiledGraph]:
    """Forms made ahead of time, by the name of the chip or runtime that each is for."""
    if len(reader.value) > MOST_COMPILED or not all(re.fullmatch(CHIP, name) for name in reader.value):
        raise reader.refuse(
            reader.where, f"at most {MOST_COMPILED} forms by short names", f"{len(reader.value)} of them"
        )
    entries = {name: reader.section(name, ["file", "provider", "weights", "prompt"]) for name in reader.value}
    return {
        name: CompiledGraph(
            entry.text("file", pattern=COMPILED.pattern),
            entry.text("provider", among=LOADERS),
            entry.text("weights", among=("float32", "float16", "int8", "int4", "a16w8")),
            None if entry.is_null("prompt") else entry.text("prompt", pattern=COMPILED.pattern),
        )
        for name, entry in entries.items()
    }


def read_tokenizer(reader: Reader) -> TokenizerInfo:
    """Which tokenizer, and its file."""
    kind = reader.text("kind", among=KINDS)
    file = None if reader.is_null("file") else reader.text("file", pattern=FILE_NAME)
    if (file is None) != (kind in ("byte", "none")):
        raise reader.refuse(f"{reader.where} file", f"what a tokenizer of kind {kind} needs", file)
    return TokenizerInfo(kind=kind, file=file)  # type: ignore[arg-type]  # one of KINDS


def read_special(reader: Reader, vocab_size: int | None) -> SpecialTokens:
    """Special tokens, inside the vocabulary."""
    last = (vocab_size or 0) - 1
    return SpecialTokens(
        bos=None if reader.is_null("bos") else reader.integer("bos", 0, last),
        pad=None if reader.is_null("pad") else reader.integer("pad", 0, last),
        stop=reader.integers("stop", MOST_STOPS, 0, last),
        add_bos=reader.flag("add_bos"),
    )


def read_sampling(reader: Reader) -> dict[str, Any]:
    """Defaults that SamplingOptions accepts."""
    try:
        SamplingOptions.from_mapping(reader.value)
    except InputError as error:
        raise BundleError(f"in {reader.where}: {error}") from error
    return dict(reader.value)


def read_quantization(reader: Reader) -> Quantization:
    """The recipe, and what it came to for each tensor."""
    if not reader.value:
        return Quantization()
    recipe = reader.section("recipe", (), optional=RECIPE)
    for key, value in recipe.value.items():
        kinds = RECIPE[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise recipe.refuse(f"{recipe.where} {key}", "another type", value)
    if "keep" in recipe.value:
        keep = recipe.section("keep", None)
        for pattern in keep.value:
            keep.integer(pattern, 2, 32)
    tensors = reader.section("tensors", None)
    if not 1 <= len(tensors.value) <= MOST_TENSORS:
        raise tensors.refuse(tensors.where, "one tensor or more", f"{len(tensors.value)} of them")
    schemes = {name: tensors.section(name, ["bits", "block_size"]) for name in tensors.value}
    return Quantization(
        dict(recipe.value),
        {
            name: TensorQuantization(scheme.integer("bits", 2, 8), _block_size(scheme))
            for name, scheme in schemes.items()
        },
    )


def _block_size(scheme: Reader) -> int:
    """Numbers of a scale, or `A_SCALE_AN_OUTPUT`."""
    size = scheme.integer("block_size", A_SCALE_AN_OUTPUT, 256)
    return size if size == A_SCALE_AN_OUTPUT else scheme.integer("block_size", 16, 256)


def read_state(reader: Reader) -> StateTable:
    """The state table, in graph order."""
    reader.text("dtype", among=("float32",))
    keys = ("name", "input", "output", "shape", "head_splits", "offset", "initial")
    try:
        table = StateTable([_state_row(row) for row in reader.sections("tensors", MOST_TENSORS, keys)])
    except StateError as error:
        raise BundleError(str(error)) from error
    wanted = table.wanted_initials()
    small = {SLSTM_INITIAL_M: SMALL_INITIAL_M}
    if odd := [row for row in table if row.initial not in (wanted[row.name], small.get(wanted[row.name]))]:
        raise reader.refuse(f"{reader.where} {odd[0].name}", f"{wanted[odd[0].name]:g} at first", odd[0].initial)
    if reader.integer("bytes_per_session", 0) != table.nbytes:
        raise reader.refuse(
            f"{reader.where} bytes_per_session", f"{table.nbytes} for this table", reader.value["bytes_per_session"]
        )
    return table


def _state_row(row: Reader) -> StateSpec:
    initial = row.number("initial", SLSTM_INITIAL_M, 0)
    shape = row.integers("shape", MOST_AXES, 1, LARGEST_DIMENSION)
    splits = row.integer("head_splits", 1, LARGEST_DIMENSION)
    if splits != 1 and (len(shape) != 3 or shape[2] % splits):
        raise row.refuse(f"{row.where} head_splits", f"a number that divides the last axis of {shape}", splits)
    offset = row.numbers("offset", MOST_HEADS, -LARGEST_OFFSET, LARGEST_OFFSET)
    name = row.text("name", pattern=TENSOR_NAME)
    width = shape[-1] if shape else 0
    if offset and (not name.endswith(".m") or len(offset) != width or splits != 1):
        raise row.refuse(f"{row.where} offset", f"{width} numbers for a stabilizer whole", f"{len(offset)}")
    spec = StateSpec(name, shape, initial, splits, offset)
    if (row.text("input"), row.text("output")) != (spec.input_name, spec.output_name):
        raise row.refuse(row.where, f"a tensor that goes through {spec.input_name}", row.value["input"])
    return spec


def read_files(reader: Reader) -> dict[str, FileEntry]:
    """Sizes and hashes by plain file name."""
    if len(reader.value) > MOST_FILES:
        raise reader.refuse(reader.where, f"at most {MOST_FILES} files", f"{len(reader.value)} of them")
    entries = {}
    for name in reader.value:
        if not re.fullmatch(FILE_NAME, name) or name == MANIFEST:
            raise BundleError(f"expected plain file names, got {shown(name)}; do not trust this bundle")
        entry = reader.section(name, ["bytes", "sha256"])
        entries[name] = FileEntry(entry.integer("bytes", 0), entry.text("sha256", pattern=HASH))
    return entries
