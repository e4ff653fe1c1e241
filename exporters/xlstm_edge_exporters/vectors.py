"""Make test vectors: what the bundle must compute, so that a device can check itself without torch.

Made by the float64 reference, never by the graph under test; with them, how far float32 and rounded activations move
this model's outputs, so that a device knows what a healthy difference is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.vectors import Expected, Vectors, make_inputs, output_sums, positions_of

from .ops.rounded import Jittered, Rounded, between, by_block, by_row
from .reference import Marks, Variant, run_variants
from .spec import ModelSpec
from .weights import Weights

SEED = 20240507
EXACT = "float64"
# Samples of what float32 makes of this model on one machine or another.
FLOATS = {"float32": Variant(torch.float32)} | {
    f"float32, jittered {i}": Variant(torch.float32, partial(Jittered, i)) for i in (1, 2)
}
# Kernels of x86-64 and ARM64, and one that rounds every border the other way.
ROUNDED = {
    "by block": Variant(torch.float32, partial(Rounded, by_block)),
    "between": Variant(torch.float32, partial(Rounded, between)),
    "by row": Variant(torch.float32, partial(Rounded, by_row)),
    "by row, short scales": Variant(torch.float32, partial(Rounded, by_row, short_scales=True)),
}
TOP, BOTTOM, SPREAD = 8, 4, 4
LARGEST_STATED = {"float": 1.0, "rounding": 2.0}


def make_vectors(
    spec: ModelSpec,
    weights: Weights,
    marks: Marks | None = None,
    *,
    rounded: Mapping[str, Variant] | None = None,
    chunk: int,
    seed: int = SEED,
    progress: Progress = no_progress,
) -> Vectors:
    """Inputs, and at some positions a few outputs and sums over all, with the differences to be allowed for.

    `marks` say of quantized weights what the variants `rounded` need to round like them: block sizes for the default ones,
    which round as CPUs do. `chunk` is the graph's.
    """
    positions = positions_of(chunk)
    inputs = make_inputs(seed, positions[-1] + 1, vocab_size=spec.vocab_size, width=spec.width)
    variants = {EXACT: Variant()} | FLOATS | dict((rounded or ROUNDED) if marks else {})
    outputs = run_variants(spec, weights, inputs, variants, marks=marks, keep=positions, progress=progress)
    single = []
    for index, position in enumerate(positions):
        single.append(_expected(position, {name: run[index] for name, run in outputs.items()}))
    checks = [_with_neighbours(single, index) for index in range(len(single))]
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
    rounded = [plain.rounding_difference(run) for name, run in outputs.items() if name not in FLOATS and name != EXACT]
    return Expected(
        position,
        ids,
        plain.values,
        plain.sums,
        plain.span,
        min(max(plain.float_difference(outputs[name]) for name in FLOATS), LARGEST_STATED["float"]),
        min(max(rounded), LARGEST_STATED["rounding"]) if rounded else None,
    )


def _with_neighbours(checks: Sequence[Expected], index: int) -> Expected:
    """What was off once may be off again later: the state remembers, and a few samples miss the worst.

    Rounding counts the next check as well: kernels were seen to move a first token as far as others move the third.
    """
    rounding = [c.rounding_error for c in checks[: index + 2] if c.rounding_error is not None]
    float_error = max(check.float_error for check in checks[: index + 1])
    return replace(checks[index], float_error=float_error, rounding_error=max(rounding) if rounding else None)


def _short(value: float) -> float:
    return float(f"{value:.9g}")
