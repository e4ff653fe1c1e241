"""Weight files of every form give the same tensors."""

import argparse
from pathlib import Path

import pytest
import torch

from xlstm_edge_exporters.checkpoints import open_checkpoint

from ...conftest import BY_NAME, sequence_for
from ...oracles.official import make_checkpoint, official_step
from .forms import (
    LENGTH,
    OPTIMIZER,
    OTHER,
    Change,
    CheckpointOf,
    X,
    assert_equal_to_official,
    inside,
    official,
    rewritten,
    tensors_of,
    under,
)

# name -> (case, what the torch file holds, fragments of the notes)
FORMS: dict[str, tuple[str, Change, list[str]]] = {
    "lightning": (
        "lm-mixed",
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
        "lm-mixed",
        lambda t: t | {"loss_fn.weight": OTHER},
        ["ignored tensors", "loss_fn.weight"],
    ),
    "ddp": ("lm-mixed", lambda t: under("module.", t), ["wrapper names", "module"]),
    "compile of ddp": ("large-plain", lambda t: under("_orig_mod.module.", t), ["_orig_mod, module"]),
    "ddp of compile": ("stack-mixed", lambda t: under("module._orig_mod.", t), ["_orig_mod, module"]),
    "peft merged": ("large-plain", lambda t: under("base_model.model.", t), ["prefix 'base_model.model.'"]),
    "net": ("lm-mixed", lambda t: under("net.", t), ["prefix 'net.'"]),
    "odd prefix": ("lm-mixed", lambda t: under("my.own_1.thing.", t), ["prefix 'my.own_1.thing.'"]),
    "lightning of compile of ddp": (
        "lm-mixed",
        lambda t: {"state_dict": under("model._orig_mod.module.", t)},
        ["key 'state_dict'", "prefix 'model.'"],
    ),
    "deepspeed": (
        "lm-mixed",
        lambda t: {"module": under("module.", t), "optimizer": OPTIMIZER, "ds_config": {}},
        ["key 'module'"],
    ),
    "model and optimizer": (
        "lm-mixed",
        lambda t: {"model": t, "optimizer": OPTIMIZER, "epoch": 1, "args": argparse.Namespace(lr=1)},
        ["key 'model'"],
    ),
    "model_state_dict": ("large-plain", lambda t: {"model_state_dict": t, "loss": 0.5}, ["key 'model_state_dict'"]),
    "net key": ("stack-mixed", lambda t: {"net": t, "acc": 0.5}, ["key 'net'"]),
    "ema only": (
        "lm-mixed",
        lambda t: {"ema": under("module.", t) | {"n_averaged": torch.tensor(3)}},
        ["key 'ema'", "n_averaged"],
    ),
    "nested key": ("lm-mixed", lambda t: {"checkpoint": {"model": t}}, ["key 'checkpoint/model'"]),
    "integer buffers": (
        "lm-mixed",
        lambda t: (
            under("model.", t) | {"model.position_ids": torch.arange(9), "bn.num_batches_tracked": torch.tensor(4)}
        ),
        ["ignored tensors and entries: model.position_ids", "left out", "bn.num_batches_tracked"],
    ),
    "entries that are no tensors": (
        "lm-mixed",
        lambda t: t | {"epoch": 3, "config": {"a": 1}},
        ["ignored tensors", "epoch, config"],
    ),
    "compiled blocks": ("lm-mixed", lambda t: inside("blocks.1.", "_orig_mod", t), ["_orig_mod"]),
    "sharded blocks": (
        "large-plain",
        lambda t: inside("blocks.0.", "_fsdp_wrapped_module", t),
        ["_fsdp_wrapped_module"],
    ),
    "parallel stack": ("lm-mixed", lambda t: inside("xlstm_block_stack.", "module", t), ["module"]),
    "stack in a larger net": (
        "stack-mixed",
        lambda t: under("xlstm_stack.", t) | {"input_proj.weight": X, "fc.weight": X, "fc.bias": OTHER},
        ["prefix 'xlstm_stack.'", "left out, outside the exported model: fc.bias, fc.weight, input_proj.weight"],
    ),
    "stack in a classifier": (
        "stack-slstm",
        lambda t: under("encoder.xlstm_block_stack.", t) | {"embedding.weight": X, "classifier.weight": X},
        ["prefix 'encoder.xlstm_block_stack.'", "classifier.weight"],
    ),
    "hugging face under a prefix": ("hf-plain", lambda t: under("model.", t), ["prefix 'model.'"]),
    "wrapper's own head": (
        "lm-mixed",
        lambda t: {name if name == "lm_head.weight" else "model." + name: x for name, x in t.items()},
        ["prefix 'model.'"],
    ),
    "wrapped and ddp": ("lm-hf-tied", lambda t: under("module.", t), ["prefix 'model.'", "module"]),
    "wrapper of the tied form without its prefix": (
        "lm-hf-mlstm",
        lambda t: {n.removeprefix("model."): x for n, x in t.items()},
        [],
    ),
    "causal mask": (
        "lm-mixed",
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
    case = BY_NAME["lm-mixed"]
    source = make_checkpoint(case, tmp_path / "source", dtype)
    folder = rewritten(source, tmp_path / "checkpoint", {"model": under("module.", tensors_of(source))})
    assert_equal_to_official(open_checkpoint(folder), official_step(case, source, sequence_for(case, LENGTH)), case)  # type: ignore[arg-type]  # runs


def test_parameters_and_views_are_tensors_too(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["stack-mixed"])
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
        assert_equal_to_official(open_checkpoint(folder), official("stack-mixed", source), BY_NAME["stack-mixed"])
