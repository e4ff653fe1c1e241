"""Whole models in float64 numpy, read straight from a checkpoint's own files and names.

Families: v1 language models and block stacks (A1, A2, A3), xLSTM-Large (B), Hugging Face (C).
"""

import json
from collections.abc import Callable, Sequence
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from .recurrence import Array, MLSTMCell, SLSTMCell, sigmoid, silu

Tensors = dict[str, Array]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2.0))),
    "relu": lambda x: np.maximum(x, 0.0),
    "relu^2": lambda x: np.maximum(x, 0.0) ** 2,
    "sigmoid": sigmoid,
    "swish": silu,
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0.0))),
}


def read_tensors(folder: Path) -> Tensors:
    """Every tensor of the folder, up-cast to float64."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    for path in sorted(folder.glob("*.pt")):
        tensors |= torch.load(path, weights_only=True)
    return {name: tensor.to(torch.float64).numpy() for name, tensor in tensors.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """config.yaml or config.json."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text()) if path.exists() else json.loads((folder / "config.json").read_text())
    assert isinstance(config, dict)
    return config


def layer_norm(x: Array, weight: Array, eps: float, bias: Array | float = 0.0) -> Array:
    """Over the last axis, biased variance."""
    centred = x - x.mean(-1, keepdims=True)
    return weight * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) + bias


def rms_norm(x: Array, weight: Array, eps: float, bias: Array | float = 0.0) -> Array:
    """Over the last axis."""
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) + bias


def head_norm(h: Array, weight: Array, eps: float, bias: Array | float = 0.0) -> Array:
    """h (H, d): each head on its own, then flat."""
    return layer_norm(h, np.ones(1), eps).reshape(-1) * weight + bias


def head_wise(x: Array, weight: Array) -> Array:
    """Block-diagonal product, weight (blocks, out, in)."""
    return np.einsum("boi,bi->bo", weight, x.reshape(weight.shape[0], -1)).reshape(-1)


class Convolution:
    """Causal depthwise convolution with its window, oldest first."""

    def __init__(self, weight: Array, bias: Array) -> None:
        self.weight, self.bias = weight[:, 0], bias
        self.window = np.zeros((weight.shape[0], weight.shape[2] - 1))

    def step(self, x: Array) -> Array:
        """Index K-1 of the kernel meets the newest sample."""
        samples = np.concatenate([self.window, x[:, None]], 1)
        self.window = samples[:, 1:]
        return (self.weight * samples).sum(1) + self.bias


class UpMLSTMBlock:
    """v1 mLSTM block."""

    def __init__(self, t: Tensors, p: str) -> None:
        self.t, self.p = t, p
        self.heads = t[p + "xlstm.mlstm_cell.igate.weight"].shape[0]
        self.inner = t[p + "xlstm.proj_down.weight"].shape[1]
        self.conv = Convolution(t[p + "xlstm.conv1d.conv.weight"], t[p + "xlstm.conv1d.conv.bias"])
        width = self.inner // self.heads
        self.cell = MLSTMCell(self.heads, width, width, 1e-6)

    def bias(self, name: str) -> Array | float:
        return self.t.get(f"{self.p}xlstm.{name}.bias", 0.0)

    def step(self, x: Array) -> Array:
        t, p = self.t, self.p + "xlstm."
        u = layer_norm(x, 1 + t[self.p + "xlstm_norm.weight"], 1e-5)
        both = t[p + "proj_up.weight"] @ u + self.bias("proj_up")
        xb, z = both[: self.inner], both[self.inner :]
        c = silu(self.conv.step(xb))
        q = head_wise(c, t[p + "q_proj.weight"]) + self.bias("q_proj")
        k = head_wise(c, t[p + "k_proj.weight"]) + self.bias("k_proj")
        v = head_wise(xb, t[p + "v_proj.weight"]) + self.bias("v_proj")
        qkv = np.concatenate([q, k, v])
        i, f = (t[f"{p}mlstm_cell.{g}.weight"] @ qkv + t[f"{p}mlstm_cell.{g}.bias"] for g in ("igate", "fgate"))
        h = self.cell.step(*(part.reshape(self.heads, -1) for part in (q, k, v)), i, f)
        h = head_norm(h, 1 + t[p + "mlstm_cell.outnorm.weight"], 1e-5)
        y = (h + t[p + "learnable_skip"] * c) * silu(z)
        return x + t[p + "proj_down.weight"] @ y + self.bias("proj_down")


class SLSTMBlock:
    """v1 sLSTM block with its optional feed-forward."""

    def __init__(self, t: Tensors, p: str, activation: str) -> None:
        self.t, self.p, self.activation = t, p, activation
        kernel, bias = (t[f"{p}xlstm.slstm_cell.{n}"] for n in ("_recurrent_kernel_", "_bias_"))
        self.width = t[p + "xlstm_norm.weight"].shape[0]
        heads, dh = kernel.shape[0], self.width // kernel.shape[0]
        if kernel.shape[1] == dh:  # cuda: (H, in, 4*out)
            self.recurrent = kernel.reshape(heads, dh, 4, dh).transpose(0, 2, 3, 1)
            self.b = bias.reshape(heads, 4, dh)
        else:  # vanilla: (H, 4*out, in)
            self.recurrent = kernel.reshape(heads, 4, dh, dh)
            self.b = bias.reshape(4, heads, dh).transpose(1, 0, 2)
        self.heads, self.cell = heads, SLSTMCell(heads, dh)
        conv = t.get(p + "xlstm.conv1d.conv.weight")
        self.conv = None if conv is None else Convolution(conv, t[p + "xlstm.conv1d.conv.bias"])

    def step(self, x: Array) -> Array:
        t, p = self.t, self.p
        u = layer_norm(x, 1 + t[p + "xlstm_norm.weight"], 1e-5)
        c = u if self.conv is None else silu(self.conv.step(u))
        # The module named fgate feeds slot i, the one named igate slot f.
        sources = (("fgate", c), ("igate", c), ("zgate", u), ("ogate", u))
        wx = np.stack([head_wise(s, t[f"{p}xlstm.{g}.weight"]).reshape(self.heads, -1) for g, s in sources])
        y = self.cell.step(wx, self.recurrent, self.b)
        x = x + head_norm(y, 1 + t.get(p + "xlstm.group_norm.weight", np.zeros(self.width)), 1e-5)
        if p + "ffn.proj_up.weight" not in t:
            return x
        w = layer_norm(x, 1 + t[p + "ffn_norm.weight"], 1e-5)
        gate, up = np.split(t[p + "ffn.proj_up.weight"] @ w + t.get(p + "ffn.proj_up.bias", 0.0), 2)
        hidden = ACTIVATIONS[self.activation](gate) * up
        return x + t[p + "ffn.proj_down.weight"] @ hidden + t.get(p + "ffn.proj_down.bias", 0.0)


class LargeBlock:
    """xLSTM-Large block."""

    def __init__(self, t: Tensors, p: str, config: dict[str, Any]) -> None:
        self.t, self.p, self.config = t, p, config
        self.eps, self.cap = float(config.get("norm_eps", 1e-6)), config.get("gate_soft_cap", 15.0)
        out = t[p + "mlstm_layer.out_proj.weight"]
        self.v = out.shape[1]
        fused = t.get(p + "mlstm_layer.qkv_opreact.weight")
        self.qk = t[p + "mlstm_layer.q.weight"].shape[0] if fused is None else (fused.shape[0] - 2 * self.v) // 2
        self.heads = config["num_heads"]
        eps = float(config.get("eps", 1e-6))
        self.cell = MLSTMCell(self.heads, self.qk // self.heads, self.v // self.heads, eps)

    def rms(self, name: str, x: Array) -> Array:
        return rms_norm(x, self.t[self.p + name + ".weight"], self.eps, self.t.get(self.p + name + ".bias", 0.0))

    def linear(self, name: str, x: Array) -> Array:
        return self.t[self.p + name + ".weight"] @ x + self.t.get(self.p + name + ".bias", 0.0)

    def projections(self, fused: str, single: Sequence[str], sizes: Sequence[int], x: Array) -> list[Array]:
        if self.p + fused + ".weight" in self.t:
            return np.split(self.linear(fused, x), np.cumsum(sizes)[:-1])
        return [self.linear(name, x) for name in single]

    def step(self, x: Array) -> Array:
        m, heads = "mlstm_layer.", self.heads
        u = self.rms("norm_mlstm", x)
        names = [m + n for n in ("q", "k", "v", "ogate_preact")]
        q, k, v, o = self.projections(m + "qkv_opreact", names, [self.qk, self.qk, self.v, self.v], u)
        i, f = self.projections(m + "ifgate_preact", [m + "igate_preact", m + "fgate_preact"], [heads, heads], u)
        if self.cap is not None:
            i, f = (self.cap * np.tanh(gate / self.cap) for gate in (i, f))
        h = self.cell.step(*(part.reshape(heads, -1) for part in (q, k, v)), i, f)
        name = self.p + m + "multihead_norm"
        h = head_norm(h, self.t[name + ".weight"], self.eps, self.t.get(name + ".bias", 0.0))
        x = x + self.linear(m + "out_proj", sigmoid(o) * h)
        u = self.rms("norm_ffn", x)
        f_width = self.t[self.p + "ffn.proj_down.weight"].shape[1]
        gate, up = self.projections("ffn.proj_up_gate_z", ["ffn.proj_up_gate", "ffn.proj_up"], [f_width] * 2, u)
        return x + self.linear("ffn.proj_down", silu(gate) * up)


class Reference:
    """A whole model; `step` takes a token id or, for a bare stack, a vector."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors, self.config = read_tensors(folder), read_config(folder)
        self.reset()

    def reset(self) -> None:
        """Zero state."""
        t = self.tensors
        self.large = any(name.startswith("backbone.") for name in t)
        if self.large:
            count = 1 + max(int(n.split(".")[2]) for n in t if n.startswith("backbone.blocks."))
            self.blocks: list[Any] = [LargeBlock(t, f"backbone.blocks.{i}.", self.config) for i in range(count)]
            return
        config = self.config.get("_xlstm_config", self.config)
        self.prefix = next(n for n in t if "blocks.0." in n).split("blocks.0.")[0]
        count = 1 + max(int(n.split("blocks.")[1].split(".")[0]) for n in t if "blocks." in n and ".xlstm" in n)
        feed_forward = (config.get("slstm_block") or {}).get("feedforward") or {}
        self.blocks = []
        for i in range(count):
            p = f"{self.prefix}blocks.{i}."
            if p + "xlstm.slstm_cell._bias_" in t:
                self.blocks.append(SLSTMBlock(t, p, feed_forward.get("act_fn", "gelu")))
            else:
                self.blocks.append(UpMLSTMBlock(t, p))

    def step(self, token: Any) -> Array:
        """Logits (V,), or the hidden vector (D,) of a bare stack."""
        x = self.embed(token)
        for block in self.blocks:
            x = block.step(x)
        return self.head(x)

    def run(self, sequence: Any) -> Array:
        """All outputs (T, V) from here on."""
        return np.stack([self.step(token) for token in sequence])

    def embed(self, token: Any) -> Array:
        for name, tensor in self.tensors.items():
            if name.endswith(("token_embedding.weight", "backbone.embeddings.weight")) or name == "embedding.weight":
                return tensor[token]
        return np.asarray(token, np.float64)

    def head(self, x: Array) -> Array:
        t = self.tensors
        if not self.large:
            norm = t.get(self.prefix + "post_blocks_norm.weight")
            x = x if norm is None else layer_norm(x, 1 + norm, 1e-5)
            matrix = t.get("lm_head.weight", t.get("model.token_embedding.weight", t.get("token_embedding.weight")))
            return x if matrix is None else matrix @ x
        if "backbone.out_norm.weight" in t:
            bias = t.get("backbone.out_norm.bias", 0.0)
            x = rms_norm(x, t["backbone.out_norm.weight"], float(self.config.get("norm_eps", 1e-6)), bias)
        logits = t.get("lm_head.weight", t.get("backbone.embeddings.weight")) @ x
        cap = self.config.get("output_logit_soft_cap", 30.0)
        return logits if cap is None else cap * np.tanh(logits / cap)
