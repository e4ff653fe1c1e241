"""Everything that decides what an export produces, as one value: from options, or from a TOML file that reproduces it.

quantize = "int4"
method = "gptq"
calibrate = "calibration.txt"
block_size = 64

[keep]
"blocks.0.*" = 8
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlstm_edge_runtime.errors import InputError, printable, shown, shown_path
from xlstm_edge_runtime.manifest_sections import RECIPE
from xlstm_edge_runtime.reading import LARGEST_TEXT, read_bytes

from .quantize.scheme import BITS, Scheme
from .spec import ModelSpec
from .targets import TARGETS

LARGEST_RECIPE = 64 << 10
MOST_DOTS = 100  # of one line: tomllib needs time and memory by their square
LARGEST_NUMBER, LARGEST_TARGET = 1 << 62, 1e9
GPTQ_BLOCK_SIZE, RTN_BLOCK_SIZE = 256, {"int8": 128}
KINDS = RECIPE
SAID: dict[type | tuple[type, ...], str] = {
    str: "text",
    int: "an integer",
    bool: "true or false",
    (int, float): "a number",
    dict: "patterns of names with their bits",
}
A16W8 = "a16w8"  # activations of 16 bits, weights of 8: integers for accelerators
PRESETS = {"int8": 8, "int4": 4, A16W8: 8}
KEEP_FLOAT = 32
SELF, NONE = "self", "none"  # calibrate on text that the model writes, or on nothing
MOST_TOKENS, LEAST_TOKENS = 1 << 20, 256  # of a calibration; fewer say little
VECTORS = ".npy"  # calibration inputs of a stack of vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`quantize` None keeps float32; `mixed` spends `target_mb` (or bits per weight) best.

    `calibrate` is a text like the model's own (vectors in a .npy file for a stack), "self" for text that the model writes,
    or "none". None means self for int4 and mixed, where a model takes tokens, and none for int8 and stacks of vectors.
    `calibration_tokens` None goes by the size of the model. `method` None means gptq where there is a calibration, rtn (round
    to nearest) where there is none. `block_size` None means 32 for rtn (128 for int8) and 256 for gptq, which holds the
    quality at the larger, faster size. `tokenizer` is "byte", "none" or a tokenizer.json; None takes what the checkpoint has
    beside it.
    """

    target: str = "cpu"
    soc: str | None = None
    ahead_of_time: bool = False
    chunk: int | None = None
    all_logits: bool = False
    quantize: str | None = None
    method: str | None = None
    calibrate: str | None = None
    calibration_tokens: int | None = None
    block_size: int | None = None
    embedding_bits: int | None = None
    head_bits: int | None = None
    target_mb: float | None = None
    target_bpw: float | None = None
    keep: Mapping[str, int] = field(default_factory=dict)
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        for name in KINDS:
            _check_type(name, getattr(self, name))
        self._check_target()
        if self.quantize not in (None, "mixed", *PRESETS):
            raise InputError(f"expected quantize int8, int4, mixed or a16w8, got {shown(self.quantize)}; choose one")
        blocks = ("method", "block_size", "embedding_bits", "head_bits", "target_mb", "target_bpw")
        compiled = self.quantize is not None and TARGETS[self.target].compiles_integers
        if self.quantize == A16W8:
            self._check_plain(*blocks)
        elif compiled:
            self._check_plain(*blocks, "calibrate", "calibration_tokens")
        self._check_calibration()
        if self.quantize is not None and self.quantize != A16W8 and not compiled:
            self._check_bits()

    def _check_target(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"expected a target among {', '.join(TARGETS)}, got {shown(self.target)}; choose one")
        target = TARGETS[self.target]
        if self.chunk is not None and not target.shortest_chunk <= self.chunk <= target.longest_chunk:
            shortest, longest = target.shortest_chunk, target.longest_chunk
            tokens = "1 token" if longest == 1 else f"{shortest} to {longest} tokens"
            raise InputError(
                f"expected a chunk of {tokens} for {self.target}, got {shown(self.chunk)}; leave it "
                f"out for {target.default_chunk}"
            )
        for chip in self.chips:
            if chip not in target.chips:
                known = f"a chip of {', '.join(target.chips)}" if target.chips else "no --soc"
                raise InputError(f"expected {known} for the target {self.target}, got {shown(chip)}; correct it")
        if self.ahead_of_time and not target.compiles:
            able = ", ".join(name for name, other in TARGETS.items() if other.compiles)
            raise InputError(f"expected --compile for a target of {able}, got {self.target}; leave it out")
        if self.quantize is not None and self.quantize not in target.quantizations:
            known = " or ".join(sorted(target.quantizations))
            advice = f"choose {known}" if known else "leave out --quantize, or export for the target cpu"
            raise InputError(
                f"expected {known or 'float32'} for the target {self.target}, got --quantize {shown(self.quantize)}; {advice}"
            )
        if target.compiles_integers and self.quantize is not None and not self.ahead_of_time:
            raise InputError(
                f"expected --compile with --quantize for the target {self.target}, got none: its integers are those of its own "
                "runtime; pass --compile"
            )

    def _check_plain(self, *names: str) -> None:
        """InputError for options that only block-wise integers have."""
        if odd := [name for name in (*names, "keep") if getattr(self, name) not in (None, {})]:
            name = odd[0].replace("_", "-")
            raise InputError(
                f"expected --quantize {self.quantize} for the target {self.target} without --{name}, got both; leave it out"
            )

    def _check_bits(self) -> None:
        Scheme(self.bits, self.chosen_block_size)
        if self.method not in (None, "rtn", "gptq"):
            raise InputError(f"expected method rtn or gptq, got {shown(self.method)}; choose one")
        if wrong := [pattern for pattern in self.keep if not isinstance(pattern, str)]:
            raise InputError(f"expected patterns of names in keep, got {shown(wrong[0])}; correct it")
        for bits in (self.embedding_bits, self.head_bits, *self.keep.values()):
            if bits is not None and (type(bits) is not int or bits not in (*BITS, KEEP_FLOAT)):
                raise InputError(f"expected 2, 4, 8 or 32 bits, got {shown(bits)}; no CPU kernel runs others")

    def _check_calibration(self) -> None:
        needs = self.quantize in ("mixed", A16W8) or (self.quantize is not None and self.method == "gptq")
        if needs and self.calibrate == NONE:
            raise InputError(
                f"expected a calibration for {self.quantize}, got none; leave --calibrate out for "
                "text that the model writes itself"
            )
        asked = self.calibrate not in (None, NONE) or self.calibration_tokens is not None
        if asked and self.method == "rtn" and self.quantize != "mixed":
            raise InputError(
                "expected --method gptq with a calibration, got rtn, which learns nothing from it; leave out one of them"
            )
        tokens = self.calibration_tokens
        if tokens is not None and not LEAST_TOKENS <= tokens <= MOST_TOKENS:
            raise InputError(
                f"expected {LEAST_TOKENS} to {MOST_TOKENS:,} tokens for a calibration, got {shown(tokens)}; leave it out"
            )
        given = (self.calibrate, self.calibration_tokens, self.keep, self.head_bits, self.embedding_bits)
        given_too = (self.method, self.block_size)
        if self.quantize is None and any(value not in (None, {}) for value in (*given, *given_too)):
            known = TARGETS[self.target].quantizations
            choice = "int4" if "int4" in known else "".join(sorted(known)[:1])
            advice = f"pass --quantize {choice}" if choice else f"leave them out for the target {self.target}"
            raise InputError(f"expected --quantize with quantization options, got none; {advice}")
        targets = [target for target in (self.target_mb, self.target_bpw) if target is not None]
        if targets and self.quantize != "mixed":
            raise InputError(
                f"expected a target only with --quantize mixed, got {self.quantize}; pass --quantize mixed"
            )
        if len(targets) > 1 or any(not 0 < target < LARGEST_TARGET for target in targets):
            got = " and ".join(map(shown, targets))
            raise InputError(f"expected one positive target, got {got}; pass --target-mb or --target-bpw")

    @property
    def calibration(self) -> str | None:
        """What gptq and mixed learn from: the path of a file, `SELF`, or None for nothing."""
        if self.quantize is None or self.calibrate == NONE or TARGETS[self.target].compiles_integers:
            return None
        learns = (
            self.method == "gptq"
            or self.quantize in ("mixed", A16W8)
            or (self.quantize == "int4" and self.method is None)
        )
        return self.calibrate or (SELF if learns else None)

    def for_vectors(self) -> "Recipe":
        """The same for a stack of vectors, which writes no text: rounded unless there are vectors to calibrate on."""
        if self.calibration != SELF:
            return self
        if self.calibrate == SELF or self.method == "gptq" or self.quantize in ("mixed", A16W8):
            raise InputError(
                f"expected vectors to calibrate a stack of vectors on, got {self.calibrate or 'none'}; pass --calibrate "
                "FILE.npy with float vectors (T, D)" + ("" if self.quantize == A16W8 else ", or --method rtn")
            )
        return dataclasses.replace(self, method="rtn")

    @property
    def chosen_method(self) -> str:
        """rtn or gptq."""
        return self.method or ("rtn" if self.calibration is None else "gptq")

    @property
    def chips(self) -> tuple[str, ...]:
        """Chips to compile for ahead of time, each once."""
        return tuple(dict.fromkeys(word.strip() for word in self.soc.split(","))) if self.soc is not None else ()

    def chunk_for(self, spec: ModelSpec) -> int:
        """Most tokens of one call: as given, or the target's for this model."""
        return TARGETS[self.target].chunk_for(spec) if self.chunk is None else self.chunk

    @property
    def bits(self) -> int:
        """Bits of the dense matrices; embedding and head follow unless given. Mixed precision starts from 4."""
        return PRESETS.get(self.quantize or "", 4)

    @property
    def chosen_block_size(self) -> int:
        """As given, or what fits the method."""
        if self.block_size is not None:
            return self.block_size
        return GPTQ_BLOCK_SIZE if self.chosen_method == "gptq" else RTN_BLOCK_SIZE.get(self.quantize or "", 32)

    def as_dict(self) -> dict[str, Any]:
        """What differs from the defaults, for the manifest; the calibration said in any case, a file by its name only."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"calibrate": self.calibration}
        plain = {name: value for name, value in values.items() if value not in (None, {}, False)}
        paths = {"calibrate": self.calibration, "tokenizer": self.tokenizer}
        return plain | {name: Path(value).name for name, value in paths.items() if value}


def read_recipe(path: str | Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe of a TOML file, overridden by what is given (None is not given); paths in it are relative to it."""
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_toml(Path(path))
        for name in ("calibrate", "tokenizer"):
            if values.get(name, NONE) not in ("byte", NONE, SELF):
                values[name] = str(Path(path).parent / values[name])
    recipe = Recipe(**{**values, **{name: value for name, value in given.items() if value is not None}})
    if recipe.calibration not in (None, SELF) and not is_vectors(recipe.calibration):
        read_calibration(recipe.calibration)
    return recipe


def is_vectors(path: str) -> bool:
    """Whether a calibration file holds vectors, as its name says."""
    return Path(path).suffix == VECTORS


def read_calibration(path: str | Path) -> str:
    """The text of a file; InputError for what is none, or larger than `LARGEST_TEXT`."""
    try:
        return read_bytes(Path(path), LARGEST_TEXT).decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: other bytes, or a name that no file system takes
        raise InputError(
            f"expected a UTF-8 text of at most {LARGEST_TEXT:,} bytes at {shown_path(path)}, got none; check the path"
        ) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = read_bytes(path, LARGEST_RECIPE).decode("utf-8")
        if any(line.count(".") > MOST_DOTS for line in text.splitlines() if not line.lstrip().startswith("#")):
            raise ValueError(f"a line of more than {MOST_DOTS} dots")
        values = tomllib.loads(text)
        _check_numbers(values)
    except OSError as error:
        raise InputError(
            f"expected a recipe at {shown_path(path)}, got {error.strerror or error}; check the path"
        ) from error
    except (ValueError, RecursionError) as error:  # what tomllib raises, for text and for numbers of many digits
        raise InputError(f"expected {shown(path.name)} to be TOML, got {_line(error)}; correct it") from error
    for name in values:
        if name not in KINDS:
            raise InputError(
                f"expected settings among {', '.join(KINDS)} in {shown(path.name)}, got {shown(name)}; correct it"
            )
    return values


def _check_type(name: str, value: object) -> None:
    """InputError for a setting of another type; None is not given."""
    kinds = KINDS[name]
    if value is None or (isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))):
        return
    raise InputError(f"expected {name} as {SAID[kinds]}, got {shown(value)}; correct it")


def _check_numbers(value: object) -> None:
    """ValueError for an integer that Python itself would not print."""
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ValueError("an integer of more than 62 bits")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(inner)


def _line(error: Exception) -> str:
    return printable(str(error))[:100]
