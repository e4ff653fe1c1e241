"""Round a matrix to the nearest integers, on plain or on searched scales: some rows at a time, on all cores.

Pieces of rows stay in a core's cache, so the memory beside the matrix is small, whatever its size. The result does not
depend on the number of cores.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..weights import FloatArray
from .pieces import by_rows
from .scheme import Integers, Packed, Scheme

# A smaller scale than the largest value asks for trades that value for the others. First which of these is best, and for
# which end of the range; then its neighbours; then the scale that suits the integers found.
SEARCHED_BITS = 4
COARSE, FINE = (0.75, 0.85, 0.95), (0.96, 1.04)
ScalesOf = Callable[[FloatArray, Scheme], FloatArray]


def round_to_blocks(matrix: FloatArray, scheme: Scheme, scales_of: ScalesOf) -> Packed:
    """Integers nearest to `matrix` (N, K) on the scales that `scales_of` gives for blocks (rows, blocks, block_size)."""
    rows, columns = matrix.shape
    blocks = scheme.blocks_per_row(columns)
    data = np.empty((rows, blocks, scheme.block_size * scheme.bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)

    def round_rows(part: slice) -> None:
        piece = scheme.to_blocks(matrix[part])
        scales[part] = scales_of(piece, scheme)
        data[part] = scheme.pack(nearest_integers(piece, scales[part], scheme), scales[part]).data

    by_rows(rows, blocks * scheme.block_size, round_rows)
    return Packed(data, scales)


def search_scales(matrix: FloatArray, scheme: Scheme, importance: FloatArray) -> FloatArray:
    """`suited_scales` (N, blocks) of a matrix (N, K), its columns weighted by `importance` (K,)."""
    rows, columns = matrix.shape
    scales = np.empty((rows, scheme.blocks_per_row(columns)), np.float32)
    weight = scheme.to_blocks(importance[None])

    def search_rows(part: slice) -> None:
        blocks = scheme.to_blocks(matrix[part])
        scales[part] = suited_scales(blocks, scheme, weight)

    by_rows(rows, columns, search_rows)
    return scales


def nearest_integers(blocks: FloatArray, scales: FloatArray, scheme: Scheme) -> Integers:
    """Integers of blocks (..., block_size) on scales (...), as they are stored: the zero point added."""
    values = blocks / scales[..., None]
    np.rint(values, out=values)
    np.clip(values, -scheme.zero_point, scheme.zero_point - 1, out=values)
    values += scheme.zero_point
    return values.astype(np.uint8)


def nearest_scales(blocks: FloatArray, scheme: Scheme) -> FloatArray:
    """Scales that map each block's value of largest magnitude onto the end of the range that reaches further."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    scales = largest / np.float32(-scheme.zero_point)
    return np.where(scales == 0, np.float32(1), scales)


def suited_scales(blocks: FloatArray, scheme: Scheme, weight: FloatArray | None = None) -> FloatArray:
    """Searched scales; the plain ones for 8 bits, which have nothing to gain from a search."""
    return nearest_scales(blocks, scheme) if scheme.bits > SEARCHED_BITS else best_scales(blocks, scheme, weight)


def best_scales(blocks: FloatArray, scheme: Scheme, weight: FloatArray | None = None) -> FloatArray:
    """Scales of least squared error, weighted by `weight` (broadcast over the blocks), as far as a short search finds them."""
    base = nearest_scales(blocks, scheme)
    search = _Search(blocks, scheme, weight)
    factor = np.ones_like(base)
    for candidate in [np.float32(sign * shrink) for sign in (1, -1) for shrink in COARSE]:
        factor[search.improve(base * candidate)] = candidate
    for near in FINE:
        search.improve(base * factor * np.float32(near))
    search.improve(search.best)
    return search.best


class _Search:
    """The best scales so far. For integers q of values b the best scale is q.b / q.q, and takes (q.b)^2 / q.q off the error."""

    def __init__(self, blocks: FloatArray, scheme: Scheme, weight: FloatArray | None) -> None:
        self._blocks, self._zero_point, self._weight = blocks, scheme.zero_point, weight
        self._weighted = blocks if weight is None else blocks * weight
        self._integers, self._spare = np.empty_like(blocks), np.empty_like(blocks)
        self._gain = np.full(blocks.shape[:-1], -1, np.float32)
        self.best = np.ones(blocks.shape[:-1], np.float32)

    def improve(self, scales: FloatArray) -> NDArray[np.bool_]:
        """Round on these scales and keep the scale that suits the integers where that is better; where it was."""
        integers = np.multiply(self._blocks, (1 / scales)[..., None], out=self._integers)
        np.rint(integers, out=integers)
        np.clip(integers, -self._zero_point, self._zero_point - 1, out=integers)
        dot = _dot(integers, self._weighted)
        weighted = integers if self._weight is None else np.multiply(integers, self._weight, out=self._spare)
        squares = _dot(integers, weighted)
        rounded = squares > 0  # else all of the block is nearest to zero
        suited = np.divide(dot, squares, out=scales.copy(), where=rounded)
        gain = np.where(rounded, dot * suited, np.float32(0))
        better: NDArray[np.bool_] = (gain > self._gain) & (suited != 0)
        self.best[better], self._gain[better] = suited[better], gain[better]
        return better


def _dot(first: FloatArray, second: FloatArray) -> FloatArray:
    product: FloatArray = np.einsum("rbk,rbk->rb", first, second)
    return product
