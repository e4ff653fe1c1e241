"""Configs as trainers leave them: sections, references, settings that are ignored or refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import TrainingArguments

from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_runtime.errors import CheckpointError

from ...conftest import BY_NAME
from .forms import CheckpointOf, assert_equal_to_official, configured, official, rewritten, tensors_of, under

# name -> (case, config -> config, fragments of the notes)
CONFIGS: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]], list[str]]] = {
    "training keys": (
        "lm-mixed",
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
        "lm-mixed",
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
        "lm-mixed",
        lambda c: (
            c | {"d_model": 64, "sizes": {"depth": 3}, "embedding_dim": "${d_model}", "num_blocks": "${sizes.depth}"}
        ),
        [],
    ),
    "references inside what is referred to": (
        "lm-mixed",
        lambda c: {
            "model": c | {"embedding_dim": "${sizes.width}", "num_blocks": "${alias.depth}", "seed": 9},
            "sizes": {"width": "${.seed}", "seed": 64, "depth": 3},
            "alias": "${sizes}",
        },
        ["section 'model'"],
    ),
    "a section that is a reference": (
        "lm-mixed",
        lambda c: {"model": "${zoo.small}", "zoo": {"small": c | {"num_blocks": "${.seed}", "seed": 3}}, "seed": 9},
        ["section 'model'"],
    ),
    "the anchor of a merge": (
        "lm-mixed",
        lambda c: c | {"base": {"num_heads": 4}, "defaults_of": {"embedding_dim": 64}},
        ["base, defaults_of"],
    ),
    "hydra": (
        "large-plain",
        lambda c: {"model": c, "trainer": {"max_steps": 3}, "data": {"attention_mask": True}, "seed": 3},
        ["section 'model'", "data, seed, trainer"],
    ),
    "xlstm_cfg": (
        "lm-mixed",
        lambda c: {
            "architectures": ["X"],
            "model_type": "xlstm",
            "torch_dtype": "float32",
            "xlstm_cfg": c | {"_block_map": "0,1,0", "dtype": "bfloat16"},
        },
        ["section 'xlstm_cfg'"],
    ),
    "deep wrapper": ("lm-mixed", lambda c: {"config": {"model_config": c}, "lr": 1}, ["section 'config.model_config'"]),
    "wrapper as a reference": ("lm-mixed", lambda c: {"model": "${zoo.small}", "zoo": {"small": c}}, ["section"]),
    "converter": (
        "large-plain",
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
        "hf-plain",
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
    "dates and notes": ("lm-mixed", lambda c: c | {"date": "2024-01-01", "notes": "é\x1b[31m"}, ["date, notes"]),
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
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["lm-hf-tied"]), tmp_path / "checkpoint"))
    configured(folder, lambda c: c | {"_xlstm_config": c["_xlstm_config"] | {"torch_dtype": "float32", "lr": 1}})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec.tied and "torch_dtype" in checkpoint.notes.ignored_settings


def test_two_configs_must_agree(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["lm-mixed"])
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for other in ({"model_type": "xlstm", "bos_token_id": 1}, {"xlstm_cfg": config}):
        (folder / "config.json").write_text(json.dumps(other))
        assert_equal_to_official(open_checkpoint(folder), official("lm-mixed", source), BY_NAME["lm-mixed"])
    (folder / "config.json").write_text(json.dumps({"xlstm_cfg": config | {"tie_weights": False}}))
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"tie_weights": True}))
    with pytest.raises(CheckpointError, match="different tie_weights"):
        open_checkpoint(folder)
    (folder / "config.yaml").write_text("author: me\n")  # the one that describes the model is taken
    assert open_checkpoint(folder).files[0].name == "config.json"


@pytest.mark.parametrize("beside", [{"rope": {"enabled": True}}, {"positional": {"type": "rope"}}, {"rotary": True}])
def test_sections_beside_a_language_model_count(beside: Any, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "checkpoint"))
    config = yaml.safe_load(next(folder.glob("config.*")).read_text())
    configured(folder, lambda c: {"model": config} | beside)
    with pytest.raises(CheckpointError, match="another architecture"):
        open_checkpoint(folder)
    configured(folder, lambda c: {"model": config, "rope": {"enabled": False}})
    assert open_checkpoint(folder).spec.family == "xlstm_lm"


@pytest.mark.parametrize("name", ["stack-mixed", "stack"])
def test_a_flat_config_of_the_net_around_a_stack(name: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """Settings of the outer net are named and ignored; what would change the stack is refused all the same."""
    folder = tmp_path / "checkpoint"
    outer = {"horizon": 24, "pred_len": 96, "enc_in": 7, "c_out": 7, "patch_len": 16, "quantiles": [0.1, 0.9]}
    if name == "stack":
        source = checkpoint_of(BY_NAME["large-plain"])
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


# Settings that no tensor shows, beside the model's section or flat in the config of the net around it.
BESIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "an activation": ("lm-mixed", {"act_fn": "relu"}),
    "an activation by another name": ("lm-mixed", {"ff_activation": "relu"}),
    "in a section": ("lm-mixed", {"feedforward": {"act_fn": "relu"}}),
    "of a stack": ("stack-mixed", {"activation": "relu"}),
    "a cap": ("large-plain", {"gate_soft_cap": 5.0}),
    "no cap": ("large-plain", {"cell": {"norm_eps": 1e-3}}),
    "a cap of the logits": ("large-plain", {"output_logit_soft_cap": 5.0}),
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
    if case == "stack-mixed":  # flat
        configured(folder, lambda _: without(config) | beside | {"horizon": 3})
        source = tensors_of(folder)
        save_file(under("core.", source) | {"fc.weight": torch.ones(7, 32)}, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="among the model's own settings"):
            open_checkpoint(folder)
        configured(folder, lambda _: config | {"horizon": 3})
        assert open_checkpoint(folder).notes.left_out == ("fc.weight",)


OUTER = {
    "use_norm": 1, "embed": "timeF", "input_embed_dim": 3, "scaler": "standard", "normalize": True, "residual": True,
    "flip_prob": 0.5, "revin": True, "max_norm": 1.0, "clip": 1.0, "non_embedding_params": 1234,
}  # fmt: skip


@pytest.mark.parametrize("case", ["stack-mixed", "large-plain"])
def test_a_net_around_a_stack_has_settings_of_its_own(case: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME[case])
    tensors = {name: t for name, t in tensors_of(source).items() if not name.startswith(("embedding.", "lm_head."))}
    folder = rewritten(source, tmp_path / "checkpoint", under("net.", tensors) | {"fc.weight": torch.ones(3, 64)})
    wanted = open_checkpoint(source, prefix=None if case == "stack-mixed" else "backbone.")
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


def test_arguments_of_trainers_are_ignored(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """All of transformers', as they are when nobody sets them, and a few of others."""
    arguments = {field.name: "x" for field in dataclasses.fields(TrainingArguments)}
    others = {"limit_train_batches": 1.0, "max_iters": 10, "T_max": 3, "shuffle": True, "monitor": "val_loss"}
    source = checkpoint_of(BY_NAME["lm-mixed"])
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    configured(folder, lambda c: arguments | others | c)
    opened = open_checkpoint(folder)
    assert opened.spec == open_checkpoint(source).spec
    assert {"adam_beta1", "T_max"} <= set(opened.notes.ignored_settings)
