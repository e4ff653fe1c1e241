"""Relative gates: the official cell on other numbers, which float16 holds."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from xlstm_edge_exporters.checkpoints import Checkpoint
from xlstm_edge_exporters.model import Model
from xlstm_edge_exporters.ops.reference import Reference
from xlstm_edge_exporters.relative_gates import HEADROOM, absolute_weights, relative_spec, relative_weights
from xlstm_edge_exporters.spec import ModelSpec
from xlstm_edge_exporters.weights import Weights, loaded

from ..conftest import BY_NAME, sequence_for
from ..oracles.cases import CASES, Case

BIASES = [-200.0, -75.0, -14.0, -1.0, 0.0, 3.0, 14.0, 75.0, 200.0]
Opened = Callable[[Case], Checkpoint]


def run(spec: ModelSpec, weights: Weights, ids: np.ndarray) -> np.ndarray:
    """Every output of the canonical model in float64, token after token."""
    model = Model(spec, Reference(), all_logits=True).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name].load().astype(np.float64)))
        shapes = spec.state_table().initial()
        state = {name: torch.from_numpy(array.astype(np.float64)) for name, array in shapes.items()}
        return model(torch.from_numpy(ids)[None], state)[0][0].numpy()


def with_biases(case: Case, opened: Opened, bias: float) -> tuple[ModelSpec, dict[str, object]]:
    """The official spec and weights whose input gates' biases are `bias` (before the division by a cap)."""
    checkpoint = opened(case)
    weights = dict(checkpoint.weights)
    for index, block in enumerate(checkpoint.spec.blocks):
        name = f"blocks.{index}.mixer.gates.bias"
        if name in weights and hasattr(block.mixer, "heads"):
            heads, cap = block.mixer.heads, getattr(block.mixer, "gate_soft_cap", None)
            array = weights[name].load().copy()
            array[:heads] = bias / (cap or 1.0)
            weights[name] = loaded(array)
    return checkpoint.spec.official(), weights


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("name", ["large-plain", "large-uncapped", "lm-mixed", "large-one-head"])
def test_the_outputs_are_those_of_absolute_gates(name: str, bias: float, opened: Opened) -> None:
    if bias < -14 and name in ("large-uncapped", "lm-mixed"):
        pytest.skip("exp(75) of an uncapped gate is out of any range")
    spec, weights = with_biases(BY_NAME[name], opened, bias)
    ids = sequence_for(BY_NAME[name], 30)
    wanted = run(spec, weights, ids)
    got = run(relative_spec(spec), relative_weights(spec, weights), ids)
    assert np.abs(got - wanted).max() <= 2e-5 * np.ptp(wanted)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_way_back(case: Case, opened: Opened) -> None:
    """Weights that a bundle holds are the checkpoint's again, but for gates far beyond their caps."""
    checkpoint = opened(case)
    back = absolute_weights(checkpoint.spec, relative_weights(checkpoint.spec, checkpoint.weights))
    assert back.keys() == checkpoint.weights.keys()
    for name, weight in checkpoint.weights.items():
        np.testing.assert_allclose(back[name].load(), weight.load(), rtol=1e-5, atol=1e-5)


def test_every_parameter_has_a_weight_of_its_shape(opened: Opened) -> None:
    for case in CASES:
        spec = opened(case).spec
        made = relative_weights(spec, opened(case).weights)
        wanted = {n: tuple(p.shape) for n, p in Model(relative_spec(spec), Reference()).named_parameters()}
        assert {name: weight.shape for name, weight in made.items()} == wanted
        assert all(made[name].load().shape == shape for name, shape in wanted.items())


def test_gates_are_small_where_biases_are_not(opened: Opened) -> None:
    """What this is for: a gate of 11 +- 0.1 is held as +- 0.1."""
    spec, weights = with_biases(BY_NAME["large-plain"], opened, 14.0)
    made = relative_weights(spec, weights)
    heads = spec.blocks[0].mixer.heads
    bias, pivot = made["blocks.0.mixer.gates.bias"].load(), made["blocks.0.mixer.gate_pivot"].load()
    assert np.abs(bias[:heads]).max() < 1e-6
    np.testing.assert_allclose(pivot[:heads], np.tanh(14 / 15), rtol=1e-6)
    np.testing.assert_allclose(
        made["blocks.0.mixer.offset"].load(), 15 * np.tanh(14 / 15) + HEADROOM * np.log(2), rtol=1e-6
    )
    assert replace(spec.blocks[0].mixer, relative=True).states()[2].name == "m"
