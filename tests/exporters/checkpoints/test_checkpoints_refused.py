"""Bad checkpoints: one sentence each, exit code 2, nothing written."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.checkpoints.notes import Notes
from xlstm_edge_runtime.errors import CheckpointError

from ...command import Command, assert_nothing_written, assert_one_sentence
from ...conftest import BY_NAME
from ...damaged_checkpoints import EMBEDDING, HEAD, NORM, Spoil, add, edit_config, edit_tensors, only_yaml_of, prefixed
from ...oracles.cases import Case, v1
from ...oracles.official import make_checkpoint


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


def without_head(t: dict[str, torch.Tensor]) -> None:
    t.pop(HEAD)


# What may be another model: refused, never guessed.
GUESSES: dict[str, tuple[Spoil, str]] = {
    "no head, not tied": (edit_tensors(without_head), "does not tie"),
    "no embedding, not tied": (edit_tensors(lambda t: t.pop(EMBEDDING)), "does not tie"),
    "no head, a prefix, not tied": (
        edit_tensors(lambda t: [t.pop(HEAD), t.update({f"model.{k}": t.pop(k) for k in list(t)})]),
        "does not tie",
    ),
    "two heads": (
        prefixed({HEAD: torch.ones(97, 64)}),
        "one output head",
    ),
    "unknown tensor under a prefix": (
        prefixed({"model.pos_emb.weight": torch.ones(9, 64)}),
        "model.pos_emb.weight",
    ),
    "a layer between the stack's": (add("xlstm_block_stack.mixer.weight", 2), "mixer"),
    "a classifier under a prefix": (
        prefixed({"classifier.weight": torch.ones(2, 64)}),
        "classifier",
    ),
    "two weight files": (lambda f: shutil.copy(f / "model.safetensors", f / "ema.safetensors"), "--weights"),
    "shards and one file": (lambda f: shutil.copy(f / "model.safetensors", f / "model_0.safetensors"), "--weights"),
    "rotary positions": (edit_config(use_rope=True), "another architecture"),
    "position embedding": (edit_config(position_embedding_type="learned"), "another architecture"),
    "attention": (edit_config(attn_every=4), "another architecture"),
    "experts": (edit_config(num_experts=8), "experts"),
    "a state that is reset": (edit_config(reset_every=64), "reset_every"),
    "a state that starts elsewhere": (edit_config(state_init="ones"), "state_init"),
    "a decay of the model": (edit_config(decay_rate=0.9), "decay_rate"),
    "both directions": (edit_config(bidirectional=True), "bidirectional"),
    "a norm": (edit_config(qk_norm=True), "qk_norm"),
    "unknown in the mLSTM": (edit_config(mlstm_block={"mlstm": {"num_heads": 4, "gate_kind": "x"}}), "gate_kind"),
    "experts beside the model": (only_yaml_of(lambda config: {"model": config, "num_experts": 3}), "experts"),
    "two models' settings": (
        only_yaml_of(lambda config: {"student": config, "teacher": config | {"seed": 1}}),
        "student, teacher",
    ),
    "true for one": (edit_config(num_blocks=True), "num_blocks true"),
    "a nested value": (edit_config(num_blocks=[[3] * 900] * 90), "a list"),
    "slstm_at that wraps around": (edit_config(slstm_at=[4]), "slstm_at"),
    "clipped outputs": (
        edit_config(slstm_block={"slstm": {"gradient_recurrent_clipval": 1.0}, "feedforward": {}}),
        "clip",
    ),
    "kernel (H, 4, DH, DH)": (
        edit_tensors(lambda t: reshape_kernel(t, (4, 4, 16, 16), (4, 4, 16))),
        "_recurrent_kernel_",
    ),
    "open kernel, flat bias": (edit_tensors(lambda t: reshape_kernel(t, (4, 16, 4, 16), (256,))), "_bias_"),
    "flat kernel, open bias": (edit_tensors(lambda t: reshape_kernel(t, (4, 64, 16), (4, 4, 16))), "_bias_"),
}


def reshape_kernel(t: dict[str, torch.Tensor], kernel: tuple[int, ...], bias: tuple[int, ...]) -> None:
    for name, shape in (("_recurrent_kernel_", kernel), ("_bias_", bias)):
        key = next(k for k in t if k.endswith(name))
        t[key] = t[key].reshape(shape)


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
    return Path(shutil.copytree(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "checkpoint"))


@pytest.mark.parametrize("name", [*BAD, *GUESSES])
def test_bad_checkpoint(name: str, checkpoint: Path, tmp_path: Path, command: Command) -> None:
    spoil, fragment = (BAD | GUESSES)[name]
    spoil(checkpoint)
    result = command("export", checkpoint, "-o", tmp_path / "bundle")
    assert_one_sentence(result, 2)
    assert fragment in result.err
    assert "must never run" not in result.out
    assert not any(advice in result.err for advice in ("remove", "rename", "correct the config"))  # to a wrong model
    assert_nothing_written(tmp_path, {"checkpoint"})


def test_four_units_a_head_cannot_be_told_apart(tmp_path: Path) -> None:
    case = Case("four", "xlstm_stack", v1(8, 1, "all", None, s_num_heads=2))
    folder = make_checkpoint(case, tmp_path / "checkpoint")
    assert open_checkpoint(folder).spec.width == 8
    edit_tensors(lambda t: reshape_kernel(t, (2, 4, 4, 4), (2, 4, 4)))(folder)
    with pytest.raises(CheckpointError, match="cannot be told apart"):
        open_checkpoint(folder)


@pytest.mark.parametrize("change", [{"tie_word_embeddings": False}, {}])
def test_a_hugging_face_head_is_tied_only_by_its_config(
    change: dict[str, Any], checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["hf-tied"]), tmp_path / "checkpoint"))
    assert open_checkpoint(folder).spec.tied
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match="does not tie"):
        open_checkpoint(folder)


def test_a_model_without_its_head_is_said_to_be_one(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    """As `xLSTMModel.save_pretrained` leaves it."""
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["hf-tied"]), tmp_path / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("backbone."): t for name, t in tensors.items() if not name.startswith("lm_head")}
    save_file(bare, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="without a head"):
        open_checkpoint(folder)


def test_a_name_that_stays_is_not_called_renamed() -> None:
    assert Notes(renamed=(("a", "a"), ("b", "c"))).lines() == ["b read as c"]


def test_a_wrapper_with_more_around_it_is_not_tied(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["lm-hf-tied"]), tmp_path / "checkpoint"))
    assert open_checkpoint(folder).spec.tied
    for name, message in (("score.weight", "classifier"), ("my_head.weight", "may change what it says")):
        tensors = load_file(checkpoint_of(BY_NAME["lm-hf-tied"]) / "model.safetensors")
        save_file(tensors | {name: torch.ones(2, 32)}, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder)


HUB_BAD = {
    "unknown field": ({"rope_theta": 1.0}, "another architecture"),
    "a field nobody knows": ({"inner_loops": 3}, "inner_loops"),
    "another norm's epsilon": ({"cell_norm_eps": 1e-3}, "cell_norm_eps"),
    "query norm": ({"add_qk_norm": True}, "add_qk_norm"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantized"),
    "sigmoid gates": ({"chunkwise_kernel": "chunkwise--triton_xl_chunk_siging"}, "sigmoid"),
}


@pytest.mark.parametrize("name", HUB_BAD)
def test_bad_hugging_face_config(name: str, checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    change, fragment = HUB_BAD[name]
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["hf-plain"]), tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=fragment):
        open_checkpoint(folder)


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
    checkpoint = Path(shutil.copytree(checkpoint_of(BY_NAME["large-plain"]), tmp_path / "checkpoint"))
    spoil, fragment = LARGE_BAD[name]
    spoil(checkpoint)
    result = command("export", checkpoint, "-o", tmp_path / "bundle")
    assert_one_sentence(result, 2)
    assert fragment in result.err
    assert_nothing_written(tmp_path, {"checkpoint"})
