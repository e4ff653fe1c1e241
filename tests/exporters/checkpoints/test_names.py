"""The model among the tensors: prefixes, larger nets, tied matrices, stacks and parts."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import xlstm_edge
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_runtime import load
from xlstm_edge_runtime.errors import CheckpointError

from ...command import Command, assert_one_sentence
from ...conftest import BY_NAME, sequence_for
from ...oracles.cases import Case, large
from ...oracles.models import KERNELS
from ...oracles.official import make_checkpoint
from ...oracles.randomness import randomize
from .forms import (
    LENGTH,
    Change,
    CheckpointOf,
    X,
    assert_equal_to_official,
    configured,
    official,
    rewritten,
    tensors_of,
    two_models,
    under,
)

# name -> (what the file holds, fragment of the refusal, keyword of the choice)
CHOICES: dict[str, tuple[Change, str, dict[str, str]]] = {
    "model and ema": (lambda t: {"ema": t, "model": two_models(t)}, "got ema, model", {"weights": "ema"}),
    "inner ema": (
        lambda t: {"model": two_models(t), "callbacks": {"EMA": {"sd": t}}},
        "callbacks/EMA/sd",
        {"weights": "sd"},
    ),
    "file and key": (lambda t: {"ema": t, "model": two_models(t)}, "ema", {"weights": "model.ckpt:ema"}),
    "student and teacher": (
        lambda t: under("student.", t) | under("teacher.", two_models(t)),
        "'student.', 'teacher.'",
        {"prefix": "student"},
    ),
    "ema inside": (
        lambda t: under("model.", two_models(t)) | under("ema_model.module.", t),
        "ema_model",
        {"prefix": "ema_model."},
    ),
    "ema inside, in the file's words": (
        lambda t: under("model.", two_models(t)) | under("ema_model.module.", t),
        "ema_model",
        {"prefix": "ema_model.module"},
    ),
    "averaged copy beside": (lambda t: t | under("module.", two_models(t)), "'module.', ''", {"prefix": ""}),
    "averaged copy": (lambda t: two_models(t) | under("module.", t), "'module.', ''", {"prefix": "module"}),
    "one inside the other": (lambda t: t | under("teacher.", two_models(t)), "teacher", {"prefix": ""}),
}


@pytest.mark.parametrize("name", CHOICES)
def test_of_two_models_one_must_be_named(
    name: str, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command
) -> None:
    change, fragment, choice = CHOICES[name]
    source = checkpoint_of(BY_NAME["lm-mixed"])
    folder = rewritten(source, tmp_path / "checkpoint", change(tensors_of(source)))
    option = f"--{next(iter(choice))}"
    refused = command("export", folder, "-o", tmp_path / "bundle")
    assert_one_sentence(refused, 2)
    assert fragment in refused.err and option in refused.err
    assert_one_sentence(command("export", folder, "-o", tmp_path / "bundle", option, "nonsense"), 2)
    checkpoint = open_checkpoint(folder, **choice)
    assert_equal_to_official(checkpoint, official("lm-mixed", source), BY_NAME["lm-mixed"])


def test_one_part_of_a_language_model(checkpoint_of: CheckpointOf) -> None:
    checkpoint = open_checkpoint(checkpoint_of(BY_NAME["lm-mixed"]), prefix="xlstm_block_stack")
    assert checkpoint.spec.family == "xlstm_stack" and checkpoint.spec.vocab_size is None
    assert checkpoint.notes.left_out == ("lm_head.weight", "token_embedding.weight")
    for name in ("large-plain", "hf-plain"):
        checkpoint = open_checkpoint(checkpoint_of(BY_NAME[name]), prefix="backbone")
        assert checkpoint.spec.family == "xlstm_large_stack" and checkpoint.spec.vocab_size is None
        assert len(checkpoint.notes.left_out) == 2


STACKS = {
    "plain": large(64, 3, 4, 120),
    "biased": large(36, 2, 3, 50, use_bias=True, v_dim_factor=2.0),
    "no norm": large(40, 2, 5, 64, add_out_norm=False),
    "fused": large(40, 2, 5, 64, weight_mode="fused"),
    "eps": large(25, 2, 1, 40, qk_dim_factor=1.0, norm_eps=1e-4),
}


@pytest.mark.parametrize("prefix", ["", "backbone.", "net.encoder."])
@pytest.mark.parametrize("name", STACKS)
def test_a_bare_large_stack(name: str, prefix: str, tmp_path: Path) -> None:
    from xlstm.xlstm_large.model import xLSTMLargeBlockStack, xLSTMLargeConfig

    model = xLSTMLargeBlockStack(xLSTMLargeConfig(**STACKS[name], **KERNELS)).eval()
    randomize(model, 0, False)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(STACKS[name]))
    more = {"fc.weight": X} if prefix else {}
    save_file(under(prefix, dict(model.state_dict())) | more, folder / "model.safetensors")
    case = Case(name, "xlstm_large_stack", {"embedding_dim": STACKS[name]["embedding_dim"]})
    sequence, state, outputs = sequence_for(case, LENGTH), None, []
    with torch.no_grad():
        for vector in torch.from_numpy(sequence):
            output, state = model(vector[None, None], state)
            outputs.append(output.reshape(-1).numpy())
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec.family == "xlstm_large_stack" and checkpoint.spec.vocab_size is None
    assert_equal_to_official(checkpoint, np.stack(outputs), case)
    xlstm_edge.export(folder, tmp_path / "bundle", chunk=8)
    checks = xlstm_edge.verify(tmp_path / "bundle", against=folder)
    assert any(check.name == "reference, chunk" for check in checks)
    session = load(tmp_path / "bundle", threads=1).session()
    got = np.stack([session.step(vector).copy() for vector in sequence])
    assert np.abs(got - np.stack(outputs)).max() <= 1e-4 * np.ptp(outputs)


def test_an_untied_head_in_a_lightning_file_is_exported(
    checkpoint_of: CheckpointOf, tmp_path: Path, command: Command
) -> None:
    source = checkpoint_of(BY_NAME["lm-mixed"])
    content = {"state_dict": under("model.", tensors_of(source)), "epoch": 1}
    folder, bundle = rewritten(source, tmp_path / "checkpoint", content, "last.ckpt"), tmp_path / "bundle"
    result = command("export", folder, "-o", bundle)
    assert result.code == 0
    assert (
        "note: prefix 'model.' taken off" in result.err
        and "note: weights taken from the key 'state_dict'" in result.err
    )
    assert command("verify", bundle, "--against", folder).code == 0
    facts = json.loads(command("inspect", folder, "--json").out)
    assert facts["taken"]["prefix"] == "model." and facts["taken"]["key"] == "state_dict"
    assert facts["notes"] and not facts["tied"]
    assert "prefix 'model.' taken off" in command("inspect", folder).out
    session, expected = load(bundle, threads=1).session(), official("lm-mixed", source)
    got = np.stack([session.step(int(token)).copy() for token in sequence_for(BY_NAME["lm-mixed"], LENGTH)])
    assert np.abs(got - expected).max() <= 1e-4 * np.ptp(expected)


def test_every_command_takes_the_same_choice(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    source = checkpoint_of(BY_NAME["lm-mixed"])
    tensors = tensors_of(source)
    content = {"ema": under("student.", tensors) | under("teacher.", two_models(tensors)), "model": tensors}
    folder, bundle = rewritten(source, tmp_path / "checkpoint", content), tmp_path / "bundle"
    choice = ("--prefix", "student", "--weights", "ema")
    assert command("export", folder, "-o", bundle, *choice).code == 0
    assert command("verify", bundle, "--against", folder, *choice).code == 0
    teacher = command("verify", bundle, "--against", folder, "--prefix", "teacher", "--weights", "ema")
    assert_one_sentence(teacher, 1)
    assert json.loads(command("inspect", folder, *choice, "--json").out)["taken"]["prefix"] == "student."
    words = ("--prompt", 2, "--generate", 2, "--repeat", 1)
    assert command("bench", bundle, "--compare", folder, *choice, *words).code == 0
    assert_one_sentence(command("bench", bundle, "--compare", folder, *words), 2)
    (tmp_path / "ids.txt").write_text(" ".join(str(index) for index in range(64)))
    words = ("--against", folder, "--text", tmp_path / "ids.txt", "--tokens", 40)
    (result,) = json.loads(command("eval", bundle, *words, *choice, "--json").out)
    assert abs(result["kl_mean"]) < 1e-6
    assert_one_sentence(command("eval", bundle, *words), 2)


@pytest.mark.parametrize(
    "name",
    ["lm-mixed", "lm-hf-tied", "large-plain", "large-fused", "hf-plain", "hf-tied", "hf-odd-widths", "hf-old-names"],
)
def test_bench_compares_or_says_why_not(
    name: str, checkpoint_of: CheckpointOf, export_of: Callable[..., Path], command: Command
) -> None:
    source, bundle = checkpoint_of(BY_NAME[name]), export_of(name)
    result = command("bench", bundle, "--compare", source, "--prompt", 2, "--generate", 2, "--repeat", 1)
    if name == "hf-odd-widths":  # its cache rounds widths up to multiples of 64
        assert_one_sentence(result, 2)
        assert "its own package" in result.err
    else:
        assert result.code == 0, result.err


@pytest.mark.parametrize("name", ["lm-one-head", "lm-selu", "lm-sigmoid", "hf-tied"])
def test_tied_models_under_a_prefix(name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """One of the two names is stored, or both."""
    source = checkpoint_of(BY_NAME[name])
    tensors = tensors_of(source) or torch.load(source / "model.pt", weights_only=True)
    folder = rewritten(source, tmp_path / "checkpoint", {"state_dict": under("model.module.", tensors)})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec.tied
    assert_equal_to_official(checkpoint, official(name, source), BY_NAME[name])


def test_a_tied_config_with_two_matrices_is_not_tied(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """As transformers does it: what is in the file wins over what the config says."""
    source = checkpoint_of(BY_NAME["hf-plain"])
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    configured(folder, lambda config: config | {"tie_word_embeddings": True})
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.spec.tied
    assert_equal_to_official(checkpoint, official("hf-plain", source), BY_NAME["hf-plain"])


AROUND: dict[str, tuple[str, Change]] = {
    "a bias of the head": ("lm-mixed", lambda t: {"lm_head.bias": torch.ones(97)}),
    "positions": ("lm-mixed", lambda t: {"pos_embedding.weight": torch.ones(16, 64)}),
    "a norm before": ("lm-mixed", lambda t: {"norm.weight": torch.ones(64)}),
    "another head of a tied model": ("hf-tied", lambda t: {"head.weight": torch.ones(97, 64)}),
    "a classifier of another name": ("hf-tied", lambda t: {"cls_head.weight": torch.ones(2, 64)}),
    "a part of any name": ("large-plain", lambda t: {"mixer.weight": torch.ones(64, 64)}),
}


@pytest.mark.parametrize("name", AROUND)
def test_parts_around_a_language_model_are_not_left_out(name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Its prefix given, the user has decided; but for half of a head that was taken in."""
    case, more = AROUND[name]
    source = checkpoint_of(BY_NAME[case])
    tensors = {f"model.{key}": tensor for key, tensor in tensors_of(source).items()}
    if name == "a bias of the head":  # the wrapper keeps the head
        tensors["lm_head.weight"] = tensors.pop("model.lm_head.weight")
    folder = rewritten(source, tmp_path / "checkpoint", tensors | more(tensors))
    with pytest.raises(CheckpointError, match="may change what it says"):
        open_checkpoint(folder)
    if name == "a bias of the head":
        with pytest.raises(CheckpointError, match="not supported as a whole"):
            open_checkpoint(folder, prefix="model.")
    else:
        assert open_checkpoint(folder, prefix="model.").notes.left_out


def test_only_the_wrapper_of_that_name_ties(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    for section, top in (("my_xlstm_config", {}), ("_xlstm_config", {"tie_word_embeddings": False})):
        folder = Path(shutil.copytree(checkpoint_of(BY_NAME["lm-hf-tied"]), tmp_path / section))
        configured(
            folder, lambda c, section=section, top=top: top | {section: c["_xlstm_config"] | {"tie_weights": False}}
        )  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
            open_checkpoint(folder)


def test_the_stack_of_a_hugging_face_model_with_that_form_s_names(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """What the advice for a classifier leads to: num_hidden_layers says as much as num_blocks."""
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["hf-plain"]), tmp_path / "checkpoint"))
    configured(folder, lambda c: {key: value for key, value in c.items() if key != "num_blocks"})
    checkpoint = open_checkpoint(folder, prefix="backbone.")
    assert checkpoint.spec.family == "xlstm_large_stack"
    assert len(checkpoint.spec.blocks) == len(open_checkpoint(folder).spec.blocks)
    configured(folder, lambda c: c | {"num_hidden_layers": 7, "num_blocks": None})
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        open_checkpoint(folder, prefix="backbone.")


def test_only_one_end_of_a_language_model_is_not_a_stack(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Who wants the stack of float vectors names its prefix, as the message says."""
    ends = {"hf-plain": "backbone.embeddings.weight", "large-plain": "embedding.weight"}
    for case, embedding in ends.items():
        source = checkpoint_of(BY_NAME[case])
        tensors = {k: v for k, v in tensors_of(source).items() if k != embedding}
        folder = rewritten(source, tmp_path / case, tensors)
        with pytest.raises(CheckpointError, match=r"embedding.*--prefix backbone\."):
            open_checkpoint(folder)
        stack = open_checkpoint(folder, prefix="backbone.")
        assert stack.spec.vocab_size is None
        assert stack.notes.left_out == ("lm_head.weight",)
        headless = {k: v for k, v in tensors_of(source).items() if k != "lm_head.weight"}
        folder = rewritten(source, tmp_path / f"{case}-headless", headless)
        with pytest.raises(CheckpointError, match=r"lm_head.*--prefix backbone\."):
            open_checkpoint(folder)
    source = checkpoint_of(BY_NAME["hf-plain"])
    bare = {k.replace("backbone.", "xlstm."): v for k, v in tensors_of(source).items() if k.startswith("backbone.")}
    folder = rewritten(source, tmp_path / "net", bare | {"fc.weight": torch.ones(3, 64)})
    with pytest.raises(CheckpointError, match=r"--prefix xlstm\."):
        open_checkpoint(folder)
    assert open_checkpoint(folder, prefix="xlstm.").notes.left_out == ("fc.weight", "xlstm.embeddings.weight")


def test_the_wrapper_that_ties_keeps_the_embedding(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["lm-hf-tied"])
    tensors = tensors_of(source)
    embedding = next(name for name in tensors if name.endswith("token_embedding.weight"))
    only_head = {name: t for name, t in tensors.items() if name != embedding} | {
        "model.lm_head.weight": tensors[embedding]
    }
    folder = rewritten(source, tmp_path / "checkpoint", only_head)
    configured(folder, lambda c: c | {"_xlstm_config": c["_xlstm_config"] | {"tie_weights": False}})
    with pytest.raises(CheckpointError, match="token_embedding"):
        open_checkpoint(folder)


def test_what_the_config_ties_must_be_one_matrix(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """The package itself would load one over the other."""
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "checkpoint"))
    configured(folder, lambda c: c | {"tie_weights": True})
    with pytest.raises(CheckpointError, match="as one matrix"):
        open_checkpoint(folder)


def test_blocks_without_both_ends_are_not_taken_for_a_stack(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    for case, stem in (("lm-mixed", "xlstm_block_stack."), ("large-plain", "backbone.")):
        source = checkpoint_of(BY_NAME[case])
        folder = rewritten(
            source, tmp_path / case, {name: t for name, t in tensors_of(source).items() if name.startswith(stem)}
        )
        with pytest.raises(CheckpointError, match=f"vocab_size.*--prefix {re.escape(stem)}"):
            open_checkpoint(folder)
        assert open_checkpoint(folder, prefix=stem).spec.vocab_size is None


@pytest.mark.parametrize("change", [{}, {"use_bias": True}])
def test_the_stack_of_a_hugging_face_model_has_its_norm(change: dict[str, Any], tmp_path: Path) -> None:
    """Always there, never with a bias."""
    case = BY_NAME["hf-plain"]
    whole = Case("hf-biased", "xlstm_hf", {**case.config, **change})
    folder = make_checkpoint(whole, tmp_path / "checkpoint")
    configured(folder, lambda c: c | {"add_out_norm": False})
    stack, model = open_checkpoint(folder, prefix="backbone."), open_checkpoint(folder)
    assert stack.spec.blocks == model.spec.blocks
    assert stack.spec.norm == model.spec.norm


def test_the_wrapper_s_two_matrices_are_two(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Whoever stores both, different, did not tie them."""
    source = checkpoint_of(BY_NAME["lm-hf-tied"])
    tensors = tensors_of(source)
    embedding = next(t for name, t in tensors.items() if name.endswith("token_embedding.weight"))
    folder = rewritten(source, tmp_path / "checkpoint", tensors | {"lm_head.weight": embedding + 1})
    configured(folder, lambda c: c | {"_xlstm_config": c["_xlstm_config"] | {"tie_weights": False}})
    assert not open_checkpoint(folder).spec.tied
