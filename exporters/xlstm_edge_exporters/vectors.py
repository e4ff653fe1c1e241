"""Test vectors: what the bundle must compute, so that a device can check itself without torch.

Made by the float64 reference, never by the graph under test.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reference import Groups, Progress, no_progress, run_reference
from .spec import ModelSpec
from .weights import Weights

LENGTH = 24
TOP = 16
POSITIONS = (0, 1, 11, LENGTH - 1)
# Shares of the output's range. float32 against float64 stays an order of magnitude below. Quantized kernels round
# activations to int8; where float32 and float64 fall on two sides of a rounding border, a whole step remains.
TOLERANCE = {"float32": 1e-4, "quantized": 2e-2}
SEED = 20240507


def tolerance_of(groups: Groups | None) -> float:
    """The bound for a bundle with these quantized weights."""
    return TOLERANCE["quantized" if groups else "float32"]


def example_inputs(spec: ModelSpec, length: int, seed: int = SEED) -> NDArray[Any]:
    """Random token ids (T,), or standard normal vectors (T, D) float32; the same for the same seed."""
    rng = np.random.default_rng(seed)
    if spec.vocab_size is None:
        return rng.standard_normal((length, spec.width)).astype(np.float32)
    return rng.integers(0, spec.vocab_size, length)


def make_vectors(
    spec: ModelSpec, weights: Weights, groups: Groups | None = None, *, progress: Progress = no_progress
) -> dict[str, Any]:
    """Inputs, and at some positions the largest outputs (all of them for a stack) with the output's range.

    `groups` are the quantized weights' group sizes, as `run_reference` wants them.
    """
    inputs = example_inputs(spec, LENGTH)
    outputs = run_reference(spec, weights, inputs, groups=groups, progress=progress).outputs
    top = TOP if spec.vocab_size is not None else spec.width
    return {
        "inputs": inputs.tolist(),
        "tolerance": tolerance_of(groups),
        "checks": [_check(position, outputs[position], top) for position in POSITIONS],
    }


def write_vectors(path: Path, vectors: dict[str, Any]) -> None:
    """As JSON; every float with nine significant digits, which is exact for float32."""
    path.write_text(json.dumps(vectors) + "\n", encoding="utf-8")


def _check(position: int, output: NDArray[np.float64], top: int) -> dict[str, Any]:
    order = np.argsort(-output, kind="stable")[:top]
    return {
        "position": position,
        "ids": order.tolist(),
        "values": [float(f"{value:.9g}") for value in output[order]],
        "range": float(f"{np.ptp(output):.9g}"),
    }
