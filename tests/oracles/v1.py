"""Blocks of xLSTM v1 (xlstm_lm, xlstm_lm_hf, xlstm_stack): names and layouts of xlstm/blocks, formulas of arXiv:2405.04517.

Every norm of this family multiplies by 1 + w, has no bias and eps 1e-5. Sizes come from the tensors alone.
"""

import numpy as np

from .files import HeadWise, Linear, Weights
from .recurrence import ACTIVATIONS, Array, CausalConvolution, MLSTMCell, SLSTMCell, State, head_norm, layer_norm, silu

NORM_EPS = 1e-5  # xlstm/components/ln.py
CELL_EPS = 1e-6  # xlstm/blocks/mlstm/backends.py


def residual_gain(weights: Weights, name: str) -> Array:
    """The stored weight is the deviation from 1."""
    return 1.0 + weights.take(name)


def convolution(weights: Weights, prefix: str) -> CausalConvolution | None:
    """Stored (channels, 1, K) and (channels,); absent when the kernel size is 0."""
    kernel = weights.find(f"{prefix}.weight")
    return None if kernel is None else CausalConvolution(kernel[:, 0, :], weights.take(f"{prefix}.bias"))


def canonical_recurrence(kernel: Array, bias: Array) -> tuple[Array, Array]:
    """Stored sLSTM kernel and flat bias -> R (NH, 4, DH out, DH in), b (NH, 4, DH).

    Backend `cuda` stores S[h, j, g * DH + o] and bias (h, g, o); `vanilla` S[h, g * DH + o, j] and bias (g, h, o).
    """
    heads, rows, columns = kernel.shape
    width = min(rows, columns)
    if columns == 4 * rows:
        return kernel.reshape(heads, width, 4, width).transpose(0, 2, 3, 1), bias.reshape(heads, 4, width)
    if rows == 4 * columns:
        return kernel.reshape(heads, 4, width, width), bias.reshape(4, heads, width).transpose(1, 0, 2)
    raise ValueError(f"recurrent kernel (NH, DH, 4 DH) or (NH, 4 DH, DH) expected, not {kernel.shape}")


class MLSTMBlock:
    """Pre-up-projection block, figure 11 of the paper: x + W_down((h + skip c) silu(z))."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        layer = f"{prefix}xlstm."
        self.norm = residual_gain(weights, f"{prefix}xlstm_norm.weight")
        self.up, self.down = Linear(weights, f"{layer}proj_up"), Linear(weights, f"{layer}proj_down")
        conv = convolution(weights, f"{layer}conv1d.conv")
        if conv is None:
            raise KeyError(f"{layer}conv1d.conv.weight: an mLSTM block always has its convolution")
        self.conv = conv
        self.q, self.k, self.v = (HeadWise(weights, f"{layer}{name}_proj") for name in "qkv")
        self.igate, self.fgate = (Linear(weights, f"{layer}mlstm_cell.{name}gate") for name in "if")
        self.head_gain = residual_gain(weights, f"{layer}mlstm_cell.outnorm.weight")
        self.skip = weights.take(f"{layer}learnable_skip")
        heads = self.igate.weight.shape[0]
        width = self.skip.shape[0] // heads
        self.cell = MLSTMCell(heads, width, width, CELL_EPS)

    def reset(self) -> None:
        """As before the first token."""
        self.cell.reset()
        self.conv.reset()

    def state(self) -> State:
        """C, n, m, conv."""
        return self.cell.state() | {"conv": self.conv.window.copy()}

    def step(self, x: Array) -> Array:
        """x (D,) -> (D,). v comes from the un-convolved branch; the gates see all of q, k, v."""
        inner, z = np.split(self.up(layer_norm(x, self.norm, NORM_EPS)), 2)
        convolved = silu(self.conv.step(inner))
        q, k, v = self.q(convolved), self.k(convolved), self.v(inner)
        qkv = np.concatenate([q, k, v])
        h = head_norm(self.cell.step(q, k, v, self.igate(qkv), self.fgate(qkv)), self.head_gain, NORM_EPS)
        return x + self.down((h + self.skip * convolved) * silu(z))


class FeedForward:
    """x + W_down(act(gate) up), rows of W_up: gate first."""

    def __init__(self, weights: Weights, prefix: str, activation: str) -> None:
        self.norm = residual_gain(weights, f"{prefix}ffn_norm.weight")
        self.up, self.down = Linear(weights, f"{prefix}ffn.proj_up"), Linear(weights, f"{prefix}ffn.proj_down")
        self.activation = ACTIVATIONS[activation]

    def step(self, x: Array) -> Array:
        """x (D,) -> (D,)."""
        gate, up = np.split(self.up(layer_norm(x, self.norm, NORM_EPS)), 2)
        return x + self.down(self.activation(gate) * up)


class SLSTMBlock:
    """Post-up-projection block, figure 10 of the paper: the normed cell output is added as it is, then the FFN."""

    def __init__(self, weights: Weights, prefix: str, activation: str) -> None:
        layer = f"{prefix}xlstm."
        self.norm = residual_gain(weights, f"{prefix}xlstm_norm.weight")
        self.conv = convolution(weights, f"{layer}conv1d.conv")
        # The module called fgate feeds slot i and the one called igate slot f: xlstm/blocks/slstm/layer.py.
        self.inputs = [HeadWise(weights, f"{layer}{name}") for name in ("fgate", "igate", "zgate", "ogate")]
        cell = f"{layer}slstm_cell."
        kernel, bias = weights.take(f"{cell}_recurrent_kernel_"), weights.take(f"{cell}_bias_")
        self.cell = SLSTMCell(*canonical_recurrence(kernel, bias))
        gain = weights.find(f"{layer}group_norm.weight")
        self.head_gain = np.ones(self.norm.shape) if gain is None else 1.0 + gain
        has_ffn = f"{prefix}ffn.proj_up.weight" in weights.names
        self.ffn = FeedForward(weights, prefix, activation) if has_ffn else None

    def reset(self) -> None:
        """As before the first token."""
        self.cell.reset()
        if self.conv is not None:
            self.conv.reset()

    def state(self) -> State:
        """y, c, n, m, and conv if there is a convolution."""
        return self.cell.state() | ({} if self.conv is None else {"conv": self.conv.window.copy()})

    def step(self, x: Array) -> Array:
        """x (D,) -> (D,). The gates i and f see the convolved input, z and o the plain one."""
        u = layer_norm(x, self.norm, NORM_EPS)
        convolved = u if self.conv is None else silu(self.conv.step(u))
        projected = [gate(part) for gate, part in zip(self.inputs, (convolved, convolved, u, u), strict=True)]
        y = self.cell.step(np.stack(projected).reshape(4, *self.cell.y.shape))
        x = x + head_norm(y, self.head_gain, NORM_EPS)
        return x if self.ffn is None else self.ffn.step(x)
