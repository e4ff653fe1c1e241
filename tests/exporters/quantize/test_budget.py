"""Mixed precision keeps to its budget and spends it where it helps."""

from typing import Any

import numpy as np
import pytest

from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.quantize.budget import measure_costs, spend_budget
from xlstm_edge_exporters.quantize.calibrate import calibration_batch
from xlstm_edge_exporters.quantize.plan import make_plan, planned_bytes
from xlstm_edge_exporters.recipe import Recipe
from xlstm_edge_runtime import InputError

from ...conftest import SHIPPED


@pytest.fixture(scope="module")
def shipped_ids() -> np.ndarray[Any, Any]:
    from xlstm_edge_exporters.calibration import read_ids

    return read_ids(open_checkpoint(SHIPPED), SHIPPED / "calibration.txt")


def test_a_budget_is_kept_and_spent_where_it_helps(shipped_ids: np.ndarray[Any, Any]) -> None:
    checkpoint = open_checkpoint(SHIPPED)
    shapes = {n: w.shape for n, w in checkpoint.weights.items()}
    low = make_plan(checkpoint.spec, checkpoint.weights, Recipe(quantize="int4", method="rtn"))
    least = planned_bytes(shapes, low)
    batch = calibration_batch(shipped_ids, 16_384)[:2]
    target = least * 1.1 / 1e6
    plan = spend_budget(checkpoint, low, batch, mb=target)
    assert least < planned_bytes(shapes, plan) <= target * 1e6
    raised = {name for name in plan if plan[name].bits == 8}
    costs = measure_costs(checkpoint, low, batch)
    assert all(cost >= 0 for cost in costs.values())
    assert max(costs, key=lambda n: costs[n] / np.prod(shapes[n])) in raised
    chosen = {name for name in low if name.endswith("ffn.down.weight")}
    plan = spend_budget(checkpoint, low, batch[:1], mb=100, fixed=chosen)
    assert {name for name in plan if plan[name].bits == 4} == chosen
    with pytest.raises(InputError, match="target"):
        spend_budget(checkpoint, low, batch, mb=0.1)
