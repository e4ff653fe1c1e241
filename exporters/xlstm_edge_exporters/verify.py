"""Hold a bundle against the checkpoint it came from: the float64 reference on one side, onnxruntime on the other."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import VerificationError
from xlstm_edge_runtime.model import Model, load
from xlstm_edge_runtime.verify import Check

from .checkpoints import Checkpoint
from .checkpoints.files import sha256
from .quantize.read import read_weights
from .reference import Progress, no_progress, run_reference
from .vectors import example_inputs, tolerance_of
from .weights import Weights

LARGEST_ERROR = 0.9  # relative; 2 bits come near it, another tensor is beyond
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
    stored = read_weights(Path(folder) / model.manifest.graph.file)
    yield Check("weights", _same_weights(checkpoint.weights, stored, model.manifest.quantization.get("tensors", {})))
    inputs = example_inputs(checkpoint.spec, model.manifest.graph.chunk + PAST_THE_CHUNK, SEED)
    groups = {name: entry["group"] for name, entry in model.manifest.quantization.get("tensors", {}).items()}
    expected = run_reference(checkpoint.spec, stored, inputs, groups=groups, progress=progress).outputs
    allowed = tolerance_of(groups)
    stepped = np.stack(_steps(model, inputs))
    yield Check("reference, step by step", _judge(stepped, expected, allowed))
    chunked = model.session().prefill(inputs)
    yield Check("reference, in chunks", _judge(chunked[None], expected[-1:], allowed))


def _same_weights(wanted: Weights, stored: Weights, quantized: Collection[str]) -> str:
    """float32 tensors are equal to the checkpoint's, quantized ones near them; says how near."""
    worst = 0.0
    for name, weight in wanted.items():
        original = weight.load()
        came = stored[name].load() if name in stored else None
        if (
            came is None
            or came.shape != original.shape
            or (name not in quantized and not np.array_equal(came, original))
        ):
            raise VerificationError(
                f"expected {name} as in the checkpoint, came another tensor; export the bundle again"
            )
        if name in quantized:
            worst = max(worst, float(np.linalg.norm(came - original) / max(float(np.linalg.norm(original)), 1e-30)))
            if not worst <= LARGEST_ERROR:
                raise VerificationError(f"expected {name} near the checkpoint's, came {worst:.0%} away; export again")
    kept = len(wanted) - len(quantized)
    text = f"{kept} float32 tensors equal"
    return text if not quantized else f"{text}, {len(quantized)} quantized within {worst:.1%} (root mean square)"


def _steps(model: Model, inputs: NDArray[np.generic]) -> list[NDArray[np.float32]]:
    session = model.session()
    return [session.prefill(inputs[t : t + 1]).copy() for t in range(len(inputs))]


def _judge(came: NDArray[np.float32], expected: NDArray[np.float64], allowed: float) -> str:
    spans = np.ptp(expected, axis=-1)
    worst = float((np.abs(came - expected).max(-1) / spans).max())
    if not worst <= allowed:
        raise VerificationError(
            f"expected outputs within {allowed:g} of their range, came {worst:.2e}; report this checkpoint's shapes"
        )
    same = int((came.argmax(-1) == expected.argmax(-1)).sum())
    return f"{len(came)} outputs, largest difference {worst:.1e} of the range, {same} of {len(came)} largest ids equal"
