"""Canaries: checkpoints changed the way a wrong loader would read them. Each must make a comparison fail."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Tensors]
ANY = 1e-3  # ten times the float32 bound, so that no tolerance hides the mistake
EPS = 1e-7  # an eps shows in float64 only, where the bound is 1e-9


def exchange(one: str, other: str) -> Change:
    """Names that contain `one` trade their tensors with those that contain `other`."""

    def change(tensors: Tensors) -> Tensors:
        names = {name: name.replace(one, other) for name in tensors if one in name}
        assert names
        return tensors | {a: tensors[b] for a, b in names.items()} | {b: tensors[a] for a, b in names.items()}

    return change


def edit(part: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Every tensor whose name contains `part` is replaced by the function's value."""

    def change(tensors: Tensors) -> Tensors:
        edited = {name: function(tensor).contiguous() for name, tensor in tensors.items() if part in name}
        assert edited
        return tensors | edited

    return change


def halves(tensor: torch.Tensor) -> torch.Tensor:
    """The two halves of the rows exchanged."""
    return torch.cat(tensor.chunk(2)[::-1])


def other_bias_layout(heads: int, *, cuda: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """The sLSTM bias as the other backend stores it."""
    shape = (heads, 4, -1) if cuda else (4, heads, -1)
    return lambda bias: bias.reshape(shape).transpose(0, 1).reshape(-1)


def transposed_cuda_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Input and output units of every gate exchanged, (NH, DH, 4 DH)."""
    heads, width, _ = kernel.shape
    return kernel.reshape(heads, width, 4, width).transpose(1, 3).reshape(kernel.shape)


def alphabetical(fused: torch.Tensor) -> torch.Tensor:
    """q, k, v, o rows of b-fused (20, 20, 40, 40) put in the order k, o, q, v, as a sorted dictionary gives them."""
    q, k, v, o = torch.split(fused, [20, 20, 40, 40])
    return torch.cat([k, o, q, v])


KNOWN_MISTAKES: dict[str, tuple[str, Change]] = {
    "slstm igate is fgate": ("lm-mixed", exchange("xlstm.igate.", "xlstm.fgate.")),
    "slstm zgate is ogate": ("lm-mixed", exchange("xlstm.zgate.", "xlstm.ogate.")),
    "v1 mlstm igate is fgate": ("lm-mixed", exchange("mlstm_cell.igate.", "mlstm_cell.fgate.")),
    "v1 q is k": ("lm-no-slstm", exchange("q_proj.", "k_proj.")),
    "v1 x branch is z branch": ("lm-no-slstm", edit("xlstm.proj_up.weight", halves)),
    "v1 pre-norm w": ("lm-mixed", edit("xlstm_norm.weight", lambda w: w - 1)),
    "v1 head norm w": ("lm-mixed", edit("outnorm.weight", lambda w: w - 1)),
    "v1 group norm w": ("lm-mixed", edit("group_norm.weight", lambda w: w - 1)),
    "v1 ffn norm w": ("lm-mixed", edit("ffn_norm.weight", lambda w: w - 1)),
    "v1 final norm w": ("lm-mixed", edit("post_blocks_norm.weight", lambda w: w - 1)),
    "v1 skip 1 + w": ("lm-mixed", edit("learnable_skip", lambda w: w + 1)),
    "cuda bias as vanilla": ("lm-three-heads", edit("_bias_", other_bias_layout(3, cuda=True))),
    "vanilla bias as cuda": ("lm-all-slstm", edit("_bias_", other_bias_layout(6, cuda=False))),
    "cuda kernel transposed": ("lm-three-heads", edit("_recurrent_kernel_", transposed_cuda_kernel)),
    "newest conv sample first": ("lm-mixed", edit("conv1d.conv.weight", lambda w: w.flip(-1))),
    "slstm newest conv sample first": ("lm-all-slstm", edit("conv1d.conv.weight", lambda w: w.flip(-1))),
    "v1 ffn gate is up": ("lm-mixed", edit("ffn.proj_up.weight", halves)),
    "large igate is fgate": ("large-plain", exchange("igate_preact.", "fgate_preact.")),
    "large q is k": ("large-plain", exchange(".q.", ".k.")),
    "large v is o": ("large-plain", exchange(".v.", ".ogate_preact.")),
    "large ffn gate is up": ("large-plain", exchange("ffn.proj_up_gate.", "ffn.proj_up.")),
    "large norm 1 + w": ("large-plain", edit("norm_mlstm.weight", lambda w: w + 1)),
    "large head norm 1 + w": ("large-plain", edit("multihead_norm.weight", lambda w: w + 1)),
    "large final norm 1 + w": ("large-plain", edit("out_norm.weight", lambda w: w + 1)),
    "large norm bias dropped": ("large-three-heads", edit("norm_ffn.bias", torch.zeros_like)),
    "fused in dictionary order": ("large-fused", edit("qkv_opreact", alphabetical)),
    "fused f, i": ("large-fused", edit("ifgate_preact", halves)),
    "fused up, gate": ("large-fused", edit("proj_up_gate_z", halves)),
    "hugging face igate is fgate": ("hf-plain", exchange("igate_preact.", "fgate_preact.")),
    "hugging face ffn gate is up": ("hf-plain", exchange("ffn.proj_up_gate.", "ffn.proj_up.")),
    "hugging face head is not embedding": ("hf-plain", lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}),
}


def changed(folder: Path, target: Path, change: Change) -> Path:
    """A copy of a safetensors checkpoint with other tensors, in one file."""
    shutil.copytree(folder, target)
    tensors: Tensors = {}
    for path in target.glob("model*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    save_file(change(tensors), target / "model.safetensors")
    return target


@dataclass(frozen=True)
class Number:
    """A config value that changes outputs by more than `least`; an eps shows in float64 only."""

    case: str
    key: str
    value: Any
    least: float = ANY


NUMBERS = [
    Number("large-three-heads", "gate_soft_cap", 15.0),
    Number("large-uncapped", "gate_soft_cap", 15.0),
    Number("large-wide-vocab", "output_logit_soft_cap", 30.0),
    Number("large-plain", "output_logit_soft_cap", None),
    Number("large-one-head", "eps", 1e-6, EPS),
    Number("large-one-head", "norm_eps", 1e-6, EPS),
    Number("hf-old-names", "norm_eps", 1e-6, EPS),
    Number("lm-mixed", "slstm_block", {"feedforward": {"act_fn": "relu"}}),
]
