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

    A graph may hold the last axis cut into `pieces`, each as if it were a head of its own: (H, d, p*w) as (H*p, d, w).
    `shape` is what the graph holds; users and snapshots see `whole_shape`.
    """

    name: str
    shape: tuple[int, ...]
    initial: float = 0.0
    pieces: int = 1

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape with the pieces side by side again."""
        if self.pieces == 1:
            return self.shape
        heads, depth, width = self.shape
        return (heads // self.pieces, depth, width * self.pieces)

    def in_pieces(self, pieces: int) -> "StateSpec":
        """The same tensor, held in so many pieces."""
        heads, depth, width = self.whole_shape
        return replace(self, shape=(heads * pieces, depth, width // pieces), pieces=pieces)

    def cut(self, whole: FloatArray) -> FloatArray:
        """A copy of (batch, *whole_shape) as (batch, *shape)."""
        if self.pieces == 1:
            return whole.copy()
        heads, depth, _ = self.whole_shape
        parts = whole.reshape(-1, heads, depth, self.pieces, self.shape[-1])
        return parts.swapaxes(2, 3).reshape(-1, *self.shape).copy()

    def join(self, array: FloatArray) -> FloatArray:
        """A copy of (batch, *shape) as (batch, *whole_shape)."""
        if self.pieces == 1:
            return array.copy()
        heads, depth, _ = self.whole_shape
        parts = array.reshape(-1, heads, self.pieces, depth, self.shape[-1])
        return parts.swapaxes(2, 3).reshape(-1, *self.whole_shape).copy()

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
            raise StateError(f"expected distinct state names, came {names}; the state table is damaged")
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
        return {row.name: (batch, *row.shape) for row in self._rows}

    def initial(self, batch: int = 1) -> State:
        """A fresh state, each array (batch, *shape) float32."""
        return {row.name: np.full((batch, *row.shape), row.initial, np.float32) for row in self._rows}

    def cut(self, whole: Mapping[str, FloatArray]) -> State:
        """A copy of a state of whole tensors as the graph holds it."""
        return {row.name: row.cut(whole[row.name]) for row in self._rows}

    def join(self, state: Mapping[str, FloatArray]) -> State:
        """A copy of a state that the graph holds, every tensor whole."""
        return {row.name: row.join(state[row.name]) for row in self._rows}

    def wanted_initials(self) -> dict[str, float]:
        """What each tensor must start with: 0, but for the stabilizer m of an sLSTM, whose cell is one with an output y."""
        slstm = {row.name.removesuffix(".y") for row in self._rows if row.name.endswith(".y")}
        return {
            row.name: SLSTM_INITIAL_M if row.name.endswith(".m") and row.name[:-2] in slstm else 0.0
            for row in self._rows
        }

    def check(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise StateError unless `state` has these names and whole shapes (any one batch size), all float32."""
        if missing := sorted({row.name for row in self._rows} - state.keys()):
            raise StateError(
                f"expected {len(self)} state tensors, came without {missing}; take a snapshot of this model"
            )
        if unknown := sorted(state.keys() - {row.name for row in self._rows}):
            raise StateError(f"expected the state of this model, came unknown tensors {unknown}; take another snapshot")
        for row in self._rows:
            array = state[row.name]
            if array.shape[1:] != row.whole_shape or array.dtype != np.float32:
                raise StateError(
                    f"expected state {row.name} as float32 (batch, {', '.join(map(str, row.whole_shape))}), "
                    f"came {array.dtype} {array.shape}; take a snapshot of this model"
                )
