"""Group-wise symmetric integers, in the layout that onnxruntime's MatMulNBits reads.

A matrix (N, K) is cut along K into groups; each has one float32 scale s and integers q of `bits` bits, meaning
s * (q - 2**(bits-1)). No zero points: they cost speed in every kernel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import InputError

FloatArray = NDArray[np.float32]
Integers = NDArray[np.uint8]

BITS = (2, 4, 8)
GROUPS = (16, 32, 64, 128, 256)
# onnxruntime's CPU kernels for 2 bits take these groups; with others it multiplies in float, a hundred times slower.
GROUPS_OF_2_BITS = (32, 64, 128)
# Shrinking the scale trades the largest value of a group for the others; this range holds the best of it.
SHRINK = np.linspace(0.7, 1.0, 13, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Packed:
    """`data` (N, groups, group * bits / 8) uint8, low bits first; `scales` (N, groups) float32."""

    data: Integers
    scales: FloatArray


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one matrix is quantized."""

    bits: int
    group: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"expected 2, 4 or 8 bits (32 keeps float32), came {self.bits}; no CPU kernel runs others")
        if self.group not in GROUPS:
            raise InputError(f"expected a group size of {', '.join(map(str, GROUPS))}, came {self.group}; choose one")
        if self.bits == min(BITS) and self.group not in GROUPS_OF_2_BITS:
            raise InputError(
                f"expected groups of {', '.join(map(str, GROUPS_OF_2_BITS))} with 2 bits, came {self.group}; "
                "no CPU kernel runs others, pass --group-size 64"
            )

    @property
    def half(self) -> int:
        """The integer that means 0."""
        return 1 << (self.bits - 1)

    def groups(self, columns: int) -> int:
        """Groups of a row, the last one padded with zeros."""
        return -(-columns // self.group)

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of data and scales."""
        return rows * self.groups(columns) * (self.group * self.bits // 8 + 4)

    def grouped(self, matrix: FloatArray) -> FloatArray:
        """(N, K) -> (N, groups, group), zero-padded."""
        rows, columns = matrix.shape
        padding = self.groups(columns) * self.group - columns
        return np.pad(matrix, ((0, 0), (0, padding))).reshape(rows, -1, self.group)

    def nearest_scales(self, groups: FloatArray) -> FloatArray:
        """Scales that map each group's value of largest magnitude onto the end of the range that reaches further."""
        largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
        scales = largest / np.float32(-self.half)
        return np.where(scales == 0, np.float32(1), scales).astype(np.float32)

    def best_scales(self, groups: FloatArray, weight: FloatArray | None = None) -> FloatArray:
        """Scales of least squared error (weighted by `weight`, broadcast over the groups), searched over `SHRINK`."""
        base = self.nearest_scales(groups)
        best, least = base, np.full(base.shape, np.inf, np.float32)
        for sign in (1, -1):
            for factor in SHRINK:
                scales = base * np.float32(sign * factor)
                error = (self._round(groups, scales) - groups) ** 2
                total = (error if weight is None else error * weight).sum(-1)
                best, least = np.where(total < least, scales, best), np.minimum(total, least)
        return best.astype(np.float32)

    def integers(self, groups: FloatArray, scales: FloatArray) -> Integers:
        """Nearest integers of groups (N, groups, group)."""
        integers: Integers = np.clip(np.rint(groups / scales[..., None]) + self.half, 0, 2**self.bits - 1).astype(
            np.uint8
        )
        return integers

    def pack(self, integers: Integers, scales: FloatArray) -> Packed:
        """(N, groups, group) integers, `8 / bits` of them a byte, low bits first."""
        per_byte = 8 // self.bits
        parts = integers.reshape(*integers.shape[:2], -1, per_byte).astype(np.uint16)
        shifts = np.arange(per_byte, dtype=np.uint16) * self.bits
        return Packed((parts << shifts).sum(-1).astype(np.uint8), scales)

    def unpack(self, data: Integers) -> Integers:
        """The inverse of `pack`: (N, groups, group) integers."""
        shifts = np.arange(8 // self.bits, dtype=np.uint8) * self.bits
        parts: Integers = (data[..., None] >> shifts) & np.uint8(2**self.bits - 1)
        return parts.reshape(*data.shape[:2], self.group)

    def quantize(self, matrix: FloatArray) -> Packed:
        """Round to nearest."""
        groups = self.grouped(matrix)
        scales = self.nearest_scales(groups)
        return self.pack(self.integers(groups, scales), scales)

    def dequantize(self, packed: Packed, columns: int) -> FloatArray:
        """(N, K) float32 of what the integers mean."""
        values = (self.unpack(packed.data).astype(np.float32) - self.half) * packed.scales[..., None]
        return values.reshape(len(values), -1)[:, :columns]

    def _round(self, groups: FloatArray, scales: FloatArray) -> FloatArray:
        limit = self.half
        rounded: FloatArray = np.clip(np.rint(groups / scales[..., None]), -limit, limit - 1) * scales[..., None]
        return rounded
