"""The recurrent state as data: one table from which every other place follows.

A row says name, shape (without the batch axis), and initial value; the dtype is always float32, whatever the
weights are stored in, because exp(-m) leaves the range of float16. Graph inputs and outputs, the manifest, zero
states, snapshots and tests all read this table; nobody writes a state shape by hand.

Layouts (H heads, dk/dv key/value head width, DH sLSTM head width, K convolution taps):

    C     (H, dk, dv)     mLSTM matrix memory, row = key index; q is scaled by dk**-0.5, k is not
    n     (H, dk, 1)      mLSTM normalizer
    m     (1, H)          mLSTM stabilizer
    conv  (channels, K-1) last inputs of the causal convolution, oldest first
    y c n m  (H, 1, DH)   sLSTM output, cell, normalizer, stabilizer

This module knows nothing of graphs, sessions or files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from .errors import StateError

# An sLSTM stabilizer that starts here needs no first-step rule: exp(m - m') is exactly 0 in the first step.
SLSTM_INITIAL_M = -1e30
FloatArray = NDArray[np.float32]
State = dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One tensor of the recurrent state: float32, `shape` without the leading batch axis.

    A graph may hold the last axis split into `head_splits` parts, each as if it were a head of its own: (H, d, s*w) as
    (H*s, d, w). Users and snapshots see `shape`; graphs and their buffers `graph_shape`.
    """

    name: str
    shape: tuple[int, ...]
    initial: float = 0.0
    head_splits: int = 1

    @property
    def graph_shape(self) -> tuple[int, ...]:
        """The shape of the graph's input and output, without the batch axis."""
        if self.head_splits == 1:
            return self.shape
        heads, depth, width = self.shape
        return (heads * self.head_splits, depth, width // self.head_splits)

    def with_head_splits(self, number: int) -> "StateSpec":
        """The same tensor, each head split into so many."""
        return replace(self, head_splits=number)

    def split_heads(self, array: FloatArray) -> FloatArray:
        """A copy of (batch, *shape) as (batch, *graph_shape)."""
        if self.head_splits == 1:
            return array.copy()
        heads, depth, width = self.shape
        parts = array.reshape(-1, heads, depth, self.head_splits, width // self.head_splits)
        return parts.swapaxes(2, 3).reshape(-1, *self.graph_shape).copy()

    def merge_heads(self, array: FloatArray) -> FloatArray:
        """A copy of (batch, *graph_shape) as (batch, *shape)."""
        if self.head_splits == 1:
            return array.copy()
        heads, depth, width = self.shape
        parts = array.reshape(-1, heads, self.head_splits, depth, width // self.head_splits)
        return parts.swapaxes(2, 3).reshape(-1, *self.shape).copy()

    @property
    def input_name(self) -> str:
        """Name of the graph input that carries this tensor in."""
        return f"past.{self.name}"

    @property
    def output_name(self) -> str:
        """Name of the graph output that carries this tensor out."""
        return f"present.{self.name}"

    @property
    def nbytes(self) -> int:
        """Bytes of one sequence's tensor."""
        return 4 * prod(self.shape)


class StateTable(Sequence[StateSpec]):
    """The rows, in graph order."""

    def __init__(self, rows: Sequence[StateSpec]) -> None:
        names = [row.name for row in rows]
        if len(set(names)) != len(names):
            raise StateError(f"expected distinct state names, got {names}; the state table is damaged")
        self._rows = tuple(rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # overloads of Sequence, inherited for callers
        return self._rows[index]

    def __iter__(self) -> Iterator[StateSpec]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StateTable) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of one session's state: the same after one token and after a million."""
        return sum(row.nbytes for row in self._rows)

    def initial_shapes(self, batch: int = 1) -> dict[str, tuple[int, ...]]:
        """Shapes of `initial(batch)`, in graph order."""
        return {row.name: (batch, *row.graph_shape) for row in self._rows}

    def initial(self, batch: int = 1) -> State:
        """A fresh state as the graph takes it, each array (batch, *graph_shape) float32."""
        return {row.name: np.full((batch, *row.graph_shape), row.initial, np.float32) for row in self._rows}

    def split_heads(self, state: Mapping[str, FloatArray]) -> State:
        """A copy of a state, each array (batch, *shape), as the graph holds it, (batch, *graph_shape)."""
        return {row.name: row.split_heads(state[row.name]) for row in self._rows}

    def merge_heads(self, state: Mapping[str, FloatArray]) -> State:
        """A copy of a state that the graph holds, each array (batch, *shape) again."""
        return {row.name: row.merge_heads(state[row.name]) for row in self._rows}

    def wanted_initials(self) -> dict[str, float]:
        """What each tensor must start with: 0, but for the stabilizer m of an sLSTM, whose cell is one with an output y."""
        slstm = {row.name.removesuffix(".y") for row in self._rows if row.name.endswith(".y")}
        return {
            row.name: SLSTM_INITIAL_M if row.name.endswith(".m") and row.name[:-2] in slstm else 0.0
            for row in self._rows
        }

    def check(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise StateError unless `state` has these names and shapes (any one batch size), all float32."""
        if missing := sorted({row.name for row in self._rows} - state.keys()):
            raise StateError(
                f"expected {len(self)} state tensors, got none of {missing}; take a snapshot of this model"
            )
        if unknown := sorted(state.keys() - {row.name for row in self._rows}):
            raise StateError(f"expected the state of this model, got unknown tensors {unknown}; take another snapshot")
        for row in self._rows:
            array = state[row.name]
            if array.shape[1:] != row.shape or array.dtype != np.float32:
                raise StateError(
                    f"expected state {row.name} as float32 (batch, {', '.join(map(str, row.shape))}), "
                    f"got {array.dtype} {array.shape}; take a snapshot of this model"
                )
