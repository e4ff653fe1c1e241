"""Open weight files, trusting none of them: safetensors, or a torch file read with `weights_only`.

Only headers are read here; the data follow tensor by tensor. A torch file may hold more than a state dict (an
optimizer, epoch numbers, a second model): every mapping in it that has an xLSTM's names is a candidate, and one must be
left or named. What stands before the names is `names`' business.
"""

import argparse
import re
import warnings
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from xlstm_edge_runtime.errors import CheckpointError, escaped

from ..weights import FloatArray, Weight, listed, to_float32

FLOATS = {"F64", "F32", "F16", "BF16"}
TORCH_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
BLOCK = re.compile(r"(?:^|\.)blocks\.(?:[^.]+\.)?[0-9]+\.(?:[^.]+\.)*(?:xlstm\.(?:mlstm|slstm)_cell|mlstm_layer)\.")
DEEPEST, MOST_MAPPINGS, LONGEST_NAME = 5, 1_000, 512
SCANNED = 16 << 20  # of the pickle is searched for what makes memory out of nothing
DOUBLING = re.compile(
    rb"hex|base.?64|quopri|quoted.printable|\x02(\x00\x00\x00)?uu|Vuu\n|uu.codec|bz2|zlib|zip.codec", re.I
)
Mappings = dict[str, Mapping[Any, Any]]


@dataclass(slots=True)
class Opened:
    """Float tensors by their names in the files; `odd`: other tensors, with what they are; `entries`: no tensors."""

    tensors: dict[str, Weight] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    entries: list[str] = field(default_factory=list)
    key: str | None = None


def open_tensors(paths: tuple[Path, ...], key: str | None = None) -> Opened:
    """All tensors of all files; CheckpointError for a name that two files hold, and for several models in one file."""
    opened = Opened()
    for path in paths:
        if path.suffix == ".safetensors":
            if key is not None:
                raise CheckpointError(
                    f"expected a weights file of the checkpoint, got --weights {escaped(key)}, which {escaped(path.name)} "
                    "has not (a safetensors file has no keys); name a file of the folder"
                )
            entries = _open_safetensors(path)
        else:
            opened.key, entries = _open_torch(path, key)
        for name, value in entries:
            if name in opened.tensors or name in opened.odd:
                raise CheckpointError(
                    f"expected each tensor once, got {escaped(name)} in two files; keep only one model's files"
                )
            if isinstance(value, Weight):
                opened.tensors[name] = value
            elif value is None:
                opened.entries.append(name)
            else:
                opened.odd[name] = value
    return opened


def _open_safetensors(path: Path) -> Iterator[tuple[str, Weight | str | None]]:
    try:
        file: Any = safe_open(path, framework="pt")
        views = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118  # safe_open is no mapping
    except Exception as error:  # the parser's own errors, and whatever its bindings make of a damaged header
        raise CheckpointError(
            f"expected {escaped(path.name)} to be a complete safetensors file, got {_line(error)}; download it again"
        ) from error
    for name, view in views:
        _refuse_long(name, path)
        shape, dtype = tuple(view.get_shape()), view.get_dtype()
        if dtype in FLOATS:
            yield name, Weight(shape, partial(_read_safetensor, path, name, shape))
        else:
            yield name, _odd(dtype, shape)


def _read_safetensor(path: Path, name: str, shape: tuple[int, ...]) -> FloatArray:
    """One tensor. The file is opened for it alone: when the tensor goes, the pages that it was mapped to go too."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name)
    except Exception as error:  # gone, or changed since its header was read
        raise CheckpointError(
            f"expected {escaped(path.name)} as it was when the export began, got {_line(error)}; export again"
        ) from error
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"expected {escaped(path.name)} as it was when the export began, got another shape of {escaped(name)}; "
            "export again"
        )
    return to_float32(tensor)


def _open_torch(path: Path, key: str | None) -> tuple[str | None, Iterator[tuple[str, Weight | str | None]]]:
    found = _load_torch(path)
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"expected {escaped(path.name)} to hold a state dict, got {type(found).__name__}; save state_dict()"
        )
    mappings = dict(_mappings(found))
    chosen = _choose(mappings, key, path)
    return chosen or None, _entries(mappings[chosen], path, path.stat().st_size)


def _choose(mappings: Mappings, key: str | None, path: Path) -> str:
    """The place of the one state dict with an xLSTM's names, or of the one that the user named."""
    candidates = [place for place, mapping in mappings.items() if any(map(BLOCK.search, _tensor_names(mapping)))]
    if key is not None:
        named = [place for place in candidates if key == place] or [
            place for place in candidates if place.rpartition("/")[2] == key
        ]
        if len(named) == 1:
            return named[0]
        raise CheckpointError(
            f"expected --weights to name a file of the checkpoint or one of the keys {listed(candidates) or '(none)'} in "
            f"{escaped(path.name)}, got {escaped(key)}; choose one of them"
        )
    if len(candidates) > 1:
        raise CheckpointError(
            f"expected one model in {escaped(path.name)}, got {listed([c or '(the top)' for c in candidates])}; name one "
            "with --weights KEY"
        )
    # One shard of several may hold no block; a file of another architecture is for `names` to refuse.
    return candidates[0] if candidates else next((p for p, m in mappings.items() if _tensor_names(m)), "")


def _mappings(top: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every mapping inside a file by its place, nearest to the top first; one that stands in several places once."""
    waiting, seen = deque([("", top, 0)]), {id(top)}
    while waiting:
        place, mapping, depth = waiting.popleft()
        yield place, mapping
        for key, value in mapping.items():
            known = not isinstance(value, Mapping) or id(value) in seen or len(seen) >= MOST_MAPPINGS
            if known or not isinstance(key, str) or len(key) > LONGEST_NAME or depth >= DEEPEST:
                continue
            seen.add(id(value))
            waiting.append((f"{place}/{key}" if place else key, value, depth + 1))


def _tensor_names(mapping: Mapping[Any, Any]) -> list[str]:
    return [
        key
        for key, value in mapping.items()
        if isinstance(key, str) and len(key) <= LONGEST_NAME and isinstance(value, torch.Tensor)
    ]


def _entries(state: Mapping[Any, Any], path: Path, size: int) -> Iterator[tuple[str, Weight | str | None]]:
    for name, tensor in state.items():
        if isinstance(name, str):
            _refuse_long(name, path)
        if not isinstance(tensor, torch.Tensor) or not isinstance(name, str):
            yield str(name) if isinstance(name, (str, int)) else f"an entry under a {type(name).__name__}", None
        elif tensor.dtype not in TORCH_FLOATS or tensor.layout != torch.strided or tensor.is_meta:
            yield name, _odd(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        elif not _holds_data(tensor, size):
            raise CheckpointError(
                f"expected tensors that hold their numbers in {escaped(path.name)}, got {escaped(name)} of shape "
                f"{escaped(str(tuple(tensor.shape)))} with fewer; save the model's state_dict() with contiguous tensors"
            )
        else:
            yield name, Weight(tuple(tensor.shape), partial(to_float32, tensor))


def _refuse_long(name: str, path: Path) -> None:
    """Before any pattern is held against it: names are paths of modules, and patterns take time that grows faster."""
    if len(name) > LONGEST_NAME:
        raise CheckpointError(
            f"expected names of at most {LONGEST_NAME} characters in {escaped(path.name)}, got one of {len(name):,}; not "
            "an xLSTM checkpoint"
        )


def _holds_data(tensor: torch.Tensor, size: int) -> bool:
    """Whether every number is in the file: a few bytes can claim terabytes by a stride of 0, or by memory unset."""
    stored = tensor.untyped_storage().nbytes()
    return tensor.numel() * tensor.element_size() <= stored <= size


def _odd(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {'scalar' if shape == () else 'tensor'}"


def _load_torch(path: Path) -> Any:
    """weights_only, memory-mapped where the file's format allows it. argparse's Namespace, an inert bag, may be inside."""
    try:
        _refuse_bombs(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch warns of odd pickle protocols; what counts is whether it loads
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before torch 1.6 cannot be mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files the unpickler raises whatever comes first: IndexError, MemoryError...
        raise CheckpointError(
            f"expected {escaped(path.name)} to be a plain torch state dict, got a file that weights_only loading refuses "
            "(a damaged file, or a pickle that may run code); save the state_dict() alone, or as safetensors"
        ) from error


def _refuse_bombs(path: Path) -> None:
    """ValueError for an archive that unpacks to more than it is, or a pickle that makes memory out of nothing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(SCANNED)
    if head[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if compressed or sum(member.file_size for member in members) > size:
                raise ValueError("an archive that unpacks to more than it is")
            pickles = [m for m in members if m.filename.endswith("data.pkl")]
            head = b"".join(archive.read(m) for m in pickles if m.file_size <= SCANNED)
    # weights_only allows both: a bytearray of any size, and codecs that can be chained, each doubling its input
    if (b"builtin" in head and b"bytearray" in head) or (b"_codecs" in head and DOUBLING.search(head)):
        raise ValueError("memory out of nothing")


def _line(error: Exception) -> str:
    return escaped(" ".join(str(error).split()), 160) or type(error).__name__
