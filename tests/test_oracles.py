"""The oracles agree with each other: the float64 numpy recurrence and the official packages."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from .conftest import sequence_for
from .oracles.cases import CASES, Case
from .oracles.official import official_parallel, official_step
from .oracles.reference import Reference

TOLERANCE = 1e-4  # of the logit range: what two float32 implementations may differ by
LENGTH = 60
# What the official code cannot run, and why; everything else must run.
NO_PARALLEL = {"a1-bare": "xlstm/components/conv.py drops the whole sequence when a convolution has one tap"}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore")  # the official packages warn about each other and about CUDA
def test_numpy_recurrence_is_the_official_model(case: Case, checkpoint_of: Callable[[Case], Path]) -> None:
    folder, sequence = checkpoint_of(case), sequence_for(case, LENGTH)
    expected = Reference(folder).run(sequence)
    allowed = TOLERANCE * np.ptp(expected)
    assert np.ptp(expected) > 1.0  # outputs that say something
    np.testing.assert_allclose(official_step(case, folder, sequence), expected, atol=allowed, rtol=0)
    if case.name not in NO_PARALLEL:
        np.testing.assert_allclose(official_parallel(case, folder, sequence), expected, atol=allowed, rtol=0)


@pytest.mark.parametrize("name", NO_PARALLEL)
@pytest.mark.filterwarnings("ignore")
def test_the_stated_limits_of_the_official_model_still_hold(name: str, checkpoint_of: Callable[[Case], Path]) -> None:
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(RuntimeError):
        official_parallel(case, checkpoint_of(case), sequence_for(case, LENGTH))
