"""Tensors that are read when they are needed: the currency between checkpoint, tracer and bundle.

A `Weight` knows its shape now and its data on demand, always as float32. Loaders build canonical weights out of stored
ones with `concat`, `map` and friends; nothing is read before the bundle writer asks for one tensor at a time, so peak
memory is the largest tensor, however large the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import CheckpointError, escaped

FloatArray = NDArray[np.float32]
LISTED = 6


@dataclass(frozen=True, slots=True)
class Weight:
    """A float32 tensor of known shape, loaded by calling `load()`.

    What `load` returns may be a view of a mapped file or of another weight: read it, never write into it. It is made anew at
    each call and kept by nobody, so the memory goes with the caller's last reference.
    """

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
        return Weight(shape, lambda: permuted(self.load(), order))

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


def permuted(array: FloatArray, order: Sequence[int]) -> FloatArray:
    """The axes in another order, contiguous; PyTorch copies on all cores, and as caches like it."""
    result: FloatArray = torch.from_numpy(array).permute(*order).contiguous().numpy()
    return result


def loaded(array: FloatArray) -> Weight:
    """A weight that is in memory already; `load` gives the array itself."""
    return Weight(array.shape, lambda: array)


class Stored:
    """A model's tensors by its form's own names, with an audit: expected names and shapes, all of them, no more.

    `odd` are tensors that are no plain floats, with what they are; `labels` the names in the files, for messages.
    """

    def __init__(
        self, tensors: Weights, odd: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None
    ) -> None:
        self._tensors, self._odd, self._labels = dict(tensors), dict(odd or {}), dict(labels or {})

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Weight:
        return self._tensors[name]

    def refuse_odd(self, name: str) -> None:
        """Raise CheckpointError if the tensor is there, but no plain floats."""
        if name in self._odd:
            self._refuse_missing([name])

    def equal(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same numbers."""
        one, other = self._tensors[first], self._tensors[second]
        return one.shape == other.shape and np.array_equal(one.load(), other.load())

    def drop(self, name: str) -> None:
        """Forget a tensor that only repeats another."""
        del self._tensors[name]

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._tensors)

    def label(self, name: str) -> str:
        """The name in the file, fit for a message."""
        return escaped(self._labels.get(name, name))

    def shape(self, name: str, rank: int | None = None) -> tuple[int, ...]:
        """Shape of a tensor that dimensions are read from; CheckpointError if absent, empty or of another rank."""
        if name not in self._tensors:
            self._refuse_missing([name])
        shape = self._tensors[name].shape
        if (rank is not None and len(shape) != rank) or 0 in shape:
            raise CheckpointError(
                f"expected {self.label(name)} with {rank or 'any'} non-empty axes, got shape {_short(shape)}; "
                "check the checkpoint"
            )
        return shape

    def audit_names(self, expected: Iterable[str]) -> None:
        """Raise CheckpointError that lists missing and unknown names."""
        wanted = set(expected)
        if missing := sorted(wanted - self._tensors.keys()):
            self._refuse_missing(missing)
        if unknown := sorted((self._tensors.keys() | self._odd.keys()) - wanted):
            raise CheckpointError(
                f"expected the {len(wanted)} tensors of this architecture and config, got others too: "
                f"{listed([self.label(name) for name in unknown])}; what they would compute is not known, so use the "
                "config of this training, or take the model's own state dict"
            )

    def audit_shapes(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError that lists every tensor of a wrong shape."""
        wrong = [
            f"{self.label(name)} {_short(self._tensors[name].shape)} instead of {shape}"
            for name, shape in expected.items()
            if self._tensors[name].shape != shape
        ]
        if wrong:
            raise CheckpointError(
                f"expected tensors that fit together, got {'; '.join(wrong[:3]).replace(';', ',')}; "
                "check the checkpoint"
            )

    def _refuse_missing(self, names: Sequence[str]) -> NoReturn:
        if odd := [f"{self.label(name)} as {self._odd[name]}" for name in names if name in self._odd]:
            raise CheckpointError(
                f"expected float tensors, got {', '.join(odd[:3])}, a quantized or damaged checkpoint; export the "
                "float checkpoint that it was made from"
            )
        raise CheckpointError(
            f"expected the tensors of this architecture and config, got none of "
            f"{listed([self.label(name) for name in names])}; export the complete checkpoint with its own config"
        )


def listed(names: Sequence[str]) -> str:
    """The first few names and the number of the rest."""
    rest = len(names) - LISTED
    return ", ".join(escaped(name) for name in names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _short(shape: tuple[int, ...]) -> str:
    return str(shape) if len(shape) <= 6 else f"{len(shape)} axes"


def to_float32(tensor: torch.Tensor) -> FloatArray:
    """Any float tensor, bfloat16 too, as a float32 array."""
    return np.ascontiguousarray(tensor.detach().to(torch.float32).numpy())
