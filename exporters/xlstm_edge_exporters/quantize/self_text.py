"""Let a model write the text that it is calibrated on.

What a language model samples at temperature 1 is text as the model expects it, and it is always at hand. For
transformers that is known to calibrate as well as real text (Williams et al., arXiv:2410.17170). Many streams go side by
side through the graph that onnxruntime runs, each from the zero state; the seed is fixed, so an export can be repeated.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import BundleError
from xlstm_edge_runtime.in_place import filled, in_place_candidates
from xlstm_edge_runtime.opening import CPU, open_graph, session_options
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import FloatArray, State, StateTable

SEED = 20260410
STREAM = 256  # tokens a stream, as many as a window of the calibration: more streams at once take fewer steps
TRIAL_STREAMS, TRIAL_STEPS = 2, 4
Ids = NDArray[np.int64]


def write_text(
    graph: Path,
    table: StateTable,
    *,
    streams: int,
    length: int = STREAM,
    start: int | None,
    progress: Progress = no_progress,
) -> Ids:
    """Token ids (streams, length), sampled at temperature 1 from the graph in the file `graph`, whose states are `table`.

    Each stream begins with `start`, or with a token of its own drawn evenly where the model has no start token.
    BundleError for logits that are not finite.
    """
    session = open_graph(graph, session_options(None), CPU)
    in_place = written_in_place(session, table)
    writer = _Writer(session, table, table.initial(streams), in_place)
    rng = np.random.Generator(np.random.Philox(SEED))
    ids = np.full((streams, length), start or 0, np.int64)
    if start is None:
        ids[:, 0] = rng.integers(0, writer.logits.shape[1], streams)
    progress("writing text", 0, length)
    for position in range(1, length):
        writer.step(ids[:, position - 1])
        ids[:, position] = _sample(writer.logits, rng)
        progress("writing text", position + 1, length)
    return ids


class _Writer:
    """Streams side by side, from the states `past`; a step leaves `logits` (streams, V) of the next tokens, and `state`.

    States named by `in_place` are written over; the others have two buffers that take turns. New ones for each token would
    cost more than it does.
    """

    def __init__(self, session: Any, table: StateTable, past: State, in_place: frozenset[str]) -> None:
        streams, vocab = len(next(iter(past.values()))), session.get_outputs()[0].shape[-1]
        self._session, self._token = session, np.zeros((streams, 1), np.int64)
        self.logits = np.zeros((streams, vocab), np.float32)
        present = {name: array if name in in_place else np.empty_like(array) for name, array in past.items()}
        self.state = past
        self._turns = [(self._bound(table, *pair), pair[1]) for pair in ((past, present), (present, past))]

    def step(self, token: Ids) -> None:
        """Read a token (streams,) of each."""
        self._token[:, 0] = token
        binding, self.state = self._turns[0]
        self._session.run_with_iobinding(binding)
        self._turns.reverse()

    def _bound(self, table: StateTable, past: State, present: State) -> Any:
        """A step from `past` to `present`."""
        session = self._session
        binding, (first, *_), (output, *_) = session.io_binding(), session.get_inputs(), session.get_outputs()
        read = {first.name: self._token} | {row.input_name: past[row.name] for row in table}
        written = {output.name: self.logits} | {row.output_name: present[row.name] for row in table}
        for bind, arrays in ((binding.bind_input, read), (binding.bind_output, written)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding


def written_in_place(session: Any, table: StateTable) -> frozenset[str]:
    """State tensors that a step may write over: those of which a trial of two streams shows that it changes nothing."""
    candidates = in_place_candidates(table)
    plain, over = (_trial(session, table, names) for names in (frozenset[str](), candidates))
    return candidates if all(map(np.array_equal, plain, over)) else frozenset()


def _trial(session: Any, table: StateTable, in_place: frozenset[str]) -> list[FloatArray]:
    """Logits and states after a few tokens of two streams, from states without zeros."""
    past = {row.name: filled((TRIAL_STREAMS, *row.graph_shape)) for row in table}
    writer, results = _Writer(session, table, past, in_place), []
    for token in range(TRIAL_STEPS):
        writer.step(np.array([token, token + 1]) % writer.logits.shape[1])
        results.append(writer.logits.copy())
    return [*results, *writer.state.values()]


def _sample(logits: NDArray[np.float32], rng: np.random.Generator) -> Ids:
    """One token of each row (streams, V), by the Gumbel-max trick."""
    if not np.isfinite(logits).all():
        raise BundleError(
            "expected finite logits of a model that writes its calibration text, got others; pass --calibrate FILE"
        )
    waits = np.maximum(rng.standard_exponential(logits.shape, np.float32), np.finfo(np.float32).tiny)
    drawn: Ids = (logits - np.log(waits)).argmax(-1)
    return drawn
