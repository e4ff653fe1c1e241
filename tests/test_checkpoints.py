"""Checkpoints as people have them: prefixes, wrappers, larger nets, training settings; each equal to the official package.

Every accepted form is read, run in float64 and held against the official model's own outputs for the same weights.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

import xlstm_edge
from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.reference import run_reference
from xlstm_edge_runtime import load
from xlstm_edge_runtime.errors import CheckpointError

from .command import Command, assert_one_sentence
from .conftest import BY_NAME, sequence_for
from .oracles.cases import Case, large
from .oracles.models import KERNELS, Tensors
from .oracles.official import make_checkpoint, official_parallel, official_step
from .oracles.randomness import randomize

CLOSE = 2e-5  # of the range: float32 official steps against float64
LENGTH = 20
CheckpointOf = Callable[[Case], Path]
Change = Callable[[Tensors], Any]
Outputs = NDArray[np.floating[Any]]


@cache
def official(name: str, folder: Path) -> Outputs:
    case = BY_NAME[name]
    sequence = sequence_for(case, LENGTH)
    step = official_step(case, folder, sequence)
    outputs = official_parallel(case, folder, sequence) if step is None else step
    assert outputs is not None
    return outputs


def tensors_of(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def rewritten(source: Path, target: Path, content: object, file: str = "model.ckpt") -> Path:
    """The config of `source` beside a torch file (or safetensors) with `content`."""
    target.mkdir(parents=True)
    for config in source.glob("config.*"):
        shutil.copy(config, target)
    if file.endswith(".safetensors"):
        assert isinstance(content, dict)
        save_file({name: tensor.clone() for name, tensor in content.items()}, target / file, {"format": "pt"})
    else:
        torch.save(content, target / file)
    return target


def configured(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    path = next(p for p in folder.iterdir() if p.name in ("config.yaml", "config.json"))
    value = change(yaml.safe_load(path.read_text()))
    path.write_text(json.dumps(value) if path.suffix == ".json" else yaml.safe_dump(value))
    return folder


def assert_equal_to_official(checkpoint: Checkpoint, expected: Outputs, case: Case) -> None:
    came = run_reference(checkpoint.spec, checkpoint.weights, sequence_for(case, LENGTH)).outputs
    assert np.abs(came - expected).max() <= CLOSE * np.ptp(expected)


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def inside(name: str, part: str, tensors: Tensors) -> Tensors:
    """One module of the model wrapped: `blocks.0.x` -> `blocks.0._orig_mod.x`."""
    return {key.replace(name, f"{name}{part}.", 1): tensor for key, tensor in tensors.items()}


X, OTHER = torch.ones(3, 3), torch.zeros(5)
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(64, 64)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
# name -> (case, what the torch file holds, fragments of the notes)
FORMS: dict[str, tuple[str, Change, list[str]]] = {
    "lightning": (
        "a1-mixed",
        lambda t: {
            "epoch": 3,
            "global_step": 7,
            "pytorch-lightning_version": "2.4",
            "state_dict": under("model.", t) | {"loss_fn.weight": OTHER},
            "optimizer_states": [OPTIMIZER],
            "lr_schedulers": [{}],
            "hyper_parameters": {"lr": 0.1},
            "callbacks": {"x": {"best": X}},
        },
        ["key 'state_dict'", "prefix 'model.'", "left out, outside the exported model: loss_fn.weight"],
    ),
    "loss of the model itself": (
        "a1-mixed",
        lambda t: t | {"loss_fn.weight": OTHER},
        ["ignored tensors", "loss_fn.weight"],
    ),
    "ddp": ("a1-mixed", lambda t: under("module.", t), ["wrapper names", "module"]),
    "compile of ddp": ("b-plain", lambda t: under("_orig_mod.module.", t), ["_orig_mod, module"]),
    "ddp of compile": ("a3-mixed", lambda t: under("module._orig_mod.", t), ["_orig_mod, module"]),
    "peft merged": ("b-plain", lambda t: under("base_model.model.", t), ["prefix 'base_model.model.'"]),
    "net": ("a1-mixed", lambda t: under("net.", t), ["prefix 'net.'"]),
    "odd prefix": ("a1-mixed", lambda t: under("my.own_1.thing.", t), ["prefix 'my.own_1.thing.'"]),
    "lightning of compile of ddp": (
        "a1-mixed",
        lambda t: {"state_dict": under("model._orig_mod.module.", t)},
        ["key 'state_dict'", "prefix 'model.'"],
    ),
    "deepspeed": (
        "a1-mixed",
        lambda t: {"module": under("module.", t), "optimizer": OPTIMIZER, "ds_config": {}},
        ["key 'module'"],
    ),
    "model and optimizer": (
        "a1-mixed",
        lambda t: {"model": t, "optimizer": OPTIMIZER, "epoch": 1, "args": argparse.Namespace(lr=1)},
        ["key 'model'"],
    ),
    "model_state_dict": ("b-plain", lambda t: {"model_state_dict": t, "loss": 0.5}, ["key 'model_state_dict'"]),
    "net key": ("a3-mixed", lambda t: {"net": t, "acc": 0.5}, ["key 'net'"]),
    "ema only": (
        "a1-mixed",
        lambda t: {"ema": under("module.", t) | {"n_averaged": torch.tensor(3)}},
        ["key 'ema'", "n_averaged"],
    ),
    "nested key": ("a1-mixed", lambda t: {"checkpoint": {"model": t}}, ["key 'checkpoint/model'"]),
    "integer buffers": (
        "a1-mixed",
        lambda t: (
            under("model.", t) | {"model.position_ids": torch.arange(9), "bn.num_batches_tracked": torch.tensor(4)}
        ),
        ["ignored tensors and entries: model.position_ids", "left out", "bn.num_batches_tracked"],
    ),
    "entries that are no tensors": (
        "a1-mixed",
        lambda t: t | {"epoch": 3, "config": {"a": 1}},
        ["ignored tensors", "epoch, config"],
    ),
    "compiled blocks": ("a1-mixed", lambda t: inside("blocks.1.", "_orig_mod", t), ["_orig_mod"]),
    "sharded blocks": ("b-plain", lambda t: inside("blocks.0.", "_fsdp_wrapped_module", t), ["_fsdp_wrapped_module"]),
    "parallel stack": ("a1-mixed", lambda t: inside("xlstm_block_stack.", "module", t), ["module"]),
    "stack in a larger net": (
        "a3-mixed",
        lambda t: under("xlstm_stack.", t) | {"input_proj.weight": X, "fc.weight": X, "fc.bias": OTHER},
        ["prefix 'xlstm_stack.'", "left out, outside the exported model: fc.bias, fc.weight, input_proj.weight"],
    ),
    "stack in a classifier": (
        "a3-slstm",
        lambda t: under("encoder.xlstm_block_stack.", t) | {"embedding.weight": X, "classifier.weight": X},
        ["prefix 'encoder.xlstm_block_stack.'", "classifier.weight"],
    ),
    "hugging face under a prefix": ("c-plain", lambda t: under("model.", t), ["prefix 'model.'"]),
    "wrapper's own head": (
        "a1-mixed",
        lambda t: {name if name == "lm_head.weight" else "model." + name: x for name, x in t.items()},
        ["prefix 'model.'"],
    ),
    "wrapped and ddp": ("a2-tied", lambda t: under("module.", t), ["prefix 'model.'", "module"]),
    "wrapper of the tied form without its prefix": (
        "a2-mlstm",
        lambda t: {n.removeprefix("model."): x for n, x in t.items()},
        [],
    ),
    "causal mask": (
        "a1-mixed",
        lambda t: t | {"xlstm_block_stack.blocks.0.xlstm.mlstm_cell.causal_mask": torch.ones(9, 9) > 0},
        ["causal_mask"],
    ),
}


@pytest.mark.parametrize("file", ["model.ckpt", "pytorch_model.bin"])
@pytest.mark.parametrize("name", FORMS)
def test_forms_of_files(name: str, file: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    case_name, change, fragments = FORMS[name]
    source = checkpoint_of(BY_NAME[case_name])
    folder = rewritten(source, tmp_path / "checkpoint", change(tensors_of(source)), file)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec == open_checkpoint(source).spec
    assert_equal_to_official(checkpoint, official(case_name, source), BY_NAME[case_name])
    notes = "\n".join(checkpoint.notes.lines())
    assert all(fragment in notes for fragment in fragments), notes


@pytest.mark.parametrize("name", [n for n, form in FORMS.items() if "key" not in str(form[2])])
def test_the_same_forms_as_safetensors(name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    case_name, change, _ = FORMS[name]
    source = checkpoint_of(BY_NAME[case_name])
    content = {key: value for key, value in change(tensors_of(source)).items() if isinstance(value, torch.Tensor)}
    folder = rewritten(source, tmp_path / "checkpoint", content, "model.safetensors")
    assert_equal_to_official(open_checkpoint(folder), official(case_name, source), BY_NAME[case_name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_under_a_prefix(dtype: str, tmp_path: Path) -> None:
    case = BY_NAME["a1-mixed"]
    source = make_checkpoint(case, tmp_path / "source", dtype)
    folder = rewritten(source, tmp_path / "checkpoint", {"model": under("module.", tensors_of(source))})
    assert_equal_to_official(open_checkpoint(folder), official_step(case, source, sequence_for(case, LENGTH)), case)  # type: ignore[arg-type]  # runs


def two_models(tensors: Tensors) -> Tensors:
    return {name: tensor * 0.5 for name, tensor in tensors.items()}


# name -> (what the file holds, fragment of the refusal, keyword of the choice)
CHOICES: dict[str, tuple[Change, str, dict[str, str]]] = {
    "model and ema": (lambda t: {"ema": t, "model": two_models(t)}, "came ema, model", {"weights": "ema"}),
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
    source = checkpoint_of(BY_NAME["a1-mixed"])
    folder = rewritten(source, tmp_path / "checkpoint", change(tensors_of(source)))
    option = f"--{next(iter(choice))}"
    refused = command("export", folder, "-o", tmp_path / "bundle")
    assert_one_sentence(refused, 2)
    assert fragment in refused.err and option in refused.err
    assert_one_sentence(command("export", folder, "-o", tmp_path / "bundle", option, "nonsense"), 2)
    checkpoint = open_checkpoint(folder, **choice)
    assert_equal_to_official(checkpoint, official("a1-mixed", source), BY_NAME["a1-mixed"])


def test_of_two_files_one_must_be_named(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    source = checkpoint_of(BY_NAME["a1-mixed"])
    tensors = tensors_of(source)
    folder = rewritten(source, tmp_path / "checkpoint", {"model": tensors, "ema": two_models(tensors)}, "best.pt")
    torch.save(two_models(tensors), folder / "last.pt")
    result = command("inspect", folder)
    assert_one_sentence(result, 2)
    assert "best.pt, last.pt" in result.err and "--weights" in result.err
    checkpoint = open_checkpoint(folder, weights="best.pt:model")
    assert_equal_to_official(checkpoint, official("a1-mixed", source), BY_NAME["a1-mixed"])
    assert "weight files not read: last.pt" in checkpoint.notes.lines()


def test_a_trainer_s_folder(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["a1-mixed"])
    folder = rewritten(source, tmp_path / "checkpoint", tensors_of(source), "pytorch_model.bin")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "scaler.pt", "rng_state_0.pth"):
        torch.save(OPTIMIZER, folder / name)
    assert_equal_to_official(open_checkpoint(folder), official("a1-mixed", source), BY_NAME["a1-mixed"])
    shutil.copy(source / "model.safetensors", folder)  # the hub often has both
    assert open_checkpoint(folder).notes.unread_files == ("pytorch_model.bin",)


def test_shards_without_an_index(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source, folder = checkpoint_of(BY_NAME["b-plain"]), tmp_path / "checkpoint"
    tensors = tensors_of(source)
    names = sorted(tensors)
    for part in (0, 1):
        content = {name: tensors[name] for name in names[part::2]}
        rewritten(source, tmp_path / str(part), content, "model.safetensors")
        folder.mkdir(exist_ok=True)
        shutil.move(tmp_path / str(part) / "model.safetensors", folder / f"model-{part + 1:05d}-of-00002.safetensors")
    shutil.copy(source / "config.yaml", folder)
    assert_equal_to_official(open_checkpoint(folder), official("b-plain", source), BY_NAME["b-plain"])
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        open_checkpoint(folder)


def test_the_hub_s_cache(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    for name in ("c-plain", "c-one-head"):
        source, hub = checkpoint_of(BY_NAME[name]), tmp_path / name
        snapshot, blobs = hub / "snapshots" / "0123abc", hub / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        for index, path in enumerate(sorted(source.iterdir())):
            shutil.copy(path, blobs / f"{index:064x}")
            (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / f"{index:064x}")
        assert_equal_to_official(open_checkpoint(snapshot), official(name, source), BY_NAME[name])


def test_one_part_of_a_language_model(checkpoint_of: CheckpointOf) -> None:
    checkpoint = open_checkpoint(checkpoint_of(BY_NAME["a1-mixed"]), prefix="xlstm_block_stack")
    assert checkpoint.spec.family == "A3" and checkpoint.spec.vocab_size is None
    assert checkpoint.notes.left_out == ("lm_head.weight", "token_embedding.weight")
    for name in ("b-plain", "c-plain"):
        checkpoint = open_checkpoint(checkpoint_of(BY_NAME[name]), prefix="backbone")
        assert checkpoint.spec.family == "B3" and checkpoint.spec.vocab_size is None
        assert len(checkpoint.notes.left_out) == 2


def test_a_file_is_chosen_by_its_name(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["c-one-head"])  # shards and their index
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    tensors = tensors_of(source)
    save_file(two_models(tensors), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors\.index\.json, model\.safetensors; name one with --weights"
    ):
        open_checkpoint(folder)
    checkpoint = open_checkpoint(folder, weights="model.safetensors.index.json")
    assert_equal_to_official(checkpoint, official("c-one-head", source), BY_NAME["c-one-head"])
    assert checkpoint.notes.unread_files == ("model.safetensors",)
    assert len(checkpoint.files) > 2
    with pytest.raises(CheckpointError, match="came model"):
        open_checkpoint(folder, weights="../secret.safetensors")
    index = open_checkpoint(folder / "model.safetensors.index.json")
    assert index.files == checkpoint.files


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
    case = Case(name, "B3", {"embedding_dim": STACKS[name]["embedding_dim"]})
    sequence, state, outputs = sequence_for(case, LENGTH), None, []
    with torch.no_grad():
        for vector in torch.from_numpy(sequence):
            output, state = model(vector[None, None], state)
            outputs.append(output.reshape(-1).numpy())
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec.family == "B3" and checkpoint.spec.vocab_size is None
    assert_equal_to_official(checkpoint, np.stack(outputs), case)
    xlstm_edge.export(folder, tmp_path / "bundle", chunk=8)
    checks = xlstm_edge.verify(tmp_path / "bundle", against=folder)
    assert any(check.name == "reference, chunk" for check in checks)
    session = load(tmp_path / "bundle", threads=1).session()
    came = np.stack([session.step(vector).copy() for vector in sequence])
    assert np.abs(came - np.stack(outputs)).max() <= 1e-4 * np.ptp(outputs)


@pytest.mark.parametrize("name", ["a1-mixed", "a1-all-slstm", "a1-three-heads", "a3-slstm"])
def test_the_open_layout_of_the_recurrent_kernel(name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """(H, DH, 4, DH) and (H, 4, DH), by the package's own conversion from either backend's layout."""
    from xlstm.blocks.slstm.cell import sLSTMCell_cuda, sLSTMCell_vanilla, sLSTMCellConfig

    source = checkpoint_of(BY_NAME[name])
    tensors = tensors_of(source)
    for kernel in [key for key in tensors if key.endswith("_recurrent_kernel_")]:
        heads, rows, columns = tensors[kernel].shape
        config = sLSTMCellConfig(hidden_size=heads * min(rows, columns), num_heads=heads, bias_init="standard")
        cell = sLSTMCell_vanilla(config) if rows > columns else sLSTMCell_cuda(config, skip_backend_init=True)
        bias = kernel.replace("_recurrent_kernel_", "_bias_")
        tensors[kernel] = cell._recurrent_kernel_int2ext(tensors[kernel]).contiguous()
        tensors[bias] = cell._bias_int2ext(tensors[bias]).contiguous()
        assert tensors[kernel].ndim == 4 and tensors[bias].ndim == 3
    folder = rewritten(source, tmp_path / "checkpoint", tensors, "model.safetensors")
    assert_equal_to_official(open_checkpoint(folder), official(name, source), BY_NAME[name])


# name -> (case, config -> config, fragments of the notes)
CONFIGS: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]], list[str]]] = {
    "training keys": (
        "a1-mixed",
        lambda c: (
            c
            | {
                "lr": 1e-3,
                "learning_rate": 3,
                "batch_size": 8,
                "epochs": 3,
                "max_epochs": 2,
                "seed": 1,
                "optimizer": {"name": "adam"},
                "scheduler": "cosine",
                "wandb_project": "x",
                "warmup_steps": 3,
                "weight_decay": 0.1,
                "grad_clip": 1.0,
                "num_workers": 4,
                "dataset_path": "/x",
                "use_rope": False,
                "torch_compile": True,
                "loss_scale": 128,
                "eval_every": 3,
                "emb_dropout": 0.1,
            }
        ),
        ["ignored settings, which cannot change the outputs: batch_size, dataset_path"],
    ),
    "references": (
        "a1-mixed",
        lambda c: {
            "sizes": {"d": 64, "heads": [4], "blocks": 3},
            "out": "${oc.env:HOME}/runs",
            "model": c
            | {
                "embedding_dim": "${sizes.d}",
                "num_blocks": "${._count}",
                "_count": "${sizes.blocks}",
                "run_name": "${now:%Y}",
                "mlstm_block": {"mlstm": {"num_heads": "${sizes.heads[0]}"}},
            },
        },
        ["section 'model'", "run_name"],
    ),
    "settings that are only referred to": (
        "a1-mixed",
        lambda c: (
            c | {"d_model": 64, "sizes": {"depth": 3}, "embedding_dim": "${d_model}", "num_blocks": "${sizes.depth}"}
        ),
        [],
    ),
    "references inside what is referred to": (
        "a1-mixed",
        lambda c: {
            "model": c | {"embedding_dim": "${sizes.width}", "num_blocks": "${alias.depth}", "seed": 9},
            "sizes": {"width": "${.seed}", "seed": 64, "depth": 3},
            "alias": "${sizes}",
        },
        ["section 'model'"],
    ),
    "a section that is a reference": (
        "a1-mixed",
        lambda c: {"model": "${zoo.small}", "zoo": {"small": c | {"num_blocks": "${.seed}", "seed": 3}}, "seed": 9},
        ["section 'model'"],
    ),
    "the anchor of a merge": (
        "a1-mixed",
        lambda c: c | {"base": {"num_heads": 4}, "defaults_of": {"embedding_dim": 64}},
        ["base, defaults_of"],
    ),
    "hydra": (
        "b-plain",
        lambda c: {"model": c, "trainer": {"max_steps": 3}, "data": {"attention_mask": True}, "seed": 3},
        ["section 'model'", "data, seed, trainer"],
    ),
    "xlstm_cfg": (
        "a1-mixed",
        lambda c: {
            "architectures": ["X"],
            "model_type": "xlstm",
            "torch_dtype": "float32",
            "xlstm_cfg": c | {"_block_map": "0,1,0", "dtype": "bfloat16"},
        },
        ["section 'xlstm_cfg'"],
    ),
    "deep wrapper": ("a1-mixed", lambda c: {"config": {"model_config": c}, "lr": 1}, ["section 'config.model_config'"]),
    "wrapper as a reference": ("a1-mixed", lambda c: {"model": "${zoo.small}", "zoo": {"small": c}}, ["section"]),
    "converter": (
        "b-plain",
        lambda c: (
            c
            | {
                "chunkwise_kernel": "chunkwise--triton_xl_chunk",
                "step_kernel": "triton",
                "forward_backend_name": "chunkwise--triton_limit_chunk",
                "step_backend_name": "triton_fused",
                "add_qk_norm": False,
                "add_post_norm": False,
                "cell_norm_eps": 1e-6,
                "head_dim": 16,
                "igate_bias_init_range": -10.0,
                "mlstm_round_up_to_multiple_of": 64,
                "add_forward_backend_padding": False,
            }
        ),
        ["forward_backend_name"],
    ),
    "hugging face of 2024": (
        "c-plain",
        lambda c: (
            c
            | {
                "torch_dtype": "float32",
                "use_cache": True,
                "_name_or_path": "/x",
                "max_position_embeddings": 2048,
                "force_bos_token_insert": True,
                "cell_norm_eps": 1e-06,
                "add_embedding_dropout": False,
                "transformers_version": "4.47.0.dev0",
                "hidden_act": "silu",
            }
        ),
        ["max_inference_chunksize, model_type"],
    ),
    "dates and notes": ("a1-mixed", lambda c: c | {"date": "2024-01-01", "notes": "é\x1b[31m"}, ["date, notes"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_forms_of_configs(name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    case_name, change, fragments = CONFIGS[name]
    source = checkpoint_of(BY_NAME[case_name])
    checkpoint = open_checkpoint(configured(Path(shutil.copytree(source, tmp_path / "checkpoint")), change))
    assert checkpoint.spec == open_checkpoint(source).spec
    assert_equal_to_official(checkpoint, official(case_name, source), BY_NAME[case_name])
    notes = "\n".join(checkpoint.notes.lines())
    assert all(fragment in notes for fragment in fragments), notes


def test_a_config_s_other_settings_in_the_wrapped_form(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["a2-tied"]), tmp_path / "checkpoint"))
    configured(folder, lambda c: c | {"_xlstm_config": c["_xlstm_config"] | {"torch_dtype": "float32", "lr": 1}})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec.tied and "torch_dtype" in checkpoint.notes.ignored_settings


def test_an_untied_head_in_a_lightning_file_is_exported(
    checkpoint_of: CheckpointOf, tmp_path: Path, command: Command
) -> None:
    source = checkpoint_of(BY_NAME["a1-mixed"])
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
    session, expected = load(bundle, threads=1).session(), official("a1-mixed", source)
    came = np.stack([session.step(int(token)).copy() for token in sequence_for(BY_NAME["a1-mixed"], LENGTH)])
    assert np.abs(came - expected).max() <= 1e-4 * np.ptp(expected)


def test_every_command_takes_the_same_choice(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    source = checkpoint_of(BY_NAME["a1-mixed"])
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
    "name", ["a1-mixed", "a2-tied", "b-plain", "b-fused", "c-plain", "c-tied", "c-odd-widths", "c-old-names"]
)
def test_bench_compares_or_says_why_not(
    name: str, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command
) -> None:
    source, bundle = checkpoint_of(BY_NAME[name]), tmp_path / "bundle"
    xlstm_edge.export(source, bundle)
    result = command("bench", bundle, "--compare", source, "--prompt", 2, "--generate", 2, "--repeat", 1)
    if name == "c-odd-widths":  # its cache rounds widths up to multiples of 64
        assert_one_sentence(result, 2)
        assert "its own package" in result.err
    else:
        assert result.code == 0, result.err


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_that_leave_the_folder_are_refused(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["a1-mixed"])
    for name in ("config.yaml", "model.safetensors"):
        folder = Path(shutil.copytree(source, tmp_path / name.partition(".")[0]))
        (folder / name).unlink()
        (folder / name).symlink_to(source / name)
        with pytest.raises(CheckpointError, match="leaves it"):
            open_checkpoint(folder)


def test_two_configs_must_agree(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["a1-mixed"])
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for other in ({"model_type": "xlstm", "bos_token_id": 1}, {"xlstm_cfg": config}):
        (folder / "config.json").write_text(json.dumps(other))
        assert_equal_to_official(open_checkpoint(folder), official("a1-mixed", source), BY_NAME["a1-mixed"])
    (folder / "config.json").write_text(json.dumps({"xlstm_cfg": config | {"tie_weights": False}}))
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"tie_weights": True}))
    with pytest.raises(CheckpointError, match="different tie_weights"):
        open_checkpoint(folder)
    (folder / "config.yaml").write_text("author: me\n")  # the one that describes the model is taken
    assert open_checkpoint(folder).files[0].name == "config.json"


@pytest.mark.parametrize("name", ["a1-one-head", "a1-selu", "a1-sigmoid", "c-tied"])
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
    source = checkpoint_of(BY_NAME["c-plain"])
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    configured(folder, lambda config: config | {"tie_word_embeddings": True})
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.spec.tied
    assert_equal_to_official(checkpoint, official("c-plain", source), BY_NAME["c-plain"])


def test_parameters_and_views_are_tensors_too(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["a3-mixed"])
    tensors = tensors_of(source)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    views, start = {}, 0
    for name, tensor in tensors.items():
        views[name] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    turned = {name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    for index, content in enumerate((views, parameters, turned)):
        folder = rewritten(source, tmp_path / str(index), {"model": content})
        assert_equal_to_official(open_checkpoint(folder), official("a3-mixed", source), BY_NAME["a3-mixed"])


AROUND: dict[str, tuple[str, Change]] = {
    "a bias of the head": ("a1-mixed", lambda t: {"lm_head.bias": torch.ones(97)}),
    "positions": ("a1-mixed", lambda t: {"pos_embedding.weight": torch.ones(16, 64)}),
    "a norm before": ("a1-mixed", lambda t: {"norm.weight": torch.ones(64)}),
    "another head of a tied model": ("c-tied", lambda t: {"head.weight": torch.ones(97, 64)}),
    "a classifier of another name": ("c-tied", lambda t: {"cls_head.weight": torch.ones(2, 64)}),
    "a part of any name": ("b-plain", lambda t: {"mixer.weight": torch.ones(64, 64)}),
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
        folder = Path(shutil.copytree(checkpoint_of(BY_NAME["a2-tied"]), tmp_path / section))
        configured(
            folder, lambda c, section=section, top=top: top | {section: c["_xlstm_config"] | {"tie_weights": False}}
        )  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
            open_checkpoint(folder)


@pytest.mark.parametrize("beside", [{"rope": {"enabled": True}}, {"positional": {"type": "rope"}}, {"rotary": True}])
def test_sections_beside_a_language_model_count(beside: Any, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["a1-mixed"]), tmp_path / "checkpoint"))
    config = yaml.safe_load(next(folder.glob("config.*")).read_text())
    configured(folder, lambda c: {"model": config} | beside)
    with pytest.raises(CheckpointError, match="another architecture"):
        open_checkpoint(folder)
    configured(folder, lambda c: {"model": config, "rope": {"enabled": False}})
    assert open_checkpoint(folder).spec.family == "A1"


@pytest.mark.parametrize("name", ["a3-mixed", "stack"])
def test_a_flat_config_of_the_net_around_a_stack(name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Settings of the outer net are named and ignored; what would change the stack is refused all the same."""
    folder = tmp_path / "checkpoint"
    outer = {"horizon": 24, "pred_len": 96, "enc_in": 7, "c_out": 7, "patch_len": 16, "quantiles": [0.1, 0.9]}
    if name == "stack":
        source = checkpoint_of(BY_NAME["b-plain"])
        tensors = {k: v for k, v in tensors_of(source).items() if k.startswith("backbone.")}
    else:
        source = checkpoint_of(BY_NAME[name])
        tensors = tensors_of(source)
    rewritten(source, folder, under("net.core.", tensors) | {"fc.weight": torch.ones(7, 32)})
    configured(folder, lambda c: c | outer)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec.vocab_size is None
    assert set(outer) <= set(checkpoint.notes.ignored_settings)
    configured(folder, lambda c: c | {"rope_theta": 1e4})
    with pytest.raises(CheckpointError, match="another architecture"):
        open_checkpoint(folder)
    (folder / "model.ckpt").unlink()
    configured(folder, lambda c: {key: value for key, value in c.items() if key not in ("rope_theta", "vocab_size")})
    torch.save(tensors if name != "stack" else under("", tensors), folder / "model.ckpt")
    with pytest.raises(CheckpointError, match="may change what the model"):  # alone, nothing else can have said it
        open_checkpoint(folder)


def test_the_stack_of_a_hugging_face_model_with_that_form_s_names(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """What the advice for a classifier leads to: num_hidden_layers says as much as num_blocks."""
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["c-plain"]), tmp_path / "checkpoint"))
    configured(folder, lambda c: {key: value for key, value in c.items() if key != "num_blocks"})
    checkpoint = open_checkpoint(folder, prefix="backbone.")
    assert checkpoint.spec.family == "B3"
    assert len(checkpoint.spec.blocks) == len(open_checkpoint(folder).spec.blocks)
    configured(folder, lambda c: c | {"num_hidden_layers": 7, "num_blocks": None})
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        open_checkpoint(folder, prefix="backbone.")


# Settings that no tensor shows, beside the model's section or flat in the config of the net around it.
BESIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "an activation": ("a1-mixed", {"act_fn": "relu"}),
    "an activation by another name": ("a1-mixed", {"ff_activation": "relu"}),
    "in a section": ("a1-mixed", {"feedforward": {"act_fn": "relu"}}),
    "of a stack": ("a3-mixed", {"activation": "relu"}),
    "a cap": ("b-plain", {"gate_soft_cap": 5.0}),
    "no cap": ("b-plain", {"cell": {"norm_eps": 1e-3}}),
    "a cap of the logits": ("b-plain", {"output_logit_soft_cap": 5.0}),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_model_s_settings_is_not_guessed(
    name: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    case, beside = BESIDE[name]
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME[case]), tmp_path / "checkpoint"))
    stated = {"act_fn", "gate_soft_cap", "norm_eps", "output_logit_soft_cap"}

    def without(value: Any) -> Any:
        return {k: without(v) for k, v in value.items() if k not in stated} if isinstance(value, dict) else value

    config = yaml.safe_load(next(folder.glob("config.*")).read_text())
    for more, message in (
        (beside, "among the model's own settings"),
        ({"optimizer": {"norm_eps": 3}, "act_fn": "gelu"}, ""),
    ):
        configured(folder, lambda _, more=more: {"model": without(config)} | more)  # type: ignore[misc]
        if message:
            with pytest.raises(CheckpointError, match=message):
                open_checkpoint(folder)
        else:
            assert open_checkpoint(folder).spec.width
    if case == "a3-mixed":  # flat
        configured(folder, lambda _: without(config) | beside | {"horizon": 3})
        source = tensors_of(folder)
        save_file(under("core.", source) | {"fc.weight": torch.ones(7, 32)}, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="among the model's own settings"):
            open_checkpoint(folder)
        configured(folder, lambda _: config | {"horizon": 3})
        assert open_checkpoint(folder).notes.left_out == ("fc.weight",)


def test_only_one_end_of_a_language_model_is_not_a_stack(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Who wants the stack of float vectors names its prefix, as the message says."""
    ends = {"c-plain": "backbone.embeddings.weight", "b-plain": "embedding.weight"}
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
    source = checkpoint_of(BY_NAME["c-plain"])
    bare = {k.replace("backbone.", "xlstm."): v for k, v in tensors_of(source).items() if k.startswith("backbone.")}
    folder = rewritten(source, tmp_path / "net", bare | {"fc.weight": torch.ones(3, 64)})
    with pytest.raises(CheckpointError, match=r"--prefix xlstm\."):
        open_checkpoint(folder)
    assert open_checkpoint(folder, prefix="xlstm.").notes.left_out == ("fc.weight", "xlstm.embeddings.weight")


def test_the_wrapper_that_ties_keeps_the_embedding(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["a2-tied"])
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
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["a1-mixed"]), tmp_path / "checkpoint"))
    configured(folder, lambda c: c | {"tie_weights": True})
    with pytest.raises(CheckpointError, match="as one matrix"):
        open_checkpoint(folder)


OUTER = {
    "use_norm": 1, "embed": "timeF", "input_embed_dim": 3, "scaler": "standard", "normalize": True, "residual": True,
    "flip_prob": 0.5, "revin": True, "max_norm": 1.0, "clip": 1.0, "non_embedding_params": 1234,
}  # fmt: skip


@pytest.mark.parametrize("case", ["a3-mixed", "b-plain"])
def test_a_net_around_a_stack_has_settings_of_its_own(case: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME[case])
    tensors = {name: t for name, t in tensors_of(source).items() if not name.startswith(("embedding.", "lm_head."))}
    folder = rewritten(source, tmp_path / "checkpoint", under("net.", tensors) | {"fc.weight": torch.ones(3, 64)})
    wanted = open_checkpoint(source, prefix=None if case == "a3-mixed" else "backbone.")
    config = yaml.safe_load(next(source.glob("config.*")).read_text())
    for change in (config | OUTER, {"xlstm": config} | OUTER):
        configured(folder, lambda _, change=change: change)  # type: ignore[misc]  # mypy: a lambda's default
        opened = open_checkpoint(folder)
        assert opened.spec.blocks == wanted.spec.blocks
        assert "use_norm" in opened.notes.ignored_settings
    for inside in ({"use_rope": True}, {"bidirectional": True}, {"qkv_lora": 4}):
        configured(folder, lambda _, inside=inside: config | inside)  # type: ignore[misc]  # the same
        with pytest.raises(CheckpointError, match="not supported"):
            open_checkpoint(folder)


def test_blocks_without_both_ends_are_not_taken_for_a_stack(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    for case, stem in (("a1-mixed", "xlstm_block_stack."), ("b-plain", "backbone.")):
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
    case = BY_NAME["c-plain"]
    whole = Case("c-biased", "C", {**case.config, **change})
    folder = make_checkpoint(whole, tmp_path / "checkpoint")
    configured(folder, lambda c: c | {"add_out_norm": False})
    stack, model = open_checkpoint(folder, prefix="backbone."), open_checkpoint(folder)
    assert stack.spec.blocks == model.spec.blocks
    assert stack.spec.norm == model.spec.norm


def test_arguments_of_trainers_are_ignored(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """All of transformers', as they are when nobody sets them, and a few of others."""
    arguments = {field.name: "x" for field in dataclasses.fields(TrainingArguments)}
    others = {"limit_train_batches": 1.0, "max_iters": 10, "T_max": 3, "shuffle": True, "monitor": "val_loss"}
    source = checkpoint_of(BY_NAME["a1-mixed"])
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    configured(folder, lambda c: arguments | others | c)
    opened = open_checkpoint(folder)
    assert opened.spec == open_checkpoint(source).spec
    assert {"adam_beta1", "T_max"} <= set(opened.notes.ignored_settings)


def test_the_wrapper_s_two_matrices_are_two(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Whoever stores both, different, did not tie them."""
    source = checkpoint_of(BY_NAME["a2-tied"])
    tensors = tensors_of(source)
    embedding = next(t for name, t in tensors.items() if name.endswith("token_embedding.weight"))
    folder = rewritten(source, tmp_path / "checkpoint", tensors | {"lm_head.weight": embedding + 1})
    configured(folder, lambda c: c | {"_xlstm_config": c["_xlstm_config"] | {"tie_weights": False}})
    assert not open_checkpoint(folder).spec.tied
