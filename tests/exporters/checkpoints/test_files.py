"""Folders as trainers and the hub leave them: which file is meant, shards, links."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_runtime.errors import CheckpointError

from ...command import Command, assert_one_sentence
from ...conftest import BY_NAME
from .forms import OPTIMIZER, CheckpointOf, assert_equal_to_official, official, rewritten, tensors_of, two_models


def test_of_two_files_one_must_be_named(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    source = checkpoint_of(BY_NAME["lm-mixed"])
    tensors = tensors_of(source)
    folder = rewritten(source, tmp_path / "checkpoint", {"model": tensors, "ema": two_models(tensors)}, "best.pt")
    torch.save(two_models(tensors), folder / "last.pt")
    result = command("inspect", folder)
    assert_one_sentence(result, 2)
    assert "best.pt, last.pt" in result.err and "--weights" in result.err
    checkpoint = open_checkpoint(folder, weights="best.pt:model")
    assert_equal_to_official(checkpoint, official("lm-mixed", source), BY_NAME["lm-mixed"])
    assert "weight files not read: last.pt" in checkpoint.notes.lines()


def test_a_trainer_s_folder(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["lm-mixed"])
    folder = rewritten(source, tmp_path / "checkpoint", tensors_of(source), "pytorch_model.bin")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "scaler.pt", "rng_state_0.pth"):
        torch.save(OPTIMIZER, folder / name)
    assert_equal_to_official(open_checkpoint(folder), official("lm-mixed", source), BY_NAME["lm-mixed"])
    shutil.copy(source / "model.safetensors", folder)  # the hub often has both
    assert open_checkpoint(folder).notes.unread_files == ("pytorch_model.bin",)


def test_shards_without_an_index(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source, folder = checkpoint_of(BY_NAME["large-plain"]), tmp_path / "checkpoint"
    tensors = tensors_of(source)
    names = sorted(tensors)
    for part in (0, 1):
        content = {name: tensors[name] for name in names[part::2]}
        rewritten(source, tmp_path / str(part), content, "model.safetensors")
        folder.mkdir(exist_ok=True)
        shutil.move(tmp_path / str(part) / "model.safetensors", folder / f"model-{part + 1:05d}-of-00002.safetensors")
    shutil.copy(source / "config.yaml", folder)
    assert_equal_to_official(open_checkpoint(folder), official("large-plain", source), BY_NAME["large-plain"])
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        open_checkpoint(folder)


def test_the_hub_s_cache(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    for name in ("hf-plain", "hf-one-head"):
        source, hub = checkpoint_of(BY_NAME[name]), tmp_path / name
        snapshot, blobs = hub / "snapshots" / "0123abc", hub / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        for index, path in enumerate(sorted(source.iterdir())):
            shutil.copy(path, blobs / f"{index:064x}")
            (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / f"{index:064x}")
        assert_equal_to_official(open_checkpoint(snapshot), official(name, source), BY_NAME[name])


def test_a_file_is_chosen_by_its_name(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["hf-one-head"])  # shards and their index
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    tensors = tensors_of(source)
    save_file(two_models(tensors), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors\.index\.json, model\.safetensors; name one with --weights"
    ):
        open_checkpoint(folder)
    checkpoint = open_checkpoint(folder, weights="model.safetensors.index.json")
    assert_equal_to_official(checkpoint, official("hf-one-head", source), BY_NAME["hf-one-head"])
    assert checkpoint.notes.unread_files == ("model.safetensors",)
    assert len(checkpoint.files) > 2
    with pytest.raises(CheckpointError, match="got model"):
        open_checkpoint(folder, weights="../secret.safetensors")
    index = open_checkpoint(folder / "model.safetensors.index.json")
    assert index.files == checkpoint.files


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_that_leave_the_folder_are_refused(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["lm-mixed"])
    for name in ("config.yaml", "model.safetensors"):
        folder = Path(shutil.copytree(source, tmp_path / name.partition(".")[0]))
        (folder / name).unlink()
        (folder / name).symlink_to(source / name)
        with pytest.raises(CheckpointError, match="leaves it"):
            open_checkpoint(folder)


@pytest.mark.parametrize(
    "place",
    ["_CHECKPOINT_METADATA", "params/_METADATA", "checkpoints/checkpoint_95000/params/manifest.ocdbt"],
)
def test_jax_s_checkpoints_are_told_how_to_become_ours(place: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("{}")
    result = command("export", tmp_path, "-o", tmp_path / "bundle")
    assert_one_sentence(result, 2)
    assert "Orbax" in result.err and "convert_mlstm_checkpoint_jax_to_torch_simple.py" in result.err
