"""The parallel form is the recurrence."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from xlstm_edge_exporters.checkpoints import Checkpoint
from xlstm_edge_exporters.ops.parallel import Parallel
from xlstm_edge_exporters.reference import Variant, build, initial_state, run_reference, run_variants

from ...conftest import BY_NAME, sequence_for
from ...oracles.cases import Case


@pytest.mark.parametrize(
    "name", ["lm-mixed", "lm-five-heads", "large-plain", "large-one-head", "large-uncapped", "hf-one-head"]
)
def test_the_parallel_form_is_the_recurrence(name: str, opened: Callable[[Case], Checkpoint]) -> None:
    checkpoint, sequence = opened(BY_NAME[name]), sequence_for(BY_NAME[name], 50)
    expected = run_reference(checkpoint.spec, checkpoint.weights, sequence).outputs
    atonce = run_variants(checkpoint.spec, checkpoint.weights, sequence, {"exact": Variant()})["exact"]
    np.testing.assert_allclose(atonce, expected, atol=1e-11 * np.ptp(expected))  # both official: with their epsilon
    model = build(checkpoint.spec, checkpoint.weights, torch.float64, ops=Parallel(), all_logits=True)
    got = model(torch.from_numpy(sequence)[None], initial_state(checkpoint.spec, torch.float64))[0][0].numpy()
    # b-one-head has a large epsilon; a memory that needs no stabilizer does without its small one.
    np.testing.assert_allclose(got, expected, atol=1e-6 * np.ptp(expected))
