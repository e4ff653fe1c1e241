"""The two xLSTM cells in float64 numpy, one token at a time, straight from the equations of arXiv:2405.04517.

State convention: q is scaled by dk**-0.5 and k is not. Head-major vectors; nothing is batched.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def log_sigmoid(x: Array) -> Array:
    """log(1 / (1 + exp(-x))) without overflow."""
    return np.minimum(x, 0.0) - np.log1p(np.exp(-np.abs(x)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(log_sigmoid(x))


def silu(x: Array) -> Array:
    """x sigmoid(x)."""
    return x * sigmoid(x)


class MLSTMCell:
    """Equations 19-27: matrix memory, stabilized exponential gating."""

    def __init__(self, heads: int, dk: int, dv: int, eps: float) -> None:
        self.C, self.n, self.m = np.zeros((heads, dk, dv)), np.zeros((heads, dk)), np.zeros(heads)
        self.eps = eps

    def step(self, q: Array, k: Array, v: Array, i: Array, f: Array) -> Array:
        """q, k (H, dk), v (H, dv), gate pre-activations (H,) -> h (H, dv)."""
        m_new = np.maximum(log_sigmoid(f) + self.m, i)
        decay, gain = np.exp(log_sigmoid(f) + self.m - m_new), np.exp(i - m_new)
        self.C = decay[:, None, None] * self.C + gain[:, None, None] * k[:, :, None] * v[:, None, :]
        self.n = decay[:, None] * self.n + gain[:, None] * k
        self.m = m_new
        q = q / np.sqrt(q.shape[1])
        numerator = np.einsum("hk,hkv->hv", q, self.C)
        denominator = np.maximum(np.abs(np.einsum("hk,hk->h", q, self.n)), np.exp(-m_new))
        return numerator / (denominator + self.eps)[:, None]


class SLSTMCell:
    """Equations 8-18 with the first step's rule m = i, written as m = -1e30 before it."""

    def __init__(self, heads: int, width: int) -> None:
        self.y, self.c, self.n = (np.zeros((heads, width)) for _ in range(3))
        self.m = np.full((heads, width), -1e30)

    def step(self, wx: Array, recurrent: Array, bias: Array) -> Array:
        """wx (4, H, DH) in gate order i f z o, recurrent (H, 4, DH out, DH in), bias (H, 4, DH) -> y (H, DH)."""
        raw = wx + np.einsum("hgoj,hj->gho", recurrent, self.y) + bias.transpose(1, 0, 2)
        i, f, z, o = raw
        m_new = np.maximum(i, log_sigmoid(f) + self.m)
        gain, decay = np.exp(i - m_new), np.exp(log_sigmoid(f) + self.m - m_new)
        self.c = decay * self.c + gain * np.tanh(z)
        self.n = decay * self.n + gain
        self.m = m_new
        self.y = sigmoid(o) * self.c / self.n
        return self.y
