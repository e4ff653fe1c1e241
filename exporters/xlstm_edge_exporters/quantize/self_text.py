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
from xlstm_edge_runtime.opening import CPU, open_graph, session_options
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import FloatArray, State, StateTable

SEED = 20260410
STREAM = 256  # tokens a stream, as many as a window of the calibration: more streams at once take fewer steps
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
    rng, vocab = np.random.Generator(np.random.Philox(SEED)), session.get_outputs()[0].shape[-1]
    ids = np.full((streams, length), start or 0, np.int64)
    if start is None:
        ids[:, 0] = rng.integers(0, vocab, streams)
    token, logits = np.zeros((streams, 1), np.int64), np.zeros((streams, vocab), np.float32)
    past, present = table.initial(streams), table.initial(streams)
    turns = [_bound(session, table, token, logits, *pair) for pair in ((past, present), (present, past))]
    progress("writing text", 0, length)
    for position in range(1, length):
        token[:, 0] = ids[:, position - 1]
        session.run_with_iobinding(turns[(position - 1) % 2])
        ids[:, position] = _sample(logits, rng)
        progress("writing text", position + 1, length)
    return ids


def _bound(session: Any, table: StateTable, token: Ids, logits: FloatArray, past: State, present: State) -> Any:
    """A step from `past` to `present`: buffers that take turns, because new ones for each token would cost more than it.

    The caller keeps them alive.
    """
    binding, (first, *_), (output, *_) = session.io_binding(), session.get_inputs(), session.get_outputs()
    read = {first.name: token} | {row.input_name: past[row.name] for row in table}
    written = {output.name: logits} | {row.output_name: present[row.name] for row in table}
    for bind, arrays in ((binding.bind_input, read), (binding.bind_output, written)):
        for name, array in arrays.items():
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    return binding


def _sample(logits: NDArray[np.float32], rng: np.random.Generator) -> Ids:
    """One token of each row (streams, V), by the Gumbel-max trick."""
    if not np.isfinite(logits).all():
        raise BundleError(
            "expected finite logits of a model that writes its calibration text, got others; pass --calibrate FILE"
        )
    waits = np.maximum(rng.standard_exponential(logits.shape, np.float32), np.finfo(np.float32).tiny)
    drawn: Ids = (logits - np.log(waits)).argmax(-1)
    return drawn
