"""Make checkpoints with the official packages, and run them with the official packages.

Random weights, but not the timid ones of an initialization: gates are spread, norms are off 1, recurrent kernels are
filled, so that a swapped gate or a forgotten 1 + w shows.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from dacite import from_dict
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from .cases import Case

FloatArray = NDArray[np.float32]
KERNELS = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
    "autocast_kernel_dtype": "float32",
}


def make_checkpoint(case: Case, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A folder as the family's own tool writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = build(case)
    randomize(model)
    {"A": _save_v1, "B": _save_large, "C": _save_hugging_face}[case.family[0]](case, model, folder, dtype)
    return folder


def build(case: Case) -> nn.Module:
    """The official model, on the CPU, computing in float32."""
    if case.family[0] == "A":
        return _build_v1(case)
    if case.family == "B":
        from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

        return xLSTMLarge(xLSTMLargeConfig(**{**case.config, **KERNELS})).eval()
    from transformers import xLSTMConfig, xLSTMForCausalLM

    names = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}
    config = {names.get(key, key): value for key, value in case.config.items()}
    return xLSTMForCausalLM(xLSTMConfig(**{**config, **KERNELS, "pad_token_id": None, "eos_token_id": None})).eval()


def _build_v1(case: Case) -> nn.Module:
    from xlstm import xLSTMBlockStack, xLSTMBlockStackConfig, xLSTMLMModel, xLSTMLMModelConfig

    config = json.loads(json.dumps(case.config))
    slstm = config.get("slstm_block", {}).get("slstm")
    if slstm is not None:
        slstm |= {"backend": "vanilla", "dtype": "float32", "enable_automatic_mixed_precision": False}
    if case.family == "A3":
        return xLSTMBlockStack(from_dict(xLSTMBlockStackConfig, config)).eval()
    return xLSTMLMModel(from_dict(xLSTMLMModelConfig, config)).eval()


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Healthy random values for every parameter."""
    for name, p in model.named_parameters():
        noise = torch.randn_like(p)
        if "norm" in name and name.endswith("weight"):
            p.copy_(p + 0.3 * noise)
        elif "fgate" in name and name.endswith("bias"):
            p.copy_(torch.linspace(-3.0, 5.0, p.numel()) + 0.3 * noise)
        elif name.endswith("_bias_"):
            p.copy_(0.7 * noise)
        elif name.endswith("bias"):
            p.copy_(0.3 * noise)
        elif "learnable_skip" in name:
            p.copy_(1.0 + 0.3 * noise)
        elif "embedding" in name:
            p.copy_(noise)
        else:  # fan-in is the last axis everywhere but in the vanilla sLSTM kernel, where it is the last too
            p.copy_(noise / p.shape[-1] ** 0.5)


def to_cuda_layout(kernel: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sLSTM's vanilla storage -> what the cuda backend stores: kernel (H, in, 4*out), bias (H, 4, DH) flat."""
    heads, four, dh = kernel.shape
    bias = bias.reshape(4, heads, dh).transpose(0, 1).reshape(-1)
    return kernel.reshape(heads, four, dh).transpose(1, 2).contiguous(), bias.contiguous()


def _save_v1(case: Case, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    if case.store.get("slstm_layout") == "cuda":
        for name in [n for n in state if n.endswith("_recurrent_kernel_")]:
            other = name.replace("_recurrent_kernel_", "_bias_")
            state[name], state[other] = to_cuda_layout(state[name], state[other])
    config: dict[str, Any] = json.loads(json.dumps(case.config))
    if case.family == "A2":
        state = {n if n == "lm_head.weight" else f"model.{n}": t for n, t in state.items() if n != "lm_head.weight"}
        wrapped = {"model_type": "xlstm", "auto_map": {"AutoModel": "modeling.Model"}, "_xlstm_config": config}
        (folder / "config.json").write_text(json.dumps(wrapped))
    else:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if case.store.get("format") == "pt":
        torch.save(state, folder / "model.pt")
        return
    if config.get("tie_weights"):
        state.pop("lm_head.weight")
    save_file(state, folder / "model.safetensors")


def _save_large(case: Case, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    (folder / "config.yaml").write_text(yaml.safe_dump({**case.config, **KERNELS}))
    count = case.store.get("shards", 1)
    names = sorted(state)
    for shard in range(count):
        part = {name: state[name] for name in names[shard::count]}
        save_file(part, folder / ("model.safetensors" if count == 1 else f"model_{shard}.safetensors"))


def _save_hugging_face(case: Case, model: Any, folder: Path, dtype: torch.dtype) -> None:
    size = "20KB" if case.store.get("shards") else "1GB"
    model.to(dtype).save_pretrained(folder, max_shard_size=size)
    path = folder / "model.safetensors"
    if case.store.get("tied"):
        state = load_file(path)
        state.pop("lm_head.weight")
        save_file(state, path)
    if case.store.get("old_names"):  # the official 7B file gives only these two
        config = json.loads((folder / "config.json").read_text())
        config["embedding_dim"], config["num_blocks"] = config.pop("hidden_size"), config.pop("num_hidden_layers")
        (folder / "config.json").write_text(json.dumps(config))


def load_official(case: Case, folder: Path) -> Any:
    """The official model with the stored weights."""
    model = build(case)
    stored: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= load_file(path)
    for path in folder.glob("*.pt"):
        stored |= torch.load(path, weights_only=True)
    stored = {name.removeprefix("model."): tensor.float() for name, tensor in stored.items()}
    own = model.state_dict()
    for name in [n for n in stored if n.endswith("_recurrent_kernel_")]:
        if stored[name].shape != own[name].shape:
            stored[name], other = stored[name].transpose(1, 2), name.replace("_recurrent_kernel_", "_bias_")
            heads = stored[name].shape[0]
            stored[other] = stored[other].reshape(heads, 4, -1).transpose(0, 1).reshape(-1)
    tied = "lm_head.weight" in own and "lm_head.weight" not in stored
    if tied:
        embedding = "backbone.embeddings.weight" if case.family == "C" else "token_embedding.weight"
        stored["lm_head.weight"] = stored[embedding]
    if case.config.get("tie_weights") and "token_embedding.weight" not in stored:
        stored["token_embedding.weight"] = stored["lm_head.weight"]
    model.load_state_dict(stored, strict=True)
    return model


@torch.no_grad()
def official_step(case: Case, folder: Path, sequence: Any) -> FloatArray:
    """(T, V) or (T, D): one token at a time with the official state."""
    model, state, outputs = load_official(case, folder), None, []
    for token in torch.as_tensor(np.asarray(sequence)):
        x = token.reshape(1, 1, -1) if case.family == "A3" else token.reshape(1, 1)
        if case.family[0] == "A":
            output, state = model.step(x, state=state)
        elif case.family == "B":
            output, state = model(x, state)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = model(input_ids=x, cache=state, use_cache=True)
            output, state = result.logits, result.cache
        outputs.append(output.reshape(-1).float().numpy())
    return np.stack(outputs)


@torch.no_grad()
def official_parallel(case: Case, folder: Path, sequence: Any) -> FloatArray:
    """(T, V) or (T, D): the whole sequence in one forward pass."""
    model = load_official(case, folder)
    x = torch.as_tensor(np.asarray(sequence))[None]
    if case.family[0] == "A":
        output = model(x)
    elif case.family == "B":
        output, _ = model(x)
    else:
        output = model(input_ids=x, use_cache=True).logits
    return np.asarray(output[0].float())
