"""Mixed precision: measure what 4 bits cost each matrix, then give 8 bits where a byte buys most.

The cost of a matrix is the mean KL divergence of the model's output when that matrix alone is rounded to the lower
precision; 8 bits cost a 256th of it, that is nothing. Upgrades are bought in order of cost per byte.
"""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.progress import Progress, no_progress

from ..checkpoints import Checkpoint
from ..model import Model
from ..ops.parallel import Parallel
from ..reference import build, initial_state
from ..weights import loaded
from .orientation import as_canonical, as_matrix, matrix_shape
from .plan import planned_bytes
from .scheme import Scheme
from .sources import round_searched

HIGH = 8
PROBE = 4  # sequences of the calibration batch that the costs are measured on
DEFAULT_SHARE = 0.3  # of the way from all low to all high, where no target is given


def spend_budget(
    checkpoint: Checkpoint,
    plan: Mapping[str, Scheme],
    ids: NDArray[np.int64],
    *,
    mb: float | None = None,
    bpw: float | None = None,
    fixed: Collection[str] = (),
    progress: Progress = no_progress,
) -> dict[str, Scheme]:
    """The plan with some matrices at 8 bits, so that all weights fit into `mb` million bytes (or `bpw` bits each).

    Names in `fixed` stay as they are: their bits were chosen by hand.
    """
    shapes = {name: weight.shape for name, weight in checkpoint.weights.items()}
    low, free = dict(plan), {name: scheme for name, scheme in plan.items() if name not in fixed}
    high = low | {name: Scheme(HIGH, scheme.block_size) for name, scheme in free.items()}
    least, most = planned_bytes(shapes, low), planned_bytes(shapes, high)
    target = least + DEFAULT_SHARE * (most - least)
    if mb is not None or bpw is not None:
        count = sum(int(np.prod(shape)) for shape in shapes.values())
        target = mb * 1e6 if mb is not None else (bpw or 0) * count / 8
    if target < least:
        raise InputError(
            f"expected a target of {least / 1e6:.2f} MB or more, got {target / 1e6:.2f}; all weights are low already"
        )
    costs = measure_costs(checkpoint, free, ids[:PROBE], progress=progress)
    chosen, spent = low, float(least)
    for name in sorted(costs, key=lambda n: -costs[n] / _extra(n, shapes[n], low[n], high[n])):
        extra = _extra(name, shapes[name], low[name], high[name])
        if spent + extra <= target:
            chosen[name], spent = high[name], spent + extra
    return chosen


def measure_costs(
    checkpoint: Checkpoint, plan: Mapping[str, Scheme], ids: NDArray[np.int64], *, progress: Progress = no_progress
) -> dict[str, float]:
    """Canonical name -> KL divergence (nats a token) when it alone is quantized; `ids` (S, T)."""
    progress("sensitivity", 0, len(plan))
    model = build(checkpoint.spec, checkpoint.weights, ops=Parallel(), all_logits=True)
    inputs, state = torch.from_numpy(ids), initial_state(checkpoint.spec, torch.float32, len(ids))
    expected, costs = _log_probabilities(model, inputs, state), {}
    parameters = dict(model.named_parameters())
    for index, (name, scheme) in enumerate(plan.items()):
        original = parameters[name].detach().clone()
        matrix = as_matrix(name, np.asarray(original))
        restored = scheme.dequantize(round_searched(name, loaded(matrix), scheme), matrix.shape[1])
        parameters[name].data.copy_(torch.from_numpy(as_canonical(name, restored)))
        got = _log_probabilities(model, inputs, state)
        costs[name] = float((expected.exp() * (expected - got)).sum(-1).mean())
        parameters[name].data.copy_(original)
        progress("sensitivity", index + 1, len(plan))
    return costs


@torch.no_grad()
def _log_probabilities(model: Model, inputs: Tensor, state: dict[str, Tensor]) -> Tensor:
    return torch.log_softmax(model(inputs, state)[0], -1)


def _extra(name: str, shape: tuple[int, ...], low: Scheme, high: Scheme) -> float:
    rows, columns = matrix_shape(name, shape)
    return max(high.nbytes(rows, columns) - low.nbytes(rows, columns), 1)
