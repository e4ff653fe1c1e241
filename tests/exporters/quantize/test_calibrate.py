"""Calibration on a text: the quality that it keeps, and texts that are too short."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.quantize.calibrate import calibration_batch, quantize_with_gptq
from xlstm_edge_exporters.quantize.orientation import as_canonical, matrix_shape
from xlstm_edge_exporters.quantize.plan import Plan, make_plan
from xlstm_edge_exporters.quantize.sources import round_to_nearest
from xlstm_edge_exporters.quantize.store import Store
from xlstm_edge_exporters.recipe import Recipe
from xlstm_edge_exporters.reference import run_reference
from xlstm_edge_exporters.weights import Weights, loaded
from xlstm_edge_runtime import InputError

from ...conftest import BY_NAME, SHIPPED
from ...oracles.cases import Case

Ids = NDArray[np.int64]


@pytest.fixture(scope="module")
def shipped_ids() -> np.ndarray[Any, Any]:
    from xlstm_edge_exporters.calibration import read_ids

    return read_ids(open_checkpoint(SHIPPED), SHIPPED / "calibration.txt")


def test_gptq_keeps_quality_better_than_rounding_at_the_same_bytes(shipped_ids: Ids, tmp_path: Path) -> None:
    from xlstm_edge_exporters.calibration import read_ids

    checkpoint, store = open_checkpoint(SHIPPED), Store(tmp_path)
    spec, weights = checkpoint.spec, checkpoint.weights
    held = read_ids(checkpoint, SHIPPED / "heldout.txt")[:600]
    plan = make_plan(spec, weights, Recipe(quantize="int4", method="rtn", block_size=64))

    def log_probabilities(packed: dict[str, Any]) -> np.ndarray[Any, Any]:
        outputs = run_reference(spec, with_packed(weights, packed, plan), held, dtype=torch.float32).outputs
        return outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)

    expected = log_probabilities({})
    rounded = {n: round_to_nearest(n, loaded(_matrix(n, weights[n].load())), scheme) for n, scheme in plan.items()}
    quantize_with_gptq(spec, weights, plan, calibration_batch(shipped_ids, 4096), store)
    calibrated = {name: store.load_packed(name, *matrix_shape(name, weights[name].shape), plan[name]) for name in plan}
    costs = [
        float((np.exp(expected) * (expected - log_probabilities(packed))).sum(1).mean())
        for packed in (calibrated, rounded)
    ]
    assert 0 < costs[0] < 0.9 * costs[1]


def with_packed(weights: Weights, packed: dict[str, Any], plan: Plan) -> Weights:
    """The weights as they are after quantization, for the reference to run."""
    return weights | {
        name: loaded(as_canonical(name, plan[name].dequantize(one, matrix_shape(name, weights[name].shape)[1])))
        for name, one in packed.items()
    }


@pytest.mark.parametrize("blocks_done", [0, 1, 2])
def test_a_calibration_goes_on_where_it_was_to_the_same_integers(
    blocks_done: int, opened: Callable[[Case], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = opened(BY_NAME["lm-three-heads"])
    spec, weights = checkpoint.spec, checkpoint.weights
    plan = make_plan(spec, weights, Recipe(quantize="int4"))
    ids = np.random.default_rng(2).integers(0, spec.vocab_size or 0, (8, 64))
    whole, parts = (Store(tmp_path / name) for name in ("whole", "parts"))
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    quantize_with_gptq(spec, weights, plan, ids, whole)

    def stop(stage: str, done: int, _total: int) -> None:
        if stage == "calibrate" and done == blocks_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_with_gptq(spec, weights, plan, ids, parts, resume=True, progress=stop)
    seen: list[int] = []
    quantize_with_gptq(
        spec, weights, plan, ids, parts, resume=True, progress=lambda _stage, done, _total: seen.append(done)
    )
    assert seen[0] == blocks_done
    for name, scheme in plan.items():
        rows, columns = matrix_shape(name, weights[name].shape)
        first, second = (store.load_packed(name, rows, columns, scheme) for store in (whole, parts))
        assert first is not None
        assert second is not None
        assert np.array_equal(first.data, second.data)
        assert np.array_equal(first.scales, second.scales)


def _matrix(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array if name in ("embedding.weight", "head.weight") else np.ascontiguousarray(array.T)


def test_a_short_calibration_text_is_refused() -> None:
    with pytest.raises(InputError, match="to calibrate on, got 100"):
        calibration_batch(np.arange(100), 1000)
