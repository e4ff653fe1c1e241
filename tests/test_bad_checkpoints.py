"""Bad checkpoints: one sentence each, exit code 2, nothing written."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from .command import Command, assert_nothing_written, assert_one_sentence
from .conftest import BY_NAME
from .oracles.cases import Case

Spoil = Callable[[Path], object]
NORM = "xlstm_block_stack.blocks.0.xlstm_norm.weight"


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")

    return spoil


def edit_config(**values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, **values}))

    return spoil


class Harmful:
    """Unpickling this runs code."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("this code must never run",))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.pt").write_bytes(pickle.dumps({"weights": Harmful()}))


def zip_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Harmful()}, folder / "model.pt")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def gap_in_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model_0.safetensors")
    shutil.copy(folder / "model_0.safetensors", folder / "model_2.safetensors")


def escaping_index(folder: Path) -> None:
    index = {"weight_map": {NORM: "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {NORM: "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BAD: dict[str, tuple[Spoil, str]] = {
    "empty folder": (empty, "without any weights"),
    "missing config": (lambda f: (f / "config.yaml").unlink(), "without a config"),
    "config is no mapping": (lambda f: (f / "config.yaml").write_text("[1, 2]"), "a mapping"),
    "config is no yaml": (lambda f: (f / "config.yaml").write_text("a: [}"), "valid yaml"),
    "unknown family": (edit_tensors(lambda t: (t.clear(), t.update(x=torch.ones(3)))), "not an xLSTM"),
    "another model of the trainer": (edit_config(type="mamba"), "mamba"),
    "forecaster": (edit_tensors(lambda t: t.update({"stack.0.time_mixer.norm_lstm.weight": torch.ones(3)})), "TiRex-2"),
    "classifier": (edit_tensors(lambda t: t.update({"classifier.weight": torch.ones(2, 64)})), "classifier"),
    "missing tensor": (edit_tensors(lambda t: t.pop(NORM.replace(".0.", ".1."))), NORM.replace(".0.", ".1.")),
    "unknown tensor": (edit_tensors(lambda t: t.update(extra=torch.ones(2))), "extra"),
    "wrong shape": (edit_tensors(lambda t: t.update({NORM.replace("0", "2"): torch.ones(65)})), "(65,)"),
    "wrong rank": (edit_tensors(lambda t: t.update({NORM: torch.ones(64, 1)})), "(64, 1)"),
    "integer tensor": (edit_tensors(lambda t: t.update({NORM: torch.ones(64, dtype=torch.int32)})), "I32"),
    "not a number": (edit_tensors(lambda t: t[NORM].fill_(float("nan"))), "NaN"),
    "infinite": (edit_tensors(lambda t: t["lm_head.weight"].fill_(float("inf"))), "head.weight"),
    "pickle": (only_pickle, "may run code"),
    "pickle in a zip": (zip_pickle, "may run code"),
    "truncated": (truncate, "complete safetensors"),
    "gap in shards": (gap_in_shards, "model_1.safetensors"),
    "index that escapes": (escaping_index, "do not trust"),
    "missing shard": (missing_shard, "model-00001-of-00002"),
    "config disagrees": (edit_config(embedding_dim=128), "embedding_dim 128"),
    "blocks disagree": (edit_config(slstm_at=[0]), "slstm_at"),
    "unknown setting": (edit_config(rotary=True), "rotary"),
    "bad flag": (edit_config(bias="perhaps"), "true or false"),
    "lstm cell": (edit_config(slstm_block={"slstm": {"function": "lstm"}}), "lstm"),
}


@pytest.fixture
def checkpoint(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> Path:
    """A good checkpoint to be spoiled, alone in a folder with nothing else."""
    return Path(shutil.copytree(checkpoint_of(BY_NAME["a1-mixed"]), tmp_path / "checkpoint"))


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoint(name: str, checkpoint: Path, tmp_path: Path, command: Command) -> None:
    spoil, fragment = BAD[name]
    spoil(checkpoint)
    result = command("export", checkpoint, "-o", tmp_path / "bundle")
    assert_one_sentence(result, 2)
    assert fragment in result.err
    assert "must never run" not in result.out
    assert_nothing_written(tmp_path, {"checkpoint"})


def test_the_unspoiled_checkpoint_exports(checkpoint: Path, tmp_path: Path, command: Command) -> None:
    assert command("export", checkpoint, "-o", tmp_path / "bundle").code == 0


def test_nothing_there(tmp_path: Path, command: Command) -> None:
    assert_one_sentence(command("export", tmp_path / "none", "-o", tmp_path / "bundle"), 2)
    assert_nothing_written(tmp_path, set())


LARGE_BAD: dict[str, tuple[Spoil, str]] = {
    "unknown field": (edit_config(rope_theta=1.0), "rope_theta"),
    "missing field": (edit_config(num_heads=None), "num_heads"),
    "wrong heads": (edit_config(num_heads=3), "num_heads 3"),
    "sigmoid input gate": (edit_config(step_kernel="native_siging"), "sigmoid"),
    "negative cap": (edit_config(gate_soft_cap=-1), "gate_soft_cap"),
    "missing bias": (edit_config(use_bias=True), ".bias"),
}


@pytest.mark.parametrize("name", LARGE_BAD)
def test_bad_large_checkpoint(
    name: str, checkpoint_of: Callable[[Case], Path], tmp_path: Path, command: Command
) -> None:
    checkpoint = Path(shutil.copytree(checkpoint_of(BY_NAME["b-plain"]), tmp_path / "checkpoint"))
    spoil, fragment = LARGE_BAD[name]
    spoil(checkpoint)
    result = command("export", checkpoint, "-o", tmp_path / "bundle")
    assert_one_sentence(result, 2)
    assert fragment in result.err
    assert_nothing_written(tmp_path, {"checkpoint"})
