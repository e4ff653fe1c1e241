"""What a quantizer is calibrated on: a text, vectors for a stack of vectors, or text that the model writes itself."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import InputError, shown_path
from xlstm_edge_runtime.layout import weights_of
from xlstm_edge_runtime.progress import Progress

from .bundle import count_parameters, write_graph
from .checkpoints import Checkpoint
from .interface import GraphOptions, graph_states
from .quantize.calibrate import calibration_batch
from .quantize.plan import make_plan, planned_bytes
from .quantize.scheme import Scheme
from .quantize.self_text import STREAM, write_text
from .quantize.sources import round_to_nearest
from .quantize.store import Store
from .recipe import SELF, Recipe, is_vectors, read_calibration
from .spec import ModelSpec
from .text_assets import TextAssets, read_text_assets
from .trace import trace

LONGEST_ID = 20  # digits
TEXT = "calibration"  # in the store
# More tokens help a small model, and cost a large one more than they give: see the table in the README.
TOKENS, FEWEST_TOKENS, SMALL_MODEL = 24_576, 4_096, 50_000_000
TEXT_BLOCK = 128  # weights of a block while the text is written: shorter ones take more memory
LARGEST_STATES = 600_000_000  # bytes of all streams' states while a model writes its text
LARGEST_VECTORS = 1 << 30  # bytes of a .npy file


def calibration_tokens(spec: ModelSpec, recipe: Recipe) -> int:
    """How many tokens a calibration of this model takes."""
    if recipe.calibration_tokens is not None:
        return recipe.calibration_tokens
    share = SMALL_MODEL / max(count_parameters(spec), SMALL_MODEL)
    return max(FEWEST_TOKENS, int(TOKENS * share) // STREAM * STREAM)


def calibration_inputs(
    checkpoint: Checkpoint, recipe: Recipe, text: TextAssets, folder: Path, store: Store, progress: Progress
) -> NDArray[Any]:
    """Windows (S, T) of ids, or (S, T, D) of vectors; `folder` is for files on the way to them."""
    calibration, tokens = recipe.calibration, calibration_tokens(checkpoint.spec, recipe)
    assert calibration is not None  # asked for only where there is one
    if calibration == SELF:
        return calibration_batch(_self_written(checkpoint, recipe, text, folder, store, progress).reshape(-1), tokens)
    if checkpoint.spec.vocab_size is None:
        return calibration_batch(read_vectors(Path(calibration), checkpoint.spec.width), tokens)
    if is_vectors(calibration):
        raise InputError(
            "expected a text to calibrate a language model on, got vectors; pass --calibrate FILE.txt or self"
        )
    return calibration_batch(read_ids(checkpoint, Path(calibration), text), tokens)


def read_ids(checkpoint: Checkpoint, path: Path, side: TextAssets | None = None) -> NDArray[np.int64]:
    """Token ids of a text file, as the exported model would be given them; ids between spaces without a tokenizer."""
    if checkpoint.spec.vocab_size is None:
        raise InputError(
            f"expected vectors to calibrate a stack of vectors on, got {shown_path(path)}; pass a .npy file with float "
            "vectors (T, D), or --method rtn"
        )
    text = read_calibration(path)
    side = side or read_text_assets(checkpoint)
    vocab = checkpoint.spec.vocab_size
    if side.info.kind != "none":
        return np.array(side.encode(text, vocab), np.int64)
    words = text.split()
    if not all(word.isascii() and word.isdecimal() and len(word) < LONGEST_ID and int(word) < vocab for word in words):
        raise InputError(f"expected token ids in {path} (the checkpoint has no tokenizer), got text; write ids, spaced")
    return np.array([int(word) for word in words], np.int64)


def read_vectors(path: Path, width: int) -> NDArray[np.float32]:
    """Float vectors (T, D) of a .npy file, one after the other; (S, T, D) are taken as one sequence."""
    if not is_vectors(str(path)):
        raise InputError(
            f"expected vectors to calibrate a stack of vectors on, got {shown_path(path)}; pass a .npy file with float "
            "vectors (T, D), or --method rtn"
        )
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_VECTORS:
            raise ValueError("no file of that size")
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:  # what numpy raises for damaged headers
        raise InputError(
            f"expected float vectors in a .npy file at {shown_path(path)}, got none; save them with numpy.save"
        ) from error
    if (
        not isinstance(found, np.ndarray)
        or found.dtype.kind != "f"
        or found.ndim not in (2, 3)
        or found.shape[-1] != width
    ):
        raise InputError(
            f"expected float vectors (T, {width}) in {shown_path(path)}, got another shape or type; save them with numpy.save"
        )
    vectors = np.array(found, np.float32).reshape(-1, width)
    if not np.isfinite(vectors).all():
        raise InputError(f"expected finite vectors in {shown_path(path)}, got NaN or infinity; clean them")
    return vectors


def _self_written(
    checkpoint: Checkpoint, recipe: Recipe, text: TextAssets, folder: Path, store: Store, progress: Progress
) -> NDArray[np.int64]:
    """Ids (streams, T) that the model writes; those of an interrupted export, if there are any.

    It writes with plainly rounded weights: the text is as good to learn from as that of the float model, as measured.
    """
    if (found := store.load(TEXT)) is not None:
        return found["ids"].astype(np.int64)
    spec, options = checkpoint.spec, GraphOptions()
    if recipe.target == options.target:  # traced once, for the text and for the bundle
        options = GraphOptions(chunk=recipe.chunk_for(checkpoint.spec))
    tokens = calibration_tokens(spec, recipe)
    progress("preparing text", 0, 0)
    plan = _text_plan(checkpoint)
    graph = write_graph(trace(spec, options), checkpoint, folder, plan=plan, quantizer=round_to_nearest)
    streams, start = _streams(spec, tokens), text.special.bos
    if start is not None and start >= (spec.vocab_size or 0):  # of a tokenizer larger than the model
        start = None
    table = graph_states(spec, options)
    ids = write_text(graph, table, streams=streams, length=tokens // streams, start=start, progress=progress)
    store.save(TEXT, {"ids": ids})
    for path in (graph, graph.with_name(weights_of(graph.name))):  # as large as the model, and done with
        path.unlink()
    return ids


def text_memory(checkpoint: Checkpoint, tokens: int) -> int:
    """Bytes that a model takes while it writes its text: weights as the kernels want them, and the states of all streams."""
    shapes = {name: weight.shape for name, weight in checkpoint.weights.items()}
    states = _streams(checkpoint.spec, tokens) * checkpoint.spec.state_table().nbytes
    return planned_bytes(shapes, _text_plan(checkpoint)) + states


def _text_plan(checkpoint: Checkpoint) -> dict[str, Scheme]:
    """How a model's weights are rounded while it writes."""
    return make_plan(checkpoint.spec, checkpoint.weights, Recipe(quantize="int4", method="rtn", block_size=TEXT_BLOCK))


def _streams(spec: ModelSpec, tokens: int) -> int:
    """How many streams write the text side by side: fewer where their states are large."""
    return min(max(1, tokens // STREAM), max(1, LARGEST_STATES // spec.state_table().nbytes))
