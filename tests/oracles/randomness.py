"""Random weights under which a mistake shows: gates spread, norms off 1, nothing zero, logits of a healthy range."""

import torch
from torch import nn

Tensor = torch.Tensor


def forget_biases(count: int) -> Tensor:
    """From forgetting to keeping over the heads or units; a single one sits in the middle."""
    return torch.linspace(-4.0, 5.0, count) if count > 1 else torch.tensor([0.5])


def slstm_bias(noise: Tensor) -> Tensor:
    """Flat (4 D,) in the vanilla order, gate outermost: i, f, z, o. Only f is spread."""
    i, f, z, o = noise.reshape(4, -1)
    order = torch.argsort(f)  # units mixed over the heads, by the noise itself
    return torch.cat([i, forget_biases(len(f))[order] + 0.3 * f, 0.5 * z, 0.5 + 0.5 * o])


def gate_bias(name: str, noise: Tensor) -> Tensor:
    """Biases of the mLSTM gates (NH,), or fused (2 NH,) in the order i, f."""
    if "ifgate" in name:
        i, f = torch.tensor_split(noise, 2)
        return torch.cat([0.7 * i, forget_biases(len(f)) + 0.3 * f])
    return forget_biases(len(noise)) + 0.3 * noise if "fgate" in name else 0.7 * noise


def vector(name: str, old: Tensor, noise: Tensor) -> Tensor:
    """A one-dimensional parameter."""
    if "norm" in name and name.endswith("weight"):
        # around the initial 0 (1 + w) or 1 (w), bounded: a gain near 0 would mute its channel
        return old + 0.5 * torch.tanh(noise)
    if name.endswith("_bias_"):
        return slstm_bias(noise)
    if name.endswith("learnable_skip"):
        return 1.0 + 0.4 * noise
    is_gate = any(gate in name for gate in ("igate_preact", "fgate_preact", "mlstm_cell"))
    return gate_bias(name, noise) if is_gate else 0.3 * noise


def matrix(name: str, noise: Tensor, tied: bool) -> Tensor:
    """A matrix of any kind: fan-in is its last axis. Gates and head get three times the usual spread."""
    if "embedding" in name and not tied:
        return noise
    wide = any(part in name for part in ("embedding", "lm_head", "igate", "fgate"))
    scale: float = (3.0 if wide else 1.0) / noise.shape[-1] ** 0.5
    return scale * noise


@torch.no_grad()
def randomize(model: nn.Module, seed: int, tied: bool) -> None:
    """Fill every parameter in place; the same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(vector(name, parameter, noise) if noise.ndim == 1 else matrix(name, noise, tied))
