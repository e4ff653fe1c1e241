"""Block-wise symmetric integers, in the layout that onnxruntime's MatMulNBits reads.

A matrix (N, K) is cut along K into blocks of `block_size` weights (groups, in the papers). Each has one float32 scale s and
integers q of `bits` bits, meaning s * (q - 2**(bits-1)). No zero points: they cost speed in every kernel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.integers import to_float

from .pieces import by_rows

FloatArray = NDArray[np.float32]
Integers = NDArray[np.uint8]

BITS = (2, 4, 8)
BLOCK_SIZES = (16, 32, 64, 128, 256)
# onnxruntime's CPU kernels for 2 bits take these blocks; with others it multiplies in float, a hundred times slower.
BLOCK_SIZES_OF_2_BITS = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class Packed:
    """`data` (N, blocks, block_size * bits / 8) uint8, low bits first; `scales` (N, blocks) float32."""

    data: Integers
    scales: FloatArray


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one matrix is quantized."""

    bits: int
    block_size: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"expected 2, 4 or 8 bits (32 keeps float32), got {self.bits}; no CPU kernel runs others")
        if self.block_size not in BLOCK_SIZES:
            raise InputError(
                f"expected a block size of {', '.join(map(str, BLOCK_SIZES))}, got {self.block_size}; choose one"
            )
        if self.bits == min(BITS) and self.block_size not in BLOCK_SIZES_OF_2_BITS:
            raise InputError(
                f"expected blocks of {', '.join(map(str, BLOCK_SIZES_OF_2_BITS))} with 2 bits, got {self.block_size}; "
                "no CPU kernel runs others, pass --block-size 64"
            )

    @property
    def zero_point(self) -> int:
        """The integer that means 0: the same for every block, so it is not stored."""
        return 1 << (self.bits - 1)

    def blocks_per_row(self, columns: int) -> int:
        """Blocks of a row, the last one padded with zeros."""
        return -(-columns // self.block_size)

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of data and scales."""
        return rows * self.blocks_per_row(columns) * (self.block_size * self.bits // 8 + 4)

    def to_blocks(self, matrix: FloatArray) -> FloatArray:
        """(N, K) -> (N, blocks, block_size), zero-padded: a copy, or a view where nothing has to be padded."""
        rows, columns = matrix.shape
        padding = self.blocks_per_row(columns) * self.block_size - columns
        padded = np.pad(matrix, ((0, 0), (0, padding))) if padding else matrix
        return padded.reshape(rows, -1, self.block_size)

    def pack(self, integers: Integers, scales: FloatArray) -> Packed:
        """(N, blocks, block_size) integers, `8 / bits` of them a byte, low bits first."""
        parts = integers.reshape(*integers.shape[:2], -1, 8 // self.bits)
        data = parts[..., 0].copy()
        for place in range(1, parts.shape[-1]):
            data |= parts[..., place] << np.uint8(place * self.bits)
        return Packed(data, scales)

    def dequantize(self, packed: Packed, columns: int) -> FloatArray:
        """(N, K) float32 of what the integers mean."""
        rows, blocks = packed.scales.shape
        values = np.empty((rows, blocks * self.block_size), np.float32)

        def dequantize_rows(part: slice) -> None:
            values[part] = to_float(packed.data[part], packed.scales[part], self.bits)

        by_rows(rows, blocks * self.block_size, dequantize_rows)
        return values[:, :columns]
