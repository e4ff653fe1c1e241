"""Tensors that are read when they are needed: the currency between checkpoint, tracer and bundle.

A `Weight` knows its shape now and its data on demand, always as float32. Loaders build canonical weights out of stored
ones with `concat`, `map` and friends; nothing is read before the bundle writer asks for one tensor at a time, so peak
memory is the largest tensor, however large the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import CheckpointError

FloatArray = NDArray[np.float32]
LISTED = 6


@dataclass(frozen=True, slots=True)
class Weight:
    """A float32 tensor of known shape, loaded by calling `load()`."""

    shape: tuple[int, ...]
    load: Callable[[], FloatArray]

    def map(self, function: Callable[[FloatArray], NDArray[np.generic]]) -> "Weight":
        """Apply a function that keeps the shape."""
        return Weight(self.shape, lambda: np.ascontiguousarray(function(self.load()), np.float32))

    def reshape(self, *shape: int) -> "Weight":
        """The same numbers in another shape."""
        return Weight(shape, lambda: self.load().reshape(shape))

    def transpose(self, *axes: int) -> "Weight":
        """Permute the axes (reverse them without arguments) and make the result contiguous."""
        order = axes or tuple(reversed(range(len(self.shape))))
        shape = tuple(self.shape[axis] for axis in order)
        return Weight(shape, lambda: np.ascontiguousarray(self.load().transpose(order)))

    def scale_rows(self, factors: "Weight") -> "Weight":
        """Multiply row r of a matrix by factors[r]."""
        return Weight(self.shape, lambda: self.load() * factors.load()[:, None])

    def __neg__(self) -> "Weight":
        return self.map(np.negative)

    def __add__(self, number: float) -> "Weight":
        return self.map(lambda array: array + np.float32(number))

    def __truediv__(self, number: float) -> "Weight":
        return self.map(lambda array: array / np.float32(number))


Weights = Mapping[str, Weight]


def concat(weights: Sequence[Weight], axis: int = 0) -> Weight:
    """Join along an existing axis."""
    first = weights[0].shape
    axis %= len(first)
    shape = (*first[:axis], sum(w.shape[axis] for w in weights), *first[axis + 1 :])
    return Weight(shape, lambda: np.concatenate([w.load() for w in weights], axis))


def stack(weights: Sequence[Weight], axis: int) -> Weight:
    """Join along a new axis."""
    first = weights[0].shape
    shape = (*first[:axis], len(weights), *first[axis:])
    return Weight(shape, lambda: np.stack([w.load() for w in weights], axis))


def ones(*shape: int) -> Weight:
    """A weight that the checkpoint leaves out because it is 1."""
    return Weight(shape, lambda: np.ones(shape, np.float32))


class Stored:
    """The tensors of a checkpoint by their own names, with an audit: expected names and shapes, all of them, no more."""

    def __init__(self, tensors: Weights) -> None:
        self._tensors = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Weight:
        return self._tensors[name]

    def equal(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same numbers."""
        return np.array_equal(self._tensors[first].load(), self._tensors[second].load())

    def drop(self, name: str) -> None:
        """Forget a tensor that only repeats another."""
        del self._tensors[name]

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._tensors)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of a tensor that dimensions are read from; CheckpointError if absent or of another rank."""
        if name not in self._tensors:
            raise CheckpointError(
                f"expected a tensor {name}, came a checkpoint without it; export the complete checkpoint"
            )
        shape = self._tensors[name].shape
        if len(shape) != rank or 0 in shape:
            raise CheckpointError(
                f"expected {name} with {rank} non-empty axes, came shape {shape}; check the checkpoint"
            )
        return shape

    def audit_names(self, expected: Iterable[str]) -> None:
        """Raise CheckpointError that lists missing and unknown names."""
        wanted = set(expected)
        if missing := sorted(wanted - self._tensors.keys()):
            raise CheckpointError(
                f"expected {len(wanted)} tensors for this config, came without {listed(missing)}; "
                "export the complete checkpoint or correct its config"
            )
        if unknown := sorted(self._tensors.keys() - wanted):
            raise CheckpointError(
                f"expected {len(wanted)} tensors for this config, came also {listed(unknown)}; "
                "remove them or correct the config"
            )

    def audit_shapes(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError that lists every tensor of a wrong shape."""
        wrong = [
            f"{name} {self._tensors[name].shape} instead of {shape}"
            for name, shape in expected.items()
            if self._tensors[name].shape != shape
        ]
        if wrong:
            raise CheckpointError(f"expected tensors that fit together, came {listed(wrong)}; check the checkpoint")


def listed(names: Sequence[str]) -> str:
    """The first few names and the number of the rest."""
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def to_float32(tensor: torch.Tensor) -> FloatArray:
    """Any float tensor, bfloat16 too, as a float32 array."""
    return np.ascontiguousarray(tensor.detach().to(torch.float32).numpy())
