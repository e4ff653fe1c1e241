"""Where a quantized graph's data come from: each matrix is quantized when the writer asks for it, and forgotten.

Data and scales of one matrix are asked for one after the other; the pair is made once and dropped with its second half.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..weights import Weight, Weights
from .orientation import EMBEDDING, as_matrix, matrix_shape
from .plan import Plan
from .rewrite import DATA, SCALES, TABLE
from .rounding import nearest_scales, round_to_blocks, suited_scales
from .scheme import Packed, Scheme

Quantizer = Callable[[str, Weight, Scheme], Packed]  # a matrix (N, K), read only where it is needed
Load = Callable[[], NDArray[np.generic]]


def round_searched(_name: str, matrix: Weight, scheme: Scheme) -> Packed:
    """Round to nearest on scales that were searched for the least squared error; 8 bits have nothing to gain from that."""
    return round_to_blocks(matrix.load(), scheme, suited_scales)


def round_to_nearest(_name: str, matrix: Weight, scheme: Scheme) -> Packed:
    """The plainest method, for comparison."""
    return round_to_blocks(matrix.load(), scheme, nearest_scales)


class Pair:
    """Data and scales of one matrix, made together, handed out once each."""

    def __init__(self, make: Callable[[], Packed]) -> None:
        self._make, self._packed = make, None  # type: Callable[[], Packed], Packed | None

    def data(self) -> NDArray[np.generic]:
        """The integers; kept for the scales that follow."""
        self._packed = self._make()
        return self._packed.data

    def scales(self) -> NDArray[np.generic]:
        """The scales."""
        packed, self._packed = self._packed or self._make(), None
        return packed.scales


def quantized_sources(
    weights: Weights, plan: Plan, quantizer: Quantizer, *, tied: bool
) -> tuple[dict[str, Load], dict[str, str]]:
    """(initializer name -> load, alias -> initializer) for every planned weight.

    A tied matrix is written once, as the head's data; the embedding's table is an alias of it.
    """
    sources: dict[str, Load] = {}
    aliases: dict[str, str] = {}
    for name, scheme in plan.items():
        pair = Pair(partial(quantizer, name, _matrix(name, weights[name]), scheme))
        table_only = name == EMBEDDING and not tied
        if table_only:
            sources[name + TABLE] = _flat(pair)
        else:
            sources[name + DATA] = pair.data
        sources[name + SCALES] = pair.scales
        if name == EMBEDDING and tied:
            aliases[name + TABLE] = name + DATA
    return sources, aliases


def _matrix(name: str, weight: Weight) -> Weight:
    """A canonical weight as (N, K)."""
    return Weight(matrix_shape(name, weight.shape), lambda: as_matrix(name, weight.load()))


def _flat(pair: Pair) -> Load:
    def load() -> NDArray[np.generic]:
        data = pair.data()
        return data.reshape(len(data), -1)

    return load
