"""The official models of a case: built on the CPU with native kernels, and loaded from a checkpoint's own files.

Official loaders are used where one exists and works; `load` says where it does not.
"""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from dacite import Config, from_dict
from safetensors.torch import load_file
from torch import nn

from .cases import Case

KERNELS: dict[str, Any] = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
    "autocast_kernel_dtype": "float32",
}
HF_NAMES = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}
Tensors = dict[str, torch.Tensor]


def is_tied(case: Case) -> bool:
    """Whether embedding and head are one matrix."""
    return case.family == "xlstm_lm_hf" or bool(case.config.get("tie_weights")) or case.store.get("head") is False


def build(case: Case) -> Any:
    """The official model of the case's config."""
    if case.family == "xlstm_large":
        from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

        return xLSTMLarge(xLSTMLargeConfig(**case.config, **KERNELS)).eval()
    if case.family == "xlstm_hf":
        from transformers import xLSTMForCausalLM

        model: Any = xLSTMForCausalLM(hugging_face_config(case))
        return model.eval()
    return build_v1(case.config, stack_only=case.family == "xlstm_stack", tied=is_tied(case))


def hugging_face_config(case: Case) -> Any:
    """transformers' config with its own names for width and depth."""
    from transformers import xLSTMConfig

    named: dict[str, Any] = {HF_NAMES.get(key, key): value for key, value in case.config.items()}
    return xLSTMConfig(**named, **KERNELS, bos_token_id=0, pad_token_id=1, eos_token_id=2)


def build_v1(config: dict[str, Any], *, stack_only: bool, tied: bool) -> Any:
    """xLSTMLMModel or xLSTMBlockStack from a nested config, the sLSTM on its PyTorch backend."""
    from xlstm import xLSTMBlockStack, xLSTMBlockStackConfig, xLSTMLMModel, xLSTMLMModelConfig

    config = deepcopy(config)
    config.pop("type", None)
    if config.get("slstm_block") is not None:
        slstm = config["slstm_block"].setdefault("slstm", {})
        slstm |= {"backend": "vanilla", "dtype": "float32", "enable_automatic_mixed_precision": False}
    if stack_only:
        return xLSTMBlockStack(from_dict(xLSTMBlockStackConfig, config, Config(strict=True))).eval()
    config["tie_weights"] = tied
    return xLSTMLMModel(from_dict(xLSTMLMModelConfig, config, Config(strict=True))).eval()


def relayout(state: Tensors, *, to_cuda: bool) -> Tensors:
    """Move sLSTM kernels and biases between the two storage layouts, by the package's own four permutations."""
    from xlstm.blocks.slstm.cell import sLSTMCell_cuda, sLSTMCell_vanilla, sLSTMCellConfig

    state = dict(state)
    for name in [name for name in state if name.endswith("_recurrent_kernel_")]:
        heads, width = state[name].shape[0], min(state[name].shape[1:])
        config = sLSTMCellConfig(hidden_size=heads * width, num_heads=heads, bias_init="standard")
        vanilla, cuda = sLSTMCell_vanilla(config), sLSTMCell_cuda(config, skip_backend_init=True)
        source, target = (vanilla, cuda) if to_cuda else (cuda, vanilla)
        bias = name.replace("_recurrent_kernel_", "_bias_")
        state[name] = target._recurrent_kernel_ext2int(source._recurrent_kernel_int2ext(state[name])).contiguous()
        state[bias] = target._bias_ext2int(source._bias_int2ext(state[bias])).contiguous()
    return state


def to_cuda_layout(kernel: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vanilla kernel (NH, 4 DH, DH) and bias (4 D,) -> kernel (NH, DH, 4 DH) and bias as the cuda backend stores them."""
    moved = relayout({"_recurrent_kernel_": kernel, "_bias_": bias}, to_cuda=True)
    return moved["_recurrent_kernel_"], moved["_bias_"]


def load(case: Case, folder: Path, dtype: torch.dtype) -> Any:
    """The official model with the stored weights, computing in `dtype`."""
    loaders = {"xlstm_large": _load_large, "xlstm_hf": _load_hugging_face}
    model = loaders.get(case.family, _load_v1)(case, folder).to(dtype)
    if dtype == torch.float64:
        _widen(model)
    return model


def stored_tensors(folder: Path) -> Tensors:
    """All tensors of all weight files in float32."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(path)
    for path in sorted(folder.glob("*.pt")):
        tensors |= torch.load(path, weights_only=True)
    return {name: tensor.float() for name, tensor in tensors.items()}


def _load_v1(case: Case, folder: Path) -> Any:
    """No official loader: the trainer's own leaves the sLSTM bias in the other layout on a CPU."""
    wrapped = case.family == "xlstm_lm_hf"
    path = folder / ("config.json" if wrapped else "config.yaml")
    config = json.loads(path.read_text())["_xlstm_config"] if wrapped else yaml.safe_load(path.read_text())
    model = build_v1(config, stack_only=case.family == "xlstm_stack", tied=is_tied(case))
    tensors = {name.removeprefix("model."): tensor for name, tensor in stored_tensors(folder).items()}
    if case.store.get("slstm_layout") == "cuda":
        tensors = relayout(tensors, to_cuda=False)
    if is_tied(case):  # one parameter under two names
        for name, other in (("lm_head.weight", "token_embedding.weight"), ("token_embedding.weight", "lm_head.weight")):
            tensors.setdefault(name, tensors.get(other, torch.empty(0)))
    model.load_state_dict(tensors, strict=True)
    return model


def _load_large(case: Case, folder: Path) -> Any:
    """xlstm/xlstm_large/from_pretrained.py, except for the fused layout, which it does not read."""
    from xlstm.xlstm_large.from_pretrained import load_from_pretrained

    if case.config.get("weight_mode") != "fused":
        return load_from_pretrained(folder).eval()
    model = build(case)
    model.load_state_dict(stored_tensors(folder), strict=True)
    return model


def _load_hugging_face(case: Case, folder: Path) -> Any:
    """from_pretrained; the config is passed where the file's names for width and depth are ones it does not follow."""
    from transformers import xLSTMForCausalLM

    if case.store.get("head") is not False:
        config = {"config": hugging_face_config(case)} if case.store.get("old_names") else {}
        model: Any = xLSTMForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **config)
        return model.eval()
    model = build(case)
    tensors = stored_tensors(folder)  # transformers leaves a missing head at its initialization
    model.load_state_dict({"lm_head.weight": tensors["backbone.embeddings.weight"], **tensors}, strict=True)
    return model


def _widen(model: nn.Module) -> None:
    """Lift the float32 casts inside xLSTM-Large: norm statistics, kernels and states follow the float64 weights."""
    from mlstm_kernels.torch.backend_module import mLSTMBackend
    from xlstm.xlstm_large.components import NormLayer

    for module in model.modules():
        if isinstance(module, NormLayer):
            module.force_float32_reductions = False
        if isinstance(module, mLSTMBackend):
            wide = replace(module.config, autocast_kernel_dtype="float64", inference_state_dtype="float64")
            mLSTMBackend.__init__(module, wide)
