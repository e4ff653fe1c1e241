"""Let a model write the text that it is calibrated on.

What a language model samples at temperature 1 is text as the model expects it, and it is always at hand. For
transformers that is known to calibrate as well as real text (Williams et al., arXiv:2410.17170). Many streams go side by
side through the graph that onnxruntime runs, each from the zero state; the seed is fixed, so an export can be repeated.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import BundleError
from xlstm_edge_runtime.opening import CPU, open_graph, session_options
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import StateTable

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
    rng = np.random.Generator(np.random.Philox(SEED))
    name, names = session.get_inputs()[0].name, [node.name for node in session.get_outputs()]
    ids = np.full((streams, length), start or 0, np.int64)
    if start is None:
        ids[:, 0] = rng.integers(0, session.get_outputs()[0].shape[-1], streams)
    binding = session.io_binding()
    for row, zero in zip(table, table.initial(streams).values(), strict=True):
        binding.bind_cpu_input(row.input_name, row.split_heads(zero))
    progress("writing text", 0, length)
    for position in range(1, length):
        binding.bind_cpu_input(name, ids[:, position - 1 : position].copy())
        for output in names:  # anew for each token: the old outputs are the inputs now
            binding.bind_output(output)
        session.run_with_iobinding(binding)
        logits, *new = binding.get_outputs()
        ids[:, position] = _sample(logits.numpy(), rng)
        for row, value in zip(table, new, strict=True):
            binding.bind_ortvalue_input(row.input_name, value)
        progress("writing text", position + 1, length)
    return ids


def _sample(logits: NDArray[np.float32], rng: np.random.Generator) -> Ids:
    """One token of each row (streams, V), by the Gumbel-max trick."""
    if not np.isfinite(logits).all():
        raise BundleError(
            "expected finite logits of a model that writes its calibration text, got others; pass --calibrate FILE"
        )
    drawn: Ids = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    return drawn
