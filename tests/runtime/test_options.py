"""Generation options that are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xlstm_edge_runtime as xr

from ..conftest import BY_NAME
from ..oracles.cases import Case

BAD_GENERATIONS: list[dict[str, Any]] = [
    {"stop_ids": 5}, {"banned": 5}, {"logit_bias": [1]}, {"logit_bias": {"a": 1}}, {"stop_ids": ["x"]},
    {"stop_ids": [-1]}, {"stop_ids": [True]},
]  # fmt: skip


def test_generation_options(bundle_of: Callable[[Case, str], Path]) -> None:
    session = xr.load(bundle_of(BY_NAME["lm-mixed"], "cpu"), threads=1).session()
    for bad in BAD_GENERATIONS:
        with pytest.raises(xr.InputError):
            session.generate([1], **bad)
    good = {"temperature": np.float32(0.5), "max_tokens": np.int64(3), "stop_ids": [10**9], "min_tokens": 1}
    assert len(list(session.generate([1], **good))) == 4
