"""Blocks of xLSTM-Large (families xlstm_large and xlstm_hf): names of xlstm/xlstm_large/model.py, formulas of arXiv:2503.13427.

Norms multiply by the plain weight. A fused layout is cut into the single one when it is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .files import Weights
from .recurrence import Array, MLSTMCell, State, head_norm, rms_norm, sigmoid, silu, soft_cap


@dataclass(frozen=True)
class Numbers:
    """What no tensor shape can say; defaults of xlstm/xlstm_large/model.py."""

    norm_eps: float = 1e-6
    cell_eps: float = 1e-6
    gate_cap: float | None = 15.0
    logit_cap: float | None = 30.0


def numbers(config: dict[str, Any]) -> Numbers:
    """An explicit null cap means no cap. float(): YAML 1.1 reads a bare 1e-6 as a string."""
    gate, logit = config.get("gate_soft_cap", 15.0), config.get("output_logit_soft_cap", 30.0)
    return Numbers(
        float(config.get("norm_eps", 1e-6)),
        float(config.get("eps", 1e-6)),
        None if gate is None else float(gate),
        None if logit is None else float(logit),
    )


@dataclass(frozen=True)
class Affine:
    """W x + b; b is 0 where none is stored."""

    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        return self.weight @ x + self.bias


def affine(weights: Weights, prefix: str) -> Affine:
    """A stored matrix with its bias, if any."""
    weight, bias = weights.take(f"{prefix}.weight"), weights.find(f"{prefix}.bias")
    return Affine(weight, np.zeros(len(weight)) if bias is None else bias)


def cut(whole: Affine, rows: Sequence[int]) -> list[Affine]:
    """Split a fused matrix into parts of the given numbers of rows, in order."""
    if sum(rows) != len(whole.weight):
        raise ValueError(f"{len(whole.weight)} fused rows are not {list(rows)}")
    borders = np.cumsum(rows)[:-1]
    pairs = zip(np.split(whole.weight, borders), np.split(whole.bias, borders), strict=True)
    return [Affine(weight, bias) for weight, bias in pairs]


class RMSNorm:
    """Gain, and a bias after it where one is stored."""

    def __init__(self, weights: Weights, prefix: str, eps: float) -> None:
        self.gain, bias = weights.take(f"{prefix}.weight"), weights.find(f"{prefix}.bias")
        self.bias, self.eps = np.zeros(1) if bias is None else bias, eps

    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.gain, self.eps) + self.bias


class HeadNorm(RMSNorm):
    """The same parameters on a layer norm of each head, x (NH, dv) -> (NH * dv,)."""

    def __call__(self, x: Array) -> Array:
        return head_norm(x, self.gain, self.eps) + self.bias


def projections(weights: Weights, layer: str, v_width: int) -> list[Affine]:
    """q, k, v, o; the fused rows are in this order."""
    if f"{layer}qkv_opreact.weight" not in weights.names:
        return [affine(weights, f"{layer}{name}") for name in ("q", "k", "v", "ogate_preact")]
    whole = affine(weights, f"{layer}qkv_opreact")
    qk_width = (len(whole.weight) - 2 * v_width) // 2
    return cut(whole, [qk_width, qk_width, v_width, v_width])


def gates(weights: Weights, layer: str) -> list[Affine]:
    """i, f; the fused rows are in this order."""
    if f"{layer}ifgate_preact.weight" not in weights.names:
        return [affine(weights, f"{layer}{name}gate_preact") for name in "if"]
    whole = affine(weights, f"{layer}ifgate_preact")
    return cut(whole, [len(whole.weight) // 2] * 2)


def gate_and_up(weights: Weights, ffn: str) -> list[Affine]:
    """The two matrices into the feed-forward; the fused rows are in this order."""
    if f"{ffn}proj_up_gate_z.weight" not in weights.names:
        return [affine(weights, f"{ffn}{name}") for name in ("proj_up_gate", "proj_up")]
    whole = affine(weights, f"{ffn}proj_up_gate_z")
    return cut(whole, [len(whole.weight) // 2] * 2)


class LargeBlock:
    """x + W_out(sigmoid(o) h), then x + W_down(silu(gate) up), each behind an RMS norm."""

    def __init__(self, weights: Weights, prefix: str, config: Numbers) -> None:
        layer, ffn = f"{prefix}mlstm_layer.", f"{prefix}ffn."
        self.norm, self.ffn_norm = (RMSNorm(weights, f"{prefix}norm_{n}", config.norm_eps) for n in ("mlstm", "ffn"))
        self.out, self.down = affine(weights, f"{layer}out_proj"), affine(weights, f"{ffn}proj_down")
        v_width = self.out.weight.shape[1]
        self.q, self.k, self.v, self.o = projections(weights, layer, v_width)
        self.i, self.f = gates(weights, layer)
        self.gate, self.up = gate_and_up(weights, ffn)
        self.head_norm = HeadNorm(weights, f"{layer}multihead_norm", config.norm_eps)
        self.cap, heads = config.gate_cap, len(self.i.bias)
        self.cell = MLSTMCell(heads, len(self.q.bias) // heads, v_width // heads, config.cell_eps)

    def reset(self) -> None:
        """As before the first token."""
        self.cell.reset()

    def state(self) -> State:
        """C, n, m."""
        return self.cell.state()

    def step(self, x: Array) -> Array:
        """x (D,) -> (D,). The cap applies to i and f with their biases, not to o."""
        u = self.norm(x)
        i, f = soft_cap(self.i(u), self.cap), soft_cap(self.f(u), self.cap)
        h = self.head_norm(self.cell.step(self.q(u), self.k(u), self.v(u), i, f))
        x = x + self.out(sigmoid(self.o(u)) * h)
        u = self.ffn_norm(x)
        return x + self.down(silu(self.gate(u)) * self.up(u))
