"""Write and read the recurrent state as a file, in the safetensors format, whole or not at all.

    8 bytes            length of the header, little-endian
    header             JSON: each tensor's dtype, shape and place, and `__metadata__`: format, version, source, tokens
    data               the tensors, little-endian, side by side without gaps, in any order

Version 2 holds every tensor of the state table in float32. Version 3 holds the matrix memories, which are nearly all of a
large model's state, in float16, each with `NAME.scale`, float32 (1, H): head h is the stored numbers times scale h, a power
of two that puts its largest number at the upper end of float16, so none is lost to overflow.

A bundle whose graph holds stabilizers less a constant a head stores them so, with that constant as `NAME.offset`, float32
(1, H): m is the sum of both.

A snapshot belongs to a checkpoint, not to a bundle: the state means the same for every target and weight precision of
one checkpoint, so it moves between devices and bundles made of it. Where the bundle that wrote it has stabilizers and the
one that reads it has none, or the other way round, the memory is brought to the form of the reader. Names, shapes and places
are compared with the state table before any data is read; a file that has them has exactly one possible size. Knows nothing
of sessions.
"""

import json
import os
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, StateError, shown, shown_path
from .files import atomic_file
from .reading import Reader, open_regular, parse_json
from .state import BESIDE, FloatArray, State, StateTable, in_other_form

FORMAT = "xlstm-edge state"
VERSIONS = {"float32": "2", "float16": "3"}  # what matrix memories are stored in -> version
MATRIX, STABILIZER = ".C", ".m"
SCALE, OFFSET = BESIDE
STORED = {"F32": "<f4", "F16": "<f2"}
Floats = NDArray[np.floating[Any]]
# The largest number of a head is stored below 2**HALF_EXPONENT; a scale is no smaller than float32's normal numbers.
HALF_EXPONENT, SMALLEST_EXPONENT = 15, -126
METADATA = "__metadata__"
ENTRY = ("dtype", "shape", "data_offsets")
MOST_AXES = 8
ALIGNMENT = 8
LARGEST_HEADER = 16 << 20
COUNT = r"0|[1-9][0-9]{0,17}"  # tokens seen, as text: metadata hold nothing else
ADVICE = "save it again"


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the file."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * np.dtype(STORED[self.dtype]).itemsize


def write_snapshot(
    path: str | Path, state: State, table: StateTable, *, source: str, tokens: int, dtype: str = "float32"
) -> None:
    """Save `state` as a graph of `table` holds it, with the hash of its checkpoint and the number of tokens it has seen.

    `dtype` is what matrix memories are stored in, float32 or float16; InputError for another.
    """
    if not isinstance(dtype, str) or dtype not in VERSIONS:
        raise InputError(f"expected a snapshot in {' or '.join(VERSIONS)}, got {shown(dtype)}; choose one of them")
    metadata = {"format": FORMAT, "version": VERSIONS[dtype], "source": source, "tokens": str(tokens)}
    arrays = _stored(state, table)
    arrays = _halved(arrays) if dtype == "float16" else arrays
    header: dict[str, object] = {METADATA: metadata}
    end = 0
    for name, array in arrays.items():
        header[name] = _entry(array, end)
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    try:
        with atomic_file(path) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StateError(
            f"expected to write a snapshot to {shown_path(path)}, got {reason}; choose another path"
        ) from error


def read_snapshot(path: str | Path, table: StateTable, *, source: str) -> tuple[State, int]:
    """(state as a graph of `table` holds it, tokens seen); StateError if the file is damaged or of another checkpoint.

    float32 however it is stored; bit-equal with what was written where that was float32 and the tables are the same.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            tokens, tensors, places = _check_header(_read_header(file, path), table, source, path)
            begin, size = file.tell(), sum(tensor.nbytes for tensor in tensors.values())
            if (got := os.fstat(file.fileno()).st_size - begin) != size:
                raise StateError(f"expected {size} bytes of state in {shown_path(path)}, got {got}; {ADVICE}")
            arrays = {name: _read_array(file, begin + places[name], tensor) for name, tensor in tensors.items()}
    except FileNotFoundError as error:
        raise StateError(f"expected a snapshot at {shown_path(path)}, got nothing; check the path") from error
    except OSError as error:
        raise StateError(
            f"expected a snapshot at {shown_path(path)}, got {error.strerror or error}; check the path"
        ) from error
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows, and infinity times 0, is told below
        state = _held(arrays, table)
    if not all(np.isfinite(array).all() for array in state.values()):
        raise StateError(f"expected a finite state at {shown_path(path)}, got NaN or infinity; {ADVICE}")
    return state, tokens


def _stored(state: State, table: StateTable) -> dict[str, Floats]:
    """The state as users see it, but stabilizers as the graph holds them, each with what it is short of: no digit is lost."""
    arrays: dict[str, Floats] = {}
    for row in table:
        arrays[row.name] = state[row.name] if row.offset else row.from_graph(state[row.name])
        if row.offset:
            arrays[row.name + OFFSET] = np.array([row.offset], np.float32)
    return arrays


def _held(arrays: Mapping[str, FloatArray], table: StateTable) -> State:
    """What is stored, as a graph of `table` holds it."""
    offsets = {row.name: np.array([row.offset], np.float32) for row in table if row.offset}
    state, kept = State(), State()
    for name in arrays:
        if name.endswith(BESIDE):
            continue
        state[name], offset = _restored(arrays, name), arrays.get(name + OFFSET)
        if offset is not None:
            if name in offsets and np.array_equal(offset, offsets[name]):
                kept[name] = state[name]
            state[name] = state[name] + offset[:, None]
    if state.keys() != {row.name for row in table}:
        state = in_other_form(state, table)
    return table.to_graph(state) | kept


def _halved(state: Mapping[str, Floats]) -> dict[str, Floats]:
    """The state with its matrix memories in float16, each followed by its scales."""
    arrays: dict[str, Floats] = {}
    for name, array in state.items():
        arrays[name] = array
        if name.endswith(MATRIX):
            exponent = np.frexp(np.abs(array).max((2, 3)))[1] - HALF_EXPONENT
            scale = np.ldexp(np.float32(1), np.maximum(exponent, SMALLEST_EXPONENT))
            arrays[name], arrays[name + SCALE] = (array / scale[..., None, None]).astype(np.float16), scale
    return arrays


def _restored(arrays: Mapping[str, FloatArray], name: str) -> FloatArray:
    """A tensor of the state from what is stored of it."""
    scale = arrays.get(name + SCALE)
    return arrays[name] if scale is None else arrays[name] * scale[..., None, None]


def _tensors(table: StateTable, dtype: str, given: Collection[str]) -> dict[str, _Tensor]:
    """What a file of this table holds; stabilizers may be given with what they are short of."""
    tensors = {row.name: _Tensor("F32", (1, *row.shape)) for row in table}
    if dtype == "float16":
        for row in table:
            if row.name.endswith(MATRIX):
                tensors[row.name] = _Tensor("F16", (1, *row.shape))
                tensors[row.name + SCALE] = _Tensor("F32", (1, row.shape[0]))
    for row in table:
        if row.shape and row.name.endswith(STABILIZER) and row.name + OFFSET in given:
            tensors[row.name + OFFSET] = _Tensor("F32", (1, row.shape[-1]))
    return tensors


def _read_header(file: BinaryIO, path: str | Path) -> object:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= LARGEST_HEADER or length > os.fstat(file.fileno()).st_size - 8:
        raise StateError(f"expected {shown_path(path)} to be a snapshot, got a damaged or foreign file; {ADVICE}")
    return parse_json(file.read(length), Path(path).name, error=StateError, advice=ADVICE)


def _check_header(
    document: object, table: StateTable, source: str, path: str | Path
) -> tuple[int, dict[str, _Tensor], dict[str, int]]:
    """Tokens seen, the tensors, and where each begins; StateError unless the header is that of this table and source."""
    where = f"the header of {shown_path(path)}"
    header = Reader(document, where, None, error=StateError, advice=ADVICE)
    metadata = header.section(METADATA, ("format", "version", "source", "tokens"))
    dtypes = {version: dtype for dtype, version in VERSIONS.items()}
    version = metadata.text("version")
    if metadata.text("format") != FORMAT or version not in dtypes:
        raise StateError(
            f"expected a snapshot of version {' or '.join(dtypes)} at {shown_path(path)}, got another file; {ADVICE}"
        )
    if metadata.text("source") != source:
        raise StateError(
            f"expected a snapshot of this model's checkpoint, got {shown_path(path)} of another; load the matching bundle"
        )
    given = header.value.keys() - {METADATA}
    tensors, other = (_tensors(form, dtypes[version], given) for form in (table, table.other_form()))
    if other.keys() == given:
        tensors = other
    if odd := sorted(tensors.keys() ^ given):
        raise StateError(
            f"expected the {len(tensors)} state tensors of this model in {where}, got a difference at {shown(odd[0])}; {ADVICE}"
        )
    places = {name: _place(header.section(name, ENTRY), tensor) for name, tensor in tensors.items()}
    end = 0
    for name in sorted(tensors, key=lambda name: places[name]):
        if places[name] != end:
            raise StateError(f"expected tensors side by side in {where}, got a gap or overlap; {ADVICE}")
        end += tensors[name].nbytes
    return int(metadata.text("tokens", pattern=COUNT)), tensors, places


def _place(entry: Reader, tensor: _Tensor) -> int:
    """Where this tensor begins."""
    offsets = entry.integers("data_offsets", 2, 0)
    got = entry.text("dtype"), entry.integers("shape", MOST_AXES, 0)
    size = offsets[1] - offsets[0] if len(offsets) == 2 else -1
    if got != (tensor.dtype, tensor.shape) or size != tensor.nbytes:
        raise entry.refuse(entry.where, f"{tensor.dtype} of shape {tensor.shape}", f"{got[0]} of shape {got[1]}")
    return offsets[0]


def _entry(array: Floats, begin: int) -> dict[str, object]:
    kind = {4: "F32", 2: "F16"}[array.itemsize]
    return {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, begin + array.nbytes]}


def _read_array(file: BinaryIO, begin: int, tensor: _Tensor) -> FloatArray:
    file.seek(begin)
    content = file.read(tensor.nbytes)
    stored: Floats = np.frombuffer(content, STORED[tensor.dtype]).reshape(tensor.shape)
    with np.errstate(invalid="ignore"):  # a NaN that signals; refused with the others
        return stored.astype(np.float32)
