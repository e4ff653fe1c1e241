"""Hold a bundle against the checkpoint it came from: the float64 reference on one side, onnxruntime on the other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import VerificationError
from xlstm_edge_runtime.model import Model, load
from xlstm_edge_runtime.verify import Check

from .checkpoints import Checkpoint
from .checkpoints.files import sha256
from .reference import Progress, no_progress, run_reference
from .vectors import TOLERANCE, example_inputs

PAST_THE_CHUNK = 9  # tokens beyond one full chunk, so that the border is crossed
SEED = 7


def verify_against(
    folder: str | Path, checkpoint: Checkpoint, *, threads: int | None = None, progress: Progress = no_progress
) -> Iterator[Check]:
    """Yield each passed check; VerificationError in one sentence for the first that fails."""
    model = load(folder, threads=threads)
    if sha256(checkpoint.files) != model.manifest.source:
        raise VerificationError(
            f"expected the checkpoint that the bundle was exported from, came {checkpoint.folder} with another hash; "
            "export it again"
        )
    yield Check("source", f"checkpoint hash {model.manifest.source[:12]}... is the bundle's")
    inputs = example_inputs(checkpoint.spec, model.manifest.graph.chunk + PAST_THE_CHUNK, SEED)
    expected = run_reference(checkpoint.spec, checkpoint.weights, inputs, progress=progress).outputs
    stepped = np.stack(_steps(model, inputs))
    yield Check("reference, step by step", _judge(stepped, expected))
    chunked = model.session().prefill(inputs)
    yield Check("reference, in chunks", _judge(chunked[None], expected[-1:]))


def _steps(model: Model, inputs: NDArray[np.generic]) -> list[NDArray[np.float32]]:
    session = model.session()
    return [session.prefill(inputs[t : t + 1]).copy() for t in range(len(inputs))]


def _judge(came: NDArray[np.float32], expected: NDArray[np.float64]) -> str:
    spans = np.ptp(expected, axis=-1)
    worst = float((np.abs(came - expected).max(-1) / spans).max())
    if not worst <= TOLERANCE:
        raise VerificationError(
            f"expected outputs within {TOLERANCE:g} of their range, came {worst:.2e}; report this checkpoint's shapes"
        )
    same = int((came.argmax(-1) == expected.argmax(-1)).sum())
    return f"{len(came)} outputs, largest difference {worst:.1e} of the range, {same} of {len(came)} largest ids equal"
