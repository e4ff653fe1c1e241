"""Names and shapes from a config alone, against real checkpoints of the official packages."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from xlstm_edge_exporters.bundle import count_parameters
from xlstm_edge_exporters.checkpoints import Checkpoint, open_outline
from xlstm_edge_runtime import CheckpointError

from ...oracles.cases import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_config_describes_what_its_checkpoint_is(
    case: Case, checkpoint_of: Callable[[Case], Path], opened: Callable[[Case], Checkpoint], tmp_path: Path
) -> None:
    whole = opened(case)
    for name in ("config.json", "config.yaml"):
        if (checkpoint_of(case) / name).exists():
            shutil.copy(checkpoint_of(case) / name, tmp_path)
    outline = open_outline(tmp_path)
    assert outline.spec == whole.spec
    assert {n: w.shape for n, w in outline.weights.items()} == {n: w.shape for n, w in whole.weights.items()}
    left_out = (
        sum(getattr(block.mixer, "width", 0) for block in whole.spec.blocks) if case.name == "lm-bare" else 0
    )  # norms without weights
    assert count_parameters(outline.spec) == sum_of_stored(whole) + left_out
    with pytest.raises(CheckpointError, match="expected the weights"):
        next(iter(outline.weights.values())).load()


def sum_of_stored(checkpoint: Checkpoint) -> int:
    """Numbers in the checkpoint's own tensors."""
    from math import prod

    return sum(prod(checkpoint.stored.shape(name)) for name in checkpoint.stored.names)
