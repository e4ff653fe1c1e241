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
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from .errors import StateError

FloatArray = NDArray[np.float32]
State = dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One tensor of the recurrent state: float32, `shape` without the leading batch axis."""

    name: str
    shape: tuple[int, ...]
    initial: float = 0.0

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

    def check(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise StateError unless `state` has exactly these names, shapes (with any one batch size) and float32."""
        if missing := sorted({row.name for row in self._rows} - state.keys()):
            raise StateError(
                f"expected {len(self)} state tensors, came without {missing}; take a snapshot of this model"
            )
        if unknown := sorted(state.keys() - {row.name for row in self._rows}):
            raise StateError(f"expected the state of this model, came unknown tensors {unknown}; take another snapshot")
        for row in self._rows:
            array = state[row.name]
            if array.shape[1:] != row.shape or array.dtype != np.float32:
                raise StateError(
                    f"expected state {row.name} as float32 (batch, {', '.join(map(str, row.shape))}), "
                    f"came {array.dtype} {array.shape}; take a snapshot of this model"
                )
