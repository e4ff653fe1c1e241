"""Whether quantized weights are what their scheme makes of the checkpoint's, block by block.

A norm over a tensor hides a swapped scale or a moved block among thousands; a block of its own does not. Rounding to
nearest is repeated and must come to the same squared error in every block. What GPTQ comes to depends on its calibration
text; how far it may go, as a multiple of what rounding to nearest does, stands here. The export keeps to it (rows that a
poor calibration led further are rounded to nearest), and a bundle that says it was calibrated is held to no more.
"""

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import VerificationError

from ..weights import FloatArray, loaded
from .orientation import as_matrix
from .pieces import by_rows, large_parts
from .scheme import Packed, Scheme
from .sources import round_searched

SAME = 1e-3  # by how much sums of squares may differ in another order of summation, or at a tie of two scales
# GPTQ's error over that of rounding to nearest; of trained models were seen 1.9 for a tensor, 2.3 for a row, 4.7 for a block.
TENSOR_RATIO, ROW_RATIO, BLOCK_RATIO = 2.5, 3.0, 6.0
# Largest relative error of a block, by bits; an unrelated block's is 1.4.
BLOCK_ERROR = {2: 1.25, 4: 0.45, 8: 0.05}
# How far a tensor may be stretched (its product with the original's) from where rounding to nearest puts it.
GAIN = {2: 0.25, 4: 0.05, 8: 0.01}
LEAST_ERROR = 1 / 6  # of a step: an error that no block is too good for
Squares = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Limits:
    """Judges a calibrated matrix, some rows at a time: its blocks and rows at once, the whole at the end."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme
        self._size = self._error = self._rounding = self._gain = self._rounded_gain = 0.0

    def take(self, original: FloatArray, got: FloatArray, nearest: FloatArray, *, replace: bool = False) -> Flags:
        """Blocks (rows, blocks) that are further from the original's than may be.

        Matrices are (rows, K) float32; `nearest` is what rounding to nearest makes of the original. With `replace` the rows
        of such blocks count as `nearest`'s in the whole.
        """
        rows, columns = original.shape
        far = np.empty((rows, self._scheme.blocks_per_row(columns)), np.bool_)
        sums = np.empty((rows, 5))

        def judge(part: slice) -> None:
            far[part], sums[part] = self._judged(original[part], got[part], nearest[part], replace=replace)

        by_rows(rows, columns, judge)
        size, error, rounding, gain, rounded_gain = sums.sum(0).tolist()
        self._size += size
        self._error += error
        self._rounding += rounding
        self._gain += gain
        self._rounded_gain += rounded_gain
        return far

    def _judged(
        self, original: FloatArray, got: FloatArray, nearest: FloatArray, *, replace: bool
    ) -> tuple[Flags, Squares]:
        """The same for rows that a core's cache holds, and of each row what the whole is made of (rows, 5)."""
        scheme = self._scheme
        blocks, stored, rounded = (scheme.to_blocks(matrix) for matrix in (original, got, nearest))
        sizes, errors, least = _squares(blocks), _squares(stored - blocks), _squares(rounded - blocks)
        gains, rounded_gains = _products(stored, blocks), _products(rounded, blocks)
        step = np.abs(blocks).max(-1).astype(np.float64) / scheme.zero_point
        rounding = np.maximum(least, scheme.block_size * np.square(LEAST_ERROR * step))
        allowed = np.minimum(BLOCK_RATIO**2 * rounding, BLOCK_ERROR[scheme.bits] ** 2 * sizes)
        far: Flags = ~(errors <= np.maximum(allowed, (1 + SAME) * least))
        far |= ~(errors.sum(1, keepdims=True) <= ROW_RATIO**2 * rounding.sum(1, keepdims=True))
        if replace:
            given_up = far.any(1)
            errors[given_up], gains[given_up] = least[given_up], rounded_gains[given_up]
        return far, np.stack([each.sum(1) for each in (sizes, errors, rounding, gains, rounded_gains)], 1)

    @property
    def whole(self) -> bool:
        """Whether all that was taken is stretched, or worse, as a whole."""
        stretched = not abs(self._gain - self._rounded_gain) <= GAIN[self._scheme.bits] * self._size
        return stretched or not self._error <= TENSOR_RATIO**2 * self._rounding


def within_limits(name: str, original: FloatArray, packed: Packed, scheme: Scheme) -> Packed:
    """GPTQ's integers of `original` (N, K); where its calibration led them too far, those of rounding to nearest."""
    nearest, (rows, columns) = round_searched(name, loaded(original), scheme), original.shape
    data, scales, limits = packed.data.copy(), packed.scales.copy(), Limits(scheme)
    for part in large_parts(rows, columns):
        kept, other = Packed(data[part], scales[part]), Packed(nearest.data[part], nearest.scales[part])
        got, rounded = (scheme.dequantize(one, columns) for one in (kept, other))
        far = np.asarray(limits.take(original[part], got, rounded, replace=True).any(1))
        kept.data[far], kept.scales[far] = other.data[far], other.scales[far]
    return nearest if limits.whole else Packed(data, scales)


class WeightCheck:
    """Takes tensor after tensor; `str` of it sums up."""

    def __init__(self, *, calibrated: bool) -> None:
        self._calibrated, self._worst = calibrated, 0.0

    def take(self, name: str, original: FloatArray, got: FloatArray, scheme: Scheme) -> None:
        """VerificationError unless every block of `got` is what the scheme makes of the original's."""
        matrix, stored = as_matrix(name, original), as_matrix(name, got)
        blocks = scheme.to_blocks(matrix)
        errors, sizes = _squares(scheme.to_blocks(stored) - blocks), _squares(blocks)
        nearest = scheme.dequantize(round_searched(name, loaded(matrix), scheme), matrix.shape[1])
        if self._calibrated:
            limits = Limits(scheme)
            far, whole = limits.take(matrix, stored, nearest), limits.whole
        else:
            least = _squares(scheme.to_blocks(nearest) - blocks)
            far, whole = ~(errors <= (1 + SAME) * least + 1e-12 * sizes.max()), False
        if far.any() or whole:
            shares = np.where(far | ~far.any(), errors / np.maximum(sizes, 1e-30), -1)
            row, block = (int(number) for number in np.unravel_index(shares.argmax(), shares.shape))
            raise VerificationError(
                f"expected block {block} of row {row} of {name} as near to the checkpoint's as {scheme.bits} bits allow, "
                f"got one {np.sqrt(shares[row, block]):.0%} away; export the bundle again"
            )
        self._worst = max(self._worst, float(np.sqrt(errors.sum() / max(float(sizes.sum()), 1e-30))))

    def __str__(self) -> str:
        return f"every block as its bits allow, a tensor within {self._worst:.1%} (root mean square)"


def _products(first: FloatArray, second: FloatArray) -> Squares:
    """Sum of the products of two numbers in one place, of each block."""
    sums: Squares = np.einsum("rbk,rbk->rb", first, second, dtype=np.float64)  # no float64 copy of the whole
    return sums


def _squares(blocks: FloatArray) -> Squares:
    """Sum of squares of each block."""
    return _products(blocks, blocks)
