"""Block by block beside the official package: how checkpoints too large for its whole model are compared."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xlstm_edge_exporters.checkpoints import open_checkpoint

from ..conftest import BY_NAME
from ..oracles.blocks import compare_blocks
from ..oracles.official import make_checkpoint

LARGE = sorted(name for name, case in BY_NAME.items() if case.family in ("xlstm_large", "xlstm_hf"))
CLOSE = 2e-5


@pytest.mark.parametrize("name", LARGE)
def test_every_block_is_the_official_one(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(BY_NAME[name], tmp_path))
    ids = np.arange(6) * 7 % (checkpoint.spec.vocab_size or 1)
    found = dict(compare_blocks(checkpoint, ids))
    assert list(found) == [f"block {i}" for i in range(len(checkpoint.spec.blocks))] + ["logits"]
    assert all(difference < CLOSE for difference in found.values()), found


def test_the_block_that_differs_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(BY_NAME["hf-plain"], tmp_path))
    wrong = dict(checkpoint.weights) | {"blocks.1.norm.weight": checkpoint.weights["blocks.1.norm.weight"] + 0.01}
    found = dict(compare_blocks(replace(checkpoint, weights=wrong), np.arange(6)))
    assert found.pop("block 1") > CLOSE
    assert found.pop("logits") > CLOSE
    assert all(difference < CLOSE for difference in found.values())
