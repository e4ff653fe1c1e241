"""Make test vectors: what the bundle must compute, so that a device can check itself without torch.

Made by the float64 reference, never by the graph under test; with them, how far float32 and rounded activations move
this model's outputs, so that a device knows what a healthy difference is.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xlstm_edge_runtime.vectors import Expected, Vectors, make_inputs, output_sums, positions_of

from .ops.rounded import Jittered, Rounded, between, by_group, by_row
from .reference import Groups, Progress, Way, no_progress, run_ways
from .spec import ModelSpec
from .weights import Weights

SEED = 20240507
EXACT = "float64"
# Samples of what float32 makes of this model on one machine or another.
FLOATS = {"float32": Way(torch.float32)} | {
    f"float32, jittered {i}": Way(torch.float32, partial(Jittered, i)) for i in (1, 2)
}
# Kernels of x86-64 and ARM64, and one that rounds every border the other way.
ROUNDED = {
    name: Way(torch.float32, partial(Rounded, rounding))
    for name, rounding in {"by group": by_group, "between": between, "by row": by_row}.items()
}
TOP, BOTTOM, SPREAD = 8, 4, 4
LARGEST_STATED = {"float": 1.0, "rounding": 2.0}


def make_vectors(
    spec: ModelSpec,
    weights: Weights,
    groups: Groups | None = None,
    *,
    chunk: int,
    seed: int = SEED,
    progress: Progress = no_progress,
) -> Vectors:
    """Inputs, and at some positions a few outputs and sums over all, with the differences to be allowed for.

    `groups` are the quantized weights' group sizes, as `run_ways` wants them; `chunk` is the graph's.
    """
    positions = positions_of(chunk)
    inputs = make_inputs(seed, positions[-1] + 1, vocab_size=spec.vocab_size, width=spec.width)
    ways = {EXACT: Way()} | FLOATS | (ROUNDED if groups else {})
    outputs = run_ways(spec, weights, inputs, ways, groups=groups, keep=positions, progress=progress)
    checks: list[Expected] = []
    for index, position in enumerate(positions):
        check = _expected(position, {name: run[index] for name, run in outputs.items()})
        checks.append(_at_least(check, checks[-1]) if checks else check)
    return Vectors(inputs, tuple(checks))


def vectors_json(vectors: Vectors, seed: int = SEED) -> str:
    """The text of vectors.json; every float with nine significant digits, which is exact for float32."""
    checks = [
        {
            "position": e.position,
            "ids": e.ids.tolist(),
            "values": [_short(value) for value in e.values],
            "sums": [_short(value) for value in e.sums],
            "range": _short(e.span),
            "float_error": _short(e.float_error),
            "rounding_error": None if e.rounding_error is None else _short(e.rounding_error),
        }
        for e in vectors.expected
    ]
    document: dict[str, Any] = {"seed": seed, "length": len(vectors.inputs), "checks": checks}
    return json.dumps(document) + "\n"


def _expected(position: int, outputs: Mapping[str, NDArray[np.float64]]) -> Expected:
    exact = outputs[EXACT]
    order = np.argsort(-exact, kind="stable")
    spread = np.arange(SPREAD) * len(exact) // SPREAD
    ids = np.unique(np.concatenate([order[:TOP], order[-BOTTOM:], spread]))
    span = float(np.ptp(exact)) or float(np.abs(exact).max()) or 1.0  # a single output has no range
    plain = Expected(position, ids, exact[ids], output_sums(exact), span, 0.0, None)
    rounded = [plain.rounding_difference(run) for name, run in outputs.items() if name in ROUNDED]
    return Expected(
        position,
        ids,
        plain.values,
        plain.sums,
        plain.span,
        min(max(plain.float_difference(outputs[name]) for name in FLOATS), LARGEST_STATED["float"]),
        min(max(rounded), LARGEST_STATED["rounding"]) if rounded else None,
    )


def _at_least(check: Expected, before: Expected) -> Expected:
    """What was off once may be off again later: the state remembers, and a few samples miss the worst."""
    rounding = None if check.rounding_error is None else max(check.rounding_error, before.rounding_error or 0.0)
    return replace(check, float_error=max(check.float_error, before.float_error), rounding_error=rounding)


def _short(value: float) -> float:
    return float(f"{value:.9g}")
