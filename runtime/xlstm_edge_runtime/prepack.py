"""A second copy of a bundle's graph with the weights as this CPU's kernels want them, and the proof that it is equal."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .engine import Engine
from .errors import BundleError, InputError, shown_path
from .graph_file import check_graph_file
from .in_place import example_tokens, prove_in_place
from .layout import GRAPH, weights_of
from .opening import check_graph, open_graph, session_options
from .providers import CPU
from .session import Session

ODD = 5  # tokens beyond a chunk and steps after them that a tuned graph is compared on


def save_prepacked(source: Path, folder: Path, threads: int) -> None:
    """Let onnxruntime write the optimized graph with the weights as its kernels want them.

    BundleError for a graph that does not load, InputError where that is not why it cannot.
    """
    options, target = session_options(threads), folder / GRAPH
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights_of(GRAPH))
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        ort.InferenceSession(str(source), options, providers=[CPU.provider.ort_name], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        open_graph(source, session_options(threads), CPU)
        place = shown_path(folder.parent)
        raise InputError(
            f"expected room for a second copy of the weights in {place}, got a failed write; free some space"
        ) from error


def prove_prepacked(folder: Path, engine: Engine, *, threads: int, spin: int, chunk: int) -> bool | None:
    """What was just written, as it will be loaded: whether steps may be in place; None if it computes something else."""
    graph = folder / GRAPH
    try:
        check_graph_file(graph, {path.name for path in folder.iterdir()}, chunk)
        inference = open_graph(graph, session_options(threads, spin), CPU)
        check_graph(inference, engine.manifest)
        tuned = Engine(engine.folder, engine.manifest, inference, engine.prompts)
        tuned.chunk = chunk
        same = same_bits(sample(engine), sample(tuned))
        return bool(prove_in_place(tuned)) if same else None
    except BundleError:
        return None


def sample(engine: Engine) -> list[NDArray[np.float32]]:
    """Outputs of a chunk, an odd rest and single steps, and the state after them."""
    session, tokens = Session(engine), example_tokens(engine, engine.chunk + 2 * ODD)
    outputs = [np.array(session.prefill(tokens[:-ODD]))]
    outputs += [np.array(session.prefill(token[None])) for token in tokens[-ODD:]]
    return [*outputs, *session.state.values()]


def same_bits(first: list[NDArray[np.float32]], second: list[NDArray[np.float32]]) -> bool:
    """Whether two samples are equal bit for bit: the same kernels on the same numbers in the same order."""
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
