"""Calibration on a text: the quality that it keeps, and texts that are too short."""

from typing import Any

import numpy as np
import pytest
import torch

from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.quantize.calibrate import calibration_batch, quantize_with_gptq, with_packed
from xlstm_edge_exporters.quantize.plan import make_plan
from xlstm_edge_exporters.quantize.sources import round_to_nearest
from xlstm_edge_exporters.recipe import Recipe
from xlstm_edge_exporters.reference import run_reference
from xlstm_edge_runtime import InputError

from ...conftest import SHIPPED


@pytest.fixture(scope="module")
def shipped_ids() -> np.ndarray[Any, Any]:
    from xlstm_edge_exporters.export import read_ids

    return read_ids(open_checkpoint(SHIPPED), SHIPPED / "calibration.txt")


def test_gptq_keeps_quality_better_than_rounding_at_the_same_bytes(shipped_ids: np.ndarray[Any, Any]) -> None:
    from xlstm_edge_exporters.export import read_ids

    checkpoint = open_checkpoint(SHIPPED)
    spec, weights = checkpoint.spec, checkpoint.weights
    held = read_ids(checkpoint, SHIPPED / "heldout.txt")[:600]
    plan = make_plan(spec, weights, Recipe(quantize="int4", block_size=64))

    def log_probabilities(packed: dict[str, Any]) -> np.ndarray[Any, Any]:
        outputs = run_reference(spec, with_packed(weights, packed, plan), held, dtype=torch.float32).outputs
        return outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)

    expected = log_probabilities({})
    batch = calibration_batch(shipped_ids)[::4]
    rounded = {n: round_to_nearest(n, _matrix(n, weights[n].load()), scheme) for n, scheme in plan.items()}
    costs = [
        float((np.exp(expected) * (expected - log_probabilities(packed))).sum(1).mean())
        for packed in (quantize_with_gptq(spec, weights, plan, batch), rounded)
    ]
    assert 0 < costs[0] < 0.9 * costs[1]


def _matrix(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array if name in ("embedding.weight", "head.weight") else np.ascontiguousarray(array.T)


def test_a_short_calibration_text_is_refused() -> None:
    with pytest.raises(InputError, match="calibration"):
        calibration_batch(np.arange(100))
