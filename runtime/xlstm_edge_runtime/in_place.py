"""Which state tensors a step may write in place, over the state that it reads: proven on what runs, or none.

In place saves a copy of the state's traffic through memory a token. Whether it is right depends on operator, kernel,
threads and execution provider, so it is tried on the very session that will run, and only single tokens do it: a chunk
has work enough to hide a copy, and every length would be a kernel path of its own to prove.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Engine
from .session import Session
from .state import StateTable

STEPS = 4


def prove_in_place(engine: Engine) -> frozenset[str]:
    """State tensors that may be written in place: all of those that could be, if a trial changes nothing, else none.

    The trial starts where every tensor of the state counts, runs a few tokens both ways, and compares every output and
    state bit by bit.
    """
    candidates, before = in_place_candidates(engine.manifest.state), engine.in_place
    try:
        engine.in_place = frozenset()
        plain = _trial(engine)
        engine.in_place = candidates
        in_place = _trial(engine)
    finally:
        engine.in_place = before
    same = all(np.array_equal(a, b) and np.isfinite(a).all() for a, b in zip(plain, in_place, strict=True))
    return candidates if same else frozenset()


def in_place_candidates(table: StateTable) -> frozenset[str]:
    """Every state tensor but those of sLSTM cells, which read their last output after the new one could be there."""
    names = {row.name for row in table}
    return frozenset(name for name in names if f"{name.rpartition('.')[0]}.y" not in names)


def _trial(engine: Engine) -> list[NDArray[np.float32]]:
    """Outputs and the last state of a few tokens that follow a state without zeros."""
    session = Session(engine)
    session._set_state({row.name: filled((1, *row.graph_shape)) for row in engine.manifest.state}, 0)
    outputs = [np.array(session.prefill(token[None])) for token in example_tokens(engine, STEPS)]
    return [*outputs, *session.state.values()]


def filled(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Positive numbers up to a half, all different near each other: no normalizer is 0 and no exponential large."""
    numbers = np.cos(np.arange(int(np.prod(shape)), dtype=np.float32))
    filled: NDArray[np.float32] = (0.26 + 0.24 * numbers).astype(np.float32).reshape(shape)
    return filled


def example_tokens(engine: Engine, count: int) -> NDArray[Any]:
    """Ids (T,) or vectors (T, D) to measure and to try with."""
    if engine.takes_ids:
        return np.arange(count) * 11 % engine.output_width
    return np.cos(np.arange(count * engine.output_width, dtype=np.float32)).reshape(count, -1)
