"""Block-wise symmetric integers, in the layout that onnxruntime's MatMulNBits reads.

A matrix (N, K) is cut along K into blocks of `block_size` weights (groups, in the papers). Each has one float32 scale s and
integers q of `bits` bits, meaning s * (q - 2**(bits-1)). No zero points: they cost speed in every kernel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import InputError

FloatArray = NDArray[np.float32]
Integers = NDArray[np.uint8]

BITS = (2, 4, 8)
BLOCK_SIZES = (16, 32, 64, 128, 256)
# onnxruntime's CPU kernels for 2 bits take these blocks; with others it multiplies in float, a hundred times slower.
BLOCK_SIZES_OF_2_BITS = (32, 64, 128)
# Shrinking the scale trades the largest value of a block for the others; this range holds the best of it.
SHRINK = np.linspace(0.7, 1.0, 13, dtype=np.float32)


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
        """(N, K) -> (N, blocks, block_size), zero-padded."""
        rows, columns = matrix.shape
        padding = self.blocks_per_row(columns) * self.block_size - columns
        return np.pad(matrix, ((0, 0), (0, padding))).reshape(rows, -1, self.block_size)

    def nearest_scales(self, blocks: FloatArray) -> FloatArray:
        """Scales that map each block's value of largest magnitude onto the end of the range that reaches further."""
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
        scales = largest / np.float32(-self.zero_point)
        return np.where(scales == 0, np.float32(1), scales).astype(np.float32)

    def best_scales(self, blocks: FloatArray, weight: FloatArray | None = None) -> FloatArray:
        """Scales of least squared error (weighted by `weight`, broadcast over the blocks), searched over `SHRINK`."""
        base = self.nearest_scales(blocks)
        best, least = base, np.full(base.shape, np.inf, np.float32)
        for sign in (1, -1):
            for factor in SHRINK:
                scales = base * np.float32(sign * factor)
                error = (self._round(blocks, scales) - blocks) ** 2
                total = (error if weight is None else error * weight).sum(-1)
                best, least = np.where(total < least, scales, best), np.minimum(total, least)
        return best.astype(np.float32)

    def integers(self, blocks: FloatArray, scales: FloatArray) -> Integers:
        """Nearest integers of blocks (N, blocks, block_size)."""
        integers: Integers = np.clip(np.rint(blocks / scales[..., None]) + self.zero_point, 0, 2**self.bits - 1).astype(
            np.uint8
        )
        return integers

    def pack(self, integers: Integers, scales: FloatArray) -> Packed:
        """(N, blocks, block_size) integers, `8 / bits` of them a byte, low bits first."""
        per_byte = 8 // self.bits
        parts = integers.reshape(*integers.shape[:2], -1, per_byte).astype(np.uint16)
        shifts = np.arange(per_byte, dtype=np.uint16) * self.bits
        return Packed((parts << shifts).sum(-1).astype(np.uint8), scales)

    def unpack(self, data: Integers) -> Integers:
        """The inverse of `pack`: (N, blocks, block_size) integers."""
        shifts = np.arange(8 // self.bits, dtype=np.uint8) * self.bits
        parts: Integers = (data[..., None] >> shifts) & np.uint8(2**self.bits - 1)
        return parts.reshape(*data.shape[:2], self.block_size)

    def quantize(self, matrix: FloatArray) -> Packed:
        """Round to nearest."""
        blocks = self.to_blocks(matrix)
        scales = self.nearest_scales(blocks)
        return self.pack(self.integers(blocks, scales), scales)

    def dequantize(self, packed: Packed, columns: int) -> FloatArray:
        """(N, K) float32 of what the integers mean."""
        values = (self.unpack(packed.data).astype(np.float32) - self.zero_point) * packed.scales[..., None]
        return values.reshape(len(values), -1)[:, :columns]

    def _round(self, blocks: FloatArray, scales: FloatArray) -> FloatArray:
        least, most = -self.zero_point, self.zero_point - 1
        rounded: FloatArray = np.clip(np.rint(blocks / scales[..., None]), least, most) * scales[..., None]
        return rounded
