"""Finished tensors of an export on the disk: memory holds one at a time, and an interrupted export goes on from them.

A tensor appears whole or not at all. What is read back must have the shape that the plan gives it; nothing in a file is
run.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.files import atomic_file

from ..weights import Weight
from .scheme import Packed, Scheme
from .sources import Quantizer

# What numpy and zipfile raise for what is not there, or not whole.
READ_ERRORS = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile)
Arrays = dict[str, NDArray[np.generic]]


class Store:
    """Named arrays in a folder that this export alone writes to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, name: str, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Keep arrays under a name, in the place of what it has."""
        with atomic_file(self._path(name)) as file:
            np.savez(file, **dict[str, Any](arrays))

    def load(self, name: str) -> Arrays | None:
        """The arrays of a name; None if it has none, or a file that is damaged."""
        try:
            with self._path(name).open("rb") as file, np.load(file, allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        except READ_ERRORS:
            return None

    def save_packed(self, name: str, packed: Packed) -> None:
        """Keep a quantized tensor."""
        self.save(name, {"data": packed.data, "scales": packed.scales})

    def load_packed(self, name: str, rows: int, columns: int, scheme: Scheme) -> Packed | None:
        """A quantized (rows, columns) matrix; None unless it is there as the scheme stores it."""
        found, blocks = self.load(name) or {}, scheme.blocks_per_row(columns)
        data, scales = found.get("data"), found.get("scales")
        shape = (rows, blocks, scheme.block_size * scheme.bits // 8)
        if data is None or data.shape != shape or data.dtype != np.dtype(np.uint8):
            return None
        if scales is None or scales.shape != shape[:2] or scales.dtype != np.dtype(np.float32):
            return None
        return Packed(data.astype(np.uint8, copy=False), scales.astype(np.float32, copy=False))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npz"


def finished(store: Store) -> Quantizer:
    """What a calibration left in the store, which nothing may stand in for."""

    def take(name: str, matrix: Weight, scheme: Scheme) -> Packed:
        rows, columns = matrix.shape
        if (packed := store.load_packed(name, rows, columns, scheme)) is None:
            raise InputError(
                f"expected the integers of {name} beside the bundle as they were made, got none; export again"
            )
        return packed

    return take


def stored(quantizer: Quantizer, store: Store) -> Quantizer:
    """The same quantizer, which takes what is in the store and keeps there what it makes."""

    def quantize(name: str, matrix: Weight, scheme: Scheme) -> Packed:
        rows, columns = matrix.shape
        packed = store.load_packed(name, rows, columns, scheme)
        if packed is None:
            packed = quantizer(name, matrix, scheme)
            store.save_packed(name, packed)
        return packed

    return quantize
