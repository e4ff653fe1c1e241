"""The recurrent state as data: one table from which every other place follows.

A row says name, shape (without the batch axis), and initial value; the dtype is always float32, whatever the
weights are stored in, because exp(-m) leaves the range of float16. Graph inputs and outputs, the manifest, zero
states, snapshots and tests all read this table; nobody writes a state shape by hand.

A graph may hold a tensor otherwise than users and snapshots see it: heads split, a stabilizer less a constant a head, a
start value that float16 holds. `to_graph` and `from_graph` go between the two. A model with soft-capped gates may also keep
no stabilizer at all; `in_other_form` goes between that and the stabilized form.

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
SMALL_INITIAL_M = -1e4  # the same for float16, whose largest number is 65504; no gate comes near it
# Ends of the names under which a snapshot stores what belongs to a tensor: no tensor of a table may have one.
BESIDE = (".scale", ".offset")
FloatArray = NDArray[np.float32]
State = dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One tensor of the recurrent state: float32, `shape` without the leading batch axis.

    A graph may hold the last axis split into `head_splits` parts, each as if it were a head of its own: (H, d, s*w) as
    (H*s, d, w). Users and snapshots see `shape`; graphs and their buffers `graph_shape`. A graph may hold numbers less
    `offset`, one for each place of the last axis; () is none. `initial` is what the graph starts with.
    """

    name: str
    shape: tuple[int, ...]
    initial: float = 0.0
    head_splits: int = 1
    offset: tuple[float, ...] = ()

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

    def to_graph(self, array: FloatArray) -> FloatArray:
        """A copy of (batch, *shape) as the graph holds it, (batch, *graph_shape); not below a start value of float16."""
        if self.head_splits != 1:
            heads, depth, width = self.shape
            parts = array.reshape(-1, heads, depth, self.head_splits, width // self.head_splits)
            return parts.swapaxes(2, 3).reshape(-1, *self.graph_shape).copy()
        held = array - np.array(self.offset, np.float32) if self.offset else array.copy()
        return np.maximum(held, np.float32(self.initial)) if self.initial == SMALL_INITIAL_M else held

    def from_graph(self, array: FloatArray) -> FloatArray:
        """A copy of (batch, *graph_shape) as users see it, (batch, *shape)."""
        if self.head_splits != 1:
            heads, depth, width = self.shape
            parts = array.reshape(-1, heads, self.head_splits, depth, width // self.head_splits)
            return parts.swapaxes(2, 3).reshape(-1, *self.shape).copy()
        return array + np.array(self.offset, np.float32) if self.offset else array.copy()

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
    """The rows, in graph order; StateError for a name twice, and for rows of one memory that do not agree.

    A matrix memory `X.C` (H, dk, dv) has its normalizer `X.n` (H, dk, 1), and a stabilizer `X.m`, if there is one, (1, H): what
    goes between its two forms, and into half the bytes, takes them head by head.
    """

    def __init__(self, rows: Sequence[StateSpec]) -> None:
        self._rows = tuple(rows)
        shapes = {row.name: row.shape for row in rows}
        if len(shapes) != len(self._rows) or any(name.endswith(BESIDE) for name in shapes):
            raise StateError(
                f"expected distinct state names without the end {' or '.join(BESIDE)}, got others; the state table is damaged"
            )
        for name in shapes:
            if name.endswith(".C") and not _is_memory(shapes, name.removesuffix(".C")):
                raise StateError(
                    f"expected {name} of 3 axes with .n and .m of its heads, got others; the state table is damaged"
                )

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

    def to_graph(self, state: Mapping[str, FloatArray]) -> State:
        """A copy of a state, each array (batch, *shape), as the graph holds it, (batch, *graph_shape)."""
        return {row.name: row.to_graph(state[row.name]) for row in self._rows}

    def from_graph(self, state: Mapping[str, FloatArray]) -> State:
        """A copy of a state that the graph holds, each array (batch, *shape) again."""
        return {row.name: row.from_graph(state[row.name]) for row in self._rows}

    def other_form(self) -> "StateTable":
        """The table of the same model with matrix memories stabilized where they are not here, and not where they are.

        Names and shapes only. Only models with soft-capped gates have both forms.
        """
        names = {row.name for row in self._rows}
        rows = list[StateSpec]()
        for row in self._rows:
            block, _, tensor = row.name.rpartition(".")
            if tensor != "m" or f"{block}.C" not in names:
                rows.append(StateSpec(row.name, row.shape, row.initial))
            if tensor == "n" and f"{block}.C" in names and f"{block}.m" not in names:
                rows.append(StateSpec(f"{block}.m", (1, row.shape[0])))
        return StateTable(rows)

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


def _is_memory(shapes: Mapping[str, tuple[int, ...]], block: str) -> bool:
    """Whether C, n and m of a block have the shapes of one matrix memory; m may be missing."""
    matrix, normalizer, stabilizer = (shapes.get(f"{block}.{letter}") for letter in "Cnm")
    if matrix is None or len(matrix) != 3:
        return False
    return normalizer == (*matrix[:2], 1) and stabilizer in (None, (1, matrix[0]))


def in_other_form(state: Mapping[str, FloatArray], wanted: StateTable) -> State:
    """A copy of a state of `wanted.other_form()`, each array (batch, *shape), in the form of `wanted`.

    The memory is C exp(m), n exp(m) for the stabilized (C, n, m). Without stabilizers m is 0; with them it is chosen so that
    no number of n exceeds 1. The epsilon of the normalizer, which soft-capped models do without, is all that differs.
    """
    made = {name: array.copy() for name, array in state.items()}
    for row in wanted.other_form():
        block, _, tensor = row.name.rpartition(".")
        if tensor != "n" or f"{block}.C" not in made:
            continue
        n, gone = made[row.name], made.pop(f"{block}.m", None)
        exponent = np.log(np.abs(n).max((2, 3)).clip(1.0)) * -1 if gone is None else gone[:, 0]
        factor = np.exp(exponent)[..., None, None]
        made[f"{block}.C"], made[row.name] = made[f"{block}.C"] * factor, n * factor
        if gone is None:
            made[f"{block}.m"] = -exponent[:, None]
    return {row.name: np.ascontiguousarray(made[row.name], np.float32) for row in wanted}
