"""Whether quantized weights are what their scheme makes of the checkpoint's, group by group.

A norm over a tensor hides a swapped scale or a moved block among thousands; a group of its own does not. Rounding to
nearest is repeated and must come to the same squared error in every group. What GPTQ comes to depends on its calibration
text; there each group must stay nearer to the checkpoint's than any other group's integers or a foreign scale would be.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import VerificationError

from ..weights import FloatArray
from .scheme import Scheme
from .sources import as_matrix, round_searched

SAME = 1e-3  # by how much sums of squares may differ in another order of summation, or at a tie of two scales
# Largest relative error of a group that GPTQ may leave, by bits; an unrelated group's is 1.4.
CALIBRATED = {2: 1.25, 4: 0.7, 8: 0.5}
Squares = NDArray[np.float64]


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
        if self._calibrated:
            allowed = CALIBRATED[scheme.bits] ** 2 * sizes
        else:
            best = scheme.dequantize(round_searched(name, matrix, scheme), matrix.shape[1])
            allowed = (1 + SAME) * _squares(scheme.grouped(best) - groups)
        allowed += 1e-12 * sizes.max()
        if (bad := np.argwhere(~(errors <= allowed))).size:
            row, group = (int(number) for number in bad[0])
            raise VerificationError(
                f"expected group {group} of row {row} of {name} as near to the checkpoint's as {scheme.bits} bits allow, "
                f"came {np.sqrt(errors[row, group] / max(sizes[row, group], 1e-30)):.0%} away; export the bundle again"
            )
        self._worst = max(self._worst, float(np.sqrt(errors.sum() / max(float(sizes.sum()), 1e-30))))

    def __str__(self) -> str:
        return f"every group as its bits allow, a tensor within {self._worst:.1%} (root mean square)"


def _squares(groups: NDArray[np.floating]) -> Squares:
    """Sum of squares of each group."""
    sums: Squares = np.square(groups, dtype=np.float64).sum(-1)
    return sums
