"""The xLSTM cells and their small parts in float64 numpy, one token at a time, from the equations of arXiv:2405.04517.

Knows nothing of files, names or families. Nothing is batched; vectors are head-major: feature = head * DH + d.
State convention of every mLSTM here: q carries the 1/sqrt(dk), k does not.
"""

from collections.abc import Callable
from math import erf

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, Array]


def log_sigmoid(x: Array) -> Array:
    """log(1 / (1 + exp(-x))) without overflow on either side."""
    return np.minimum(x, 0.0) - np.log1p(np.exp(-np.abs(x)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(log_sigmoid(x))


def silu(x: Array) -> Array:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    """x Phi(x) with the normal distribution function itself, not its tanh approximation."""
    phi = np.array([0.5 * (1.0 + erf(value / 2.0**0.5)) for value in x])
    y: Array = x * phi
    return y


def selu(x: Array) -> Array:
    """Self-normalizing unit of arXiv:1706.02515 with its two constants."""
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    y: Array = scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))
    return y


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "relu": lambda x: np.maximum(x, 0.0),
    "relu^2": lambda x: np.maximum(x, 0.0) ** 2,
    "selu": selu,
    "sigmoid": sigmoid,
    "swish": silu,
}


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap tanh(x / cap); no cap leaves x."""
    return x if cap is None else cap * np.tanh(x / cap)


def layer_norm(x: Array, gain: Array, eps: float) -> Array:
    """Mean and biased variance over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    y: Array = gain * centred / np.sqrt(np.mean(centred * centred, -1, keepdims=True) + eps)
    return y


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    """Mean square over the last axis."""
    y: Array = gain * x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
    return y


def head_norm(h: Array, gain: Array, eps: float) -> Array:
    """h (NH, d): a layer norm of each head on its own, then the gain (NH * d,) on the flat vector."""
    return gain * layer_norm(h, np.ones(1), eps).reshape(-1)


def head_wise(x: Array, weight: Array) -> Array:
    """Block-diagonal product: slice b of the result is weight[b] (out, in) times slice b of x."""
    return np.concatenate([block @ part for block, part in zip(weight, np.split(x, len(weight)), strict=True)])


class CausalConvolution:
    """Depthwise, y[t] = bias + sum_j w[:, j] x[t - (K - 1) + j]: the last column meets the newest sample.

    weight (channels, K), bias (channels,); `window` (channels, K - 1) holds the samples before, oldest first.
    """

    def __init__(self, weight: Array, bias: Array) -> None:
        self.weight, self.bias = weight, bias
        self.reset()

    def reset(self) -> None:
        """Left padding with zeros."""
        self.window = np.zeros((self.weight.shape[0], self.weight.shape[1] - 1))

    def step(self, x: Array) -> Array:
        """x (channels,) -> y (channels,)."""
        samples = np.column_stack([self.window, x])
        self.window = samples[:, 1:]
        y: Array = self.bias + np.sum(self.weight * samples, axis=1)
        return y


class MLSTMCell:
    """Matrix memory with exponential input gate, equations 19 to 27, stabilized as in 15 to 17.

    C (NH, dk, dv) rows are keys, n (NH, dk), m (NH,); all start at zero. eps is added to the whole denominator.
    """

    def __init__(self, heads: int, dk: int, dv: int, eps: float) -> None:
        self.shape, self.eps = (heads, dk, dv), eps
        self.reset()

    def reset(self) -> None:
        """C = 0, n = 0, m = 0."""
        heads, dk, dv = self.shape
        self.C, self.n, self.m = np.zeros((heads, dk, dv)), np.zeros((heads, dk)), np.zeros(heads)

    def state(self) -> State:
        """Copies."""
        return {"C": self.C.copy(), "n": self.n.copy(), "m": self.m.copy()}

    def step(self, q: Array, k: Array, v: Array, i: Array, f: Array) -> Array:
        """q, k (NH * dk,), v (NH * dv,), gate pre-activations i, f (NH,) -> h (NH, dv)."""
        heads, dk, dv = self.shape
        h = np.empty((heads, dv))
        log_f = log_sigmoid(f)
        m = np.maximum(log_f + self.m, i)
        keep, write = np.exp(log_f + self.m - m), np.exp(i - m)
        for head in range(heads):
            query = q.reshape(heads, dk)[head] / np.sqrt(dk)
            key, value = k.reshape(heads, dk)[head], v.reshape(heads, dv)[head]
            self.C[head] = keep[head] * self.C[head] + write[head] * np.outer(key, value)
            self.n[head] = keep[head] * self.n[head] + write[head] * key
            normalizer = max(abs(query @ self.n[head]), np.exp(-m[head])) + self.eps
            h[head] = query @ self.C[head] / normalizer
        self.m = m
        return h


class SLSTMCell:
    """Scalar memory with memory mixing inside each head, equations 8 to 17; gate order i, f, z, o.

    recurrent (NH, 4, DH out, DH in), bias (NH, 4, DH); states y, c, n, m (NH, DH). m starts at -1e30, which makes the
    first step m = i without a branch: exp(log f + m - i) is then exactly 0.
    """

    def __init__(self, recurrent: Array, bias: Array) -> None:
        self.recurrent, self.bias = recurrent, bias
        self.reset()

    def reset(self) -> None:
        """y = c = n = 0, m = -1e30."""
        heads, _, width = self.bias.shape
        self.y, self.c, self.n = np.zeros((heads, width)), np.zeros((heads, width)), np.zeros((heads, width))
        self.m = np.full((heads, width), -1e30)

    def state(self) -> State:
        """Copies."""
        return {"y": self.y.copy(), "c": self.c.copy(), "n": self.n.copy(), "m": self.m.copy()}

    def raw(self, wx: Array) -> Array:
        """Gate pre-activations: wx (4, NH, DH) + R y + b; y is the cell's output before the group norm."""
        mixed = np.stack([self.recurrent[head] @ self.y[head] for head in range(len(self.y))])
        return wx + (mixed + self.bias).swapaxes(0, 1)

    def step(self, wx: Array) -> Array:
        """wx (4, NH, DH) -> y (NH, DH)."""
        i, f, z, o = self.raw(wx)
        log_f = log_sigmoid(f)
        m = np.maximum(i, log_f + self.m)
        keep, write = np.minimum(np.exp(log_f + self.m - m), 1.0), np.minimum(np.exp(i - m), 1.0)
        self.c = keep * self.c + write * np.tanh(z)
        self.n = keep * self.n + write
        self.y, self.m = sigmoid(o) * self.c / self.n, m
        return self.y
