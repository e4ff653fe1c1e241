"""Write and read the recurrent state as a file, in the safetensors format, whole or not at all.

    8 bytes            length of the header, little-endian
    header             JSON: each tensor's dtype, shape and place, and `__metadata__`: format, version, source, tokens
    data               the tensors, float32, little-endian, side by side without gaps, in any order

A snapshot belongs to a checkpoint, not to a bundle: the state means the same in every flavour and weight precision of
one checkpoint, so it moves between devices and bundles made of it. Names, shapes and places are compared with the state
table before any data is read; a file that has them has exactly one possible size. Knows nothing of sessions.
"""

import json
import os
import struct
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import StateError, shown, shown_path
from .files import atomic_file
from .reading import Reader, open_regular, parse_json
from .state import FloatArray, State, StateTable

FORMAT, VERSION = "xlstm-edge state", "2"
METADATA = "__metadata__"
ENTRY = ("dtype", "shape", "data_offsets")
MOST_AXES = 8
ALIGNMENT = 8
LARGEST_HEADER = 16 << 20
COUNT = r"0|[1-9][0-9]{0,17}"  # tokens seen, as text: metadata hold nothing else
ADVICE = "save it again"


def write_snapshot(path: str | Path, state: State, *, source: str, tokens: int) -> None:
    """Save `state`, each (1, *shape) float32, with the hash of its checkpoint and the number of tokens it has seen."""
    metadata = {"format": FORMAT, "version": VERSION, "source": source, "tokens": str(tokens)}
    header: dict[str, object] = {METADATA: metadata}
    end = 0
    for name, array in state.items():
        header[name] = _entry(array.shape, end)
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    try:
        with atomic_file(path) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for array in state.values():
                file.write(np.ascontiguousarray(array, "<f4").data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StateError(
            f"expected to write a snapshot to {shown_path(path)}, got {reason}; choose another path"
        ) from error


def read_snapshot(path: str | Path, table: StateTable, *, source: str) -> tuple[State, int]:
    """(state, tokens seen); StateError if the file is damaged or of another checkpoint."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            tokens, places = _check_header(_read_header(file, path), table, source, path)
            begin, size = file.tell(), sum(4 * prod(row.shape) for row in table)
            if (got := os.fstat(file.fileno()).st_size - begin) != size:
                raise StateError(f"expected {size} bytes of state in {shown_path(path)}, got {got}; {ADVICE}")
            state = {row.name: _read_array(file, begin + places[row.name], row.shape) for row in table}
    except FileNotFoundError as error:
        raise StateError(f"expected a snapshot at {shown_path(path)}, got nothing; check the path") from error
    except OSError as error:
        raise StateError(
            f"expected a snapshot at {shown_path(path)}, got {error.strerror or error}; check the path"
        ) from error
    if not all(np.isfinite(array).all() for array in state.values()):
        raise StateError(f"expected a finite state at {shown_path(path)}, got NaN or infinity; {ADVICE}")
    return state, tokens


def _read_header(file: BinaryIO, path: str | Path) -> object:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= LARGEST_HEADER or length > os.fstat(file.fileno()).st_size - 8:
        raise StateError(f"expected {shown_path(path)} to be a snapshot, got a damaged or foreign file; {ADVICE}")
    return parse_json(file.read(length), Path(path).name, error=StateError, advice=ADVICE)


def _check_header(document: object, table: StateTable, source: str, path: str | Path) -> tuple[int, dict[str, int]]:
    """Tokens seen, and where each tensor begins; StateError unless the header is that of this table and source."""
    where = f"the header of {shown_path(path)}"
    header = Reader(document, where, None, error=StateError, advice=ADVICE)
    metadata = header.section(METADATA, ("format", "version", "source", "tokens"))
    if (metadata.text("format"), metadata.text("version")) != (FORMAT, VERSION):
        raise StateError(f"expected a snapshot of version {VERSION} at {shown_path(path)}, got another file; {ADVICE}")
    if metadata.text("source") != source:
        raise StateError(
            f"expected a snapshot of this model's checkpoint, got {shown_path(path)} of another; load the matching bundle"
        )
    names = {row.name for row in table}
    if odd := sorted(names ^ (header.value.keys() - {METADATA})):
        raise StateError(
            f"expected the {len(names)} state tensors of this model in {where}, got a difference at {shown(odd[0])}; {ADVICE}"
        )
    places = {row.name: _place(header.section(row.name, ENTRY), (1, *row.shape)) for row in table}
    end = 0
    for row in sorted(table, key=lambda row: places[row.name]):
        if places[row.name] != end:
            raise StateError(f"expected tensors side by side in {where}, got a gap or overlap; {ADVICE}")
        end += 4 * prod(row.shape)
    return int(metadata.text("tokens", pattern=COUNT)), places


def _place(entry: Reader, shape: tuple[int, ...]) -> int:
    """Where a tensor of this shape begins."""
    offsets = entry.integers("data_offsets", 2, 0)
    got = entry.text("dtype"), entry.integers("shape", MOST_AXES, 0)
    size = offsets[1] - offsets[0] if len(offsets) == 2 else -1
    if got != ("F32", shape) or size != 4 * prod(shape):
        raise entry.refuse(entry.where, f"F32 of shape {shape}", f"{got[0]} of shape {got[1]}")
    return offsets[0]


def _entry(shape: tuple[int, ...], begin: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, begin + 4 * prod(shape)]}


def _read_array(file: BinaryIO, begin: int, shape: tuple[int, ...]) -> FloatArray:
    file.seek(begin)
    content = file.read(4 * prod(shape))
    return np.frombuffer(content, "<f4").reshape(1, *shape).astype(np.float32)
