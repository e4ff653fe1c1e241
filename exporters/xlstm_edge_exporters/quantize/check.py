"""Whether quantized weights are what their scheme makes of the checkpoint's, group by group.

A norm over a tensor hides a swapped scale or a moved block among thousands; a group of its own does not. Rounding to
nearest is repeated and must come to the same squared error in every group. What GPTQ comes to depends on its calibration
text; how far it may go, as a multiple of what rounding to nearest does, stands here. The export keeps to it (rows that a
poor calibration led further are rounded to nearest), and a bundle that says it was calibrated is held to no more.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import VerificationError

from ..weights import FloatArray
from .scheme import Packed, Scheme
from .sources import as_matrix, round_searched

SAME = 1e-3  # by how much sums of squares may differ in another order of summation, or at a tie of two scales
# GPTQ's error over that of rounding to nearest; of trained models were seen 1.9 for a tensor, 2.3 for a row, 4.7 for a group.
TENSOR_RATIO, ROW_RATIO, GROUP_RATIO = 2.5, 3.0, 6.0
# Largest relative error of a group, by bits; an unrelated group's is 1.4.
GROUP_ERROR = {2: 1.25, 4: 0.45, 8: 0.05}
# How far a tensor may be stretched (its product with the original's) from where rounding to nearest puts it.
GAIN = {2: 0.25, 4: 0.05, 8: 0.01}
LEAST_ERROR = 1 / 6  # of a step: an error that no group is too good for
Squares = NDArray[np.float64]
Flags = NDArray[np.bool_]


def too_far(original: FloatArray, came: FloatArray, nearest: FloatArray, scheme: Scheme) -> tuple[Flags, bool]:
    """(groups (N, groups) of a calibrated matrix that are further from the original's than may be, whether the whole is).

    All matrices are (N, K) float32; `nearest` is what rounding to nearest makes of the original.
    """
    groups, stored, rounded = (scheme.grouped(matrix) for matrix in (original, came, nearest))
    sizes, errors, least = _squares(groups), _squares(stored - groups), _squares(rounded - groups)
    step = np.abs(groups).max(-1).astype(np.float64) / scheme.half
    rounding = np.maximum(least, scheme.group * np.square(LEAST_ERROR * step))
    allowed = np.minimum(GROUP_RATIO**2 * rounding, GROUP_ERROR[scheme.bits] ** 2 * sizes)
    far: Flags = ~(errors <= np.maximum(allowed, (1 + SAME) * least))
    far |= ~(errors.sum(1, keepdims=True) <= ROW_RATIO**2 * rounding.sum(1, keepdims=True))
    gains = [float((np.asarray(g, np.float64) * groups).sum()) for g in (stored, rounded)]
    stretched = not abs(gains[0] - gains[1]) <= GAIN[scheme.bits] * float(sizes.sum())
    worse = not errors.sum() <= TENSOR_RATIO**2 * rounding.sum()
    return far, stretched or worse


def held(name: str, original: FloatArray, packed: Packed, scheme: Scheme) -> Packed:
    """GPTQ's integers of `original` (N, K); where its calibration led them too far, those of rounding to nearest."""
    nearest, columns = round_searched(name, original, scheme), original.shape[1]
    came, rounded = (scheme.dequantize(one, columns) for one in (packed, nearest))
    rows: Flags = np.asarray(too_far(original, came, rounded, scheme)[0].any(1))
    rows |= too_far(original, np.where(rows[:, None], rounded, came), rounded, scheme)[1]  # what is left as a whole
    return Packed(
        np.where(rows[:, None, None], nearest.data, packed.data), np.where(rows[:, None], nearest.scales, packed.scales)
    )


class Judge:
    """Takes tensor after tensor; `str` of it sums up."""

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self._calibrated = (recipe.get("method") or ("gptq" if recipe.get("calibrate") else "rtn")) == "gptq"
        self._worst = 0.0

    def take(self, name: str, original: FloatArray, came: FloatArray, scheme: Scheme) -> None:
        """VerificationError unless every group of `came` is what the scheme makes of the original's."""
        matrix, stored = as_matrix(name, original), as_matrix(name, came)
        groups = scheme.grouped(matrix)
        errors, sizes = _squares(scheme.grouped(stored) - groups), _squares(groups)
        nearest = scheme.dequantize(round_searched(name, matrix, scheme), matrix.shape[1])
        if self._calibrated:
            far, whole = too_far(matrix, stored, nearest, scheme)
        else:
            least = _squares(scheme.grouped(nearest) - groups)
            far, whole = ~(errors <= (1 + SAME) * least + 1e-12 * sizes.max()), False
        if far.any() or whole:
            shares = np.where(far | ~far.any(), errors / np.maximum(sizes, 1e-30), -1)
            row, group = (int(number) for number in np.unravel_index(shares.argmax(), shares.shape))
            raise VerificationError(
                f"expected group {group} of row {row} of {name} as near to the checkpoint's as {scheme.bits} bits allow, "
                f"came {np.sqrt(shares[row, group]):.0%} away; export the bundle again"
            )
        self._worst = max(self._worst, float(np.sqrt(errors.sum() / max(float(sizes.sum()), 1e-30))))

    def __str__(self) -> str:
        return f"every group as its bits allow, a tensor within {self._worst:.1%} (root mean square)"


def _squares(groups: NDArray[np.floating]) -> Squares:
    """Sum of squares of each group."""
    sums: Squares = np.square(groups, dtype=np.float64).sum(-1)
    return sums
