"""Checkpoints that once got through: each is refused in one sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ...command import Command, assert_nothing_written, assert_one_sentence
from ...conftest import BY_NAME
from ...oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


def test_a_missing_last_block_is_seen(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    shutil.copytree(checkpoint_of(BY_NAME["hf-plain"]), tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "model.safetensors"
    save_file({n: t for n, t in load_file(weights).items() if ".blocks.1." not in n}, weights, {"format": "pt"})
    assert_one_sentence(command("export", tmp_path / "checkpoint", "-o", tmp_path / "bundle"), 2)
    assert_nothing_written(tmp_path, {"checkpoint"})


@pytest.mark.parametrize("edit", ["slstm_at: x", "slstm_at: 5", "slstm_at: [{a: 1}]"])
def test_odd_configs(edit: str, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_of(BY_NAME["lm-mixed"]), folder)
    lines = (folder / "config.yaml").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("slstm_at"))
    rest = [line for line in lines[start + 1 :] if not line.startswith("- ")]
    (folder / "config.yaml").write_text("\n".join([*lines[:start], edit, *rest]))
    assert_one_sentence(command("export", folder, "-o", tmp_path / "bundle"), 2)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_without_data(kind: str, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    shutil.copytree(checkpoint_of(BY_NAME["lm-sigmoid"]), tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.pt"
    tensors = torch.load(path, weights_only=True)
    name = "token_embedding.weight"
    tensors[name] = tensors[name].to_sparse() if kind == "sparse" else tensors[name].to("meta")
    torch.save(tensors, path)
    assert_one_sentence(command("export", tmp_path / "checkpoint", "-o", tmp_path / "bundle"), 2)
