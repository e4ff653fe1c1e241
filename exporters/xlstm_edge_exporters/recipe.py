"""Everything that decides what an export produces, as one value: from options, or from a TOML file that reproduces it.

quantize = "int4"
method = "gptq"
calibrate = "calibration.txt"
group_size = 64

[keep]
"blocks.0.*" = 8
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlstm_edge_runtime.contract import LARGEST_CHUNK, RECIPE
from xlstm_edge_runtime.errors import InputError, printable, shown, shown_path
from xlstm_edge_runtime.reading import read_bytes

from .quantize.plan import PRESETS, QuantizeOptions

LARGEST_RECIPE = 64 << 10
MOST_DOTS = 100  # of one line: tomllib needs time and memory by their square
LARGEST_NUMBER, LARGEST_TARGET = 1 << 62, 1e9
LARGEST_TEXT = 64 << 20
GPTQ_GROUP, RTN_GROUP = 256, {"int8": 128}
KINDS = RECIPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`quantize` None keeps float32; `mixed` needs `calibrate` and spends `target_mb` (or bits per weight) best.

    `method` None means gptq where there is a text to calibrate on, rtn (round to nearest) where there is none.
    `tokenizer` is "byte", "none" or a tokenizer.json; None takes what the checkpoint has beside it.
    `group_size` None means 32 for rtn (128 for int8) and 256 for gptq, which holds the quality at the larger, faster group.
    """

    flavour: str = "ort"
    chunk: int = 64
    all_logits: bool = False
    quantize: str | None = None
    method: str | None = None
    calibrate: str | None = None
    group_size: int | None = None
    embedding_bits: int | None = None
    head_bits: int | None = None
    target_mb: float | None = None
    target_bpw: float | None = None
    keep: Mapping[str, int] = field(default_factory=dict)
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.flavour not in ("ort", "portable"):
            raise InputError(f"expected flavour ort or portable, came {shown(self.flavour)}; choose one")
        if isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or not 1 <= self.chunk <= LARGEST_CHUNK:
            raise InputError(
                f"expected a chunk of 1 to {LARGEST_CHUNK} tokens, came {shown(self.chunk)}; 64 is a good choice"
            )
        if self.quantize not in (None, "mixed", *PRESETS):
            raise InputError(f"expected quantize int8, int4 or mixed, came {shown(self.quantize)}; choose one")
        if self.quantize is not None and self.flavour == "portable":
            raise InputError(
                "expected float32 for the portable flavour, came --quantize; its opset has no group-wise integers"
            )
        self._check_calibration()

    def _check_calibration(self) -> None:
        needs = self.method == "gptq" or self.quantize == "mixed"
        if needs and self.quantize is not None and self.calibrate is None:
            raise InputError(
                f"expected a calibration text for {self.chosen_method} {self.quantize}, came none; pass --calibrate FILE"
            )
        given = (self.calibrate, self.keep, self.head_bits, self.embedding_bits, self.method, self.group_size)
        if self.quantize is None and any(value not in (None, {}) for value in given):
            raise InputError("expected --quantize with quantization options, came none; pass --quantize int4")
        targets = [target for target in (self.target_mb, self.target_bpw) if target is not None]
        if targets and self.quantize != "mixed":
            raise InputError(
                f"expected a target only with --quantize mixed, came {self.quantize}; pass --quantize mixed"
            )
        if len(targets) > 1 or any(not 0 < target < LARGEST_TARGET for target in targets):
            came = " and ".join(map(shown, targets))
            raise InputError(f"expected one positive target, came {came}; pass --target-mb or --target-bpw")

    @property
    def chosen_method(self) -> str:
        """rtn or gptq."""
        return self.method or ("rtn" if self.calibrate is None else "gptq")

    def quantize_options(self) -> QuantizeOptions:
        """Options of the plan; mixed precision starts from 4 bits."""
        method = self.chosen_method
        default = GPTQ_GROUP if method == "gptq" else RTN_GROUP.get(self.quantize or "", 32)
        group = self.group_size if self.group_size is not None else default
        return QuantizeOptions(
            bits=PRESETS.get(self.quantize or "", 4),
            group=group,
            embedding_bits=self.embedding_bits,
            head_bits=self.head_bits,
            keep=self.keep,
            method=method,
        )

    def as_dict(self) -> dict[str, Any]:
        """What differs from the defaults, for the manifest; the calibration text by its name only."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {name: value for name, value in values.items() if value not in (None, {}, False)}
        paths = {"calibrate": self.calibrate, "tokenizer": self.tokenizer}
        return plain | {name: Path(value).name for name, value in paths.items() if value}


def read_recipe(path: str | Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe of a TOML file, overridden by what is given (None is not given); paths in it are relative to it."""
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_toml(Path(path))
        for name in ("calibrate", "tokenizer"):
            if values.get(name, "none") not in ("byte", "none"):
                values[name] = str(Path(path).parent / values[name])
    recipe = Recipe(**{**values, **{name: value for name, value in given.items() if value is not None}})
    if recipe.quantize is not None:
        recipe.quantize_options()  # its own checks, before anything is loaded
    if recipe.calibrate is not None:
        read_calibration(recipe.calibrate)
    return recipe


def read_calibration(path: str | Path) -> str:
    """The text of a file; InputError for what is none, or larger than `LARGEST_TEXT`."""
    try:
        return read_bytes(Path(path), LARGEST_TEXT).decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: other bytes, or a name that no file system takes
        raise InputError(
            f"expected a UTF-8 text of at most {LARGEST_TEXT:,} bytes at {shown_path(path)}, came none; check the path"
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
            f"expected a recipe at {shown_path(path)}, came {error.strerror or error}; check the path"
        ) from error
    except (ValueError, RecursionError) as error:  # what tomllib raises, for text and for numbers of many digits
        raise InputError(f"expected {shown(path.name)} to be TOML, came: {_line(error)}; correct it") from error
    for name, value in values.items():
        if name not in KINDS:
            raise InputError(
                f"expected settings among {', '.join(KINDS)} in {shown(path.name)}, came {shown(name)}; correct it"
            )
        if not isinstance(value, KINDS[name]) or (isinstance(value, bool) and KINDS[name] is not bool):
            raise InputError(f"expected {name} in {shown(path.name)} of another type, came {shown(value)}; correct it")
    return values


def _check_numbers(value: object) -> None:
    """ValueError for an integer that Python itself would not print."""
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ValueError("an integer of more than 62 bits")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(inner)


def _line(error: Exception) -> str:
    return printable(str(error))[:100]
