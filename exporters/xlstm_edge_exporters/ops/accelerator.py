"""Lowering for compilers of accelerators, which take a graph whole or not at all and compute in float16.

One token, one sequence, and only operators that Core ML, Qualcomm's HTP and OpenVINO all have: no Abs, Log, Neg or Selu, an
embedding by GatherND, the head's scale outside its Gemm, a gelu in the form that compilers know. Nothing can overflow
float16 for the size of an activation alone: norms are one operator, the stabilized cell has relative gates and a scaled
memory (`relative_gates`), and its normalizer is bounded from below.
"""

import torch
from torch import Tensor

from ..relative_gates import HEADROOM
from ..spec import SMALL_EPS, Activation, Norm
from . import MLSTMState, SLSTMState
from .emit import emit, merge_heads, reshape, slice_axis, slstm_cell, split
from .portable import Portable

# The head's norm makes the size of h invisible unless it is near the norm's epsilon; so the normalizer may be larger than it
# is where h stays large: at most 2**7. A normalizer of 0, where neither memory nor query hold anything, is the smallest
# number instead: of float16, or next to nothing in float32. It must not be larger, or small true ones make another h.
LARGEST_H, SMALLEST_HALF, SMALLEST_FLOAT = 2.0**7, 2.0**-24, 1e-30
# exp of less is 0 to float16 and to whatever it is added to. Qualcomm's Exp gives up to 131,008 for numbers below -87.
LEAST_EXPONENT = -64.0
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
# 2 artanh(t) / t as a polynomial of t^2, Chebyshev on 0 to 1/9; off by 4e-9 at most.
SERIES = (2.000000007681758, 0.6666632164140144, 0.40024595229818943, 0.2796515775679465, 0.28157778313522575)


class Accelerator(Portable):
    """Emits nodes of opset 18; matrix products and convolutions are those of `Portable`.

    `half` is for compilers that compute in float16, whose Softplus and Exp cannot be relied on: Qualcomm's Softplus is off by
    up to 0.012, which is a tenth of a decay, and its Exp anything far below 0.
    """

    def __init__(self, *, half: bool) -> None:
        self._half = half

    def embed(self, ids: Tensor, weight: Tensor) -> Tensor:
        """GatherND over (1, T, 1) indices."""
        index = reshape(ids, [1, ids.shape[1], 1], keep=0)
        return emit("GatherND", weight, index, shape=[1, ids.shape[1], weight.shape[1]])

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """MatMul and Add, the bias in a shape that onnxruntime does not fuse into a Gemm: HTP's loses digits."""
        y = x @ weight
        return y if bias is None else y + reshape(bias, [1] * (x.ndim - 1) + [bias.shape[0]], keep=0)

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, spec: Norm) -> Tensor:
        """LayerNormalization; an RMS norm is the layer norm of x beside -x, whose mean is 0."""
        if spec.kind == "layer":
            return emit("LayerNormalization", x, weight, bias, axis=-1, epsilon=spec.eps)
        width = int(x.shape[-1])
        y = _standardized(torch.cat([x, x * -1.0], -1), spec.eps)
        y = slice_axis(y, 0, width, x.ndim - 1, x.shape) * weight
        return y if bias is None else y + bias

    def head_norm(self, h: Tensor, weight: Tensor | None, bias: Tensor | None, spec: Norm) -> Tensor:
        """LayerNormalization over dv, then the weight, which differs from head to head."""
        y = merge_heads(_standardized(h, spec.eps))
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def last(self, x: Tensor) -> Tensor:
        """T is 1."""
        return reshape(x, [1, x.shape[2]], keep=0)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """gelu with a division, as compilers know it; selu without Selu."""
        if kind == "gelu":
            return x * (torch.erf(emit("Div", x, torch.tensor(2.0**0.5))) + 1.0) * 0.5
        if kind == "selu":
            positive = torch.relu(x)
            return (positive + (self._exp(x - positive) - 1.0) * SELU_ALPHA) * SELU_SCALE
        return super().activation(x, kind)

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """Gemm, then the scale: a Gemm right before a soft cap's Tanh loses digits on HTP."""
        flat = super().project(x if x.ndim == 2 else reshape(x, x.shape[1:], keep=0), weight, 1.0)
        flat = flat if scale == 1.0 else flat * scale
        return flat if x.ndim == 2 else reshape(flat, [*x.shape[:2], weight.shape[0]], keep=0)

    def relative_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float, offset: Tensor
    ) -> tuple[Tensor, MLSTMState]:
        """The stabilized step on relative gates, every intermediate number of moderate size."""
        C, n, m = state
        _, heads, dk, dv = C.shape
        i, minus_f = split(gates, [heads, heads])
        decayed = m - self._softplus(minus_f)
        m = torch.maximum(decayed, i)
        decay, gain = _expand(self._exp(decayed - m)), _expand(self._exp(i - m) * 2.0**-HEADROOM)
        column = reshape(k, [1, heads, dk, 1], keep=0) * gain
        row = reshape(v, [1, heads, 1, dv], keep=0)
        C, n = decay * C + torch.matmul(column, row), decay * n + column
        query = reshape(q, [1, heads, 1, dk], keep=0) * dk**-0.5
        factor, bound = map(_expand, self._bounded_exponentials(m + offset))
        h = self._normalized(query @ C, query @ n, factor, bound, eps)
        return reshape(h, [1, 1, heads, dv], keep=0), (C, n, m)

    def slstm(self, wx: Tensor, recurrent: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
        """The stabilized step; c / n is no larger than 1, and n between 1 and the number of tokens remembered."""
        heads, dh, _ = recurrent.shape
        wx = reshape(wx, [1, 2, heads, 2 * dh], keep=0).transpose(1, 2)
        raw = reshape(wx, [1, heads, 1, 4 * dh], keep=0) + state[0] @ recurrent
        o, c, n, m = slstm_cell(raw, state, self._softplus, self._exp)
        y = o * (c / n)
        return reshape(y, [1, 1, heads, dh], keep=0), (y, c, n, m)

    def _normalized(self, numerator: Tensor, overlap: Tensor, factor: Tensor, bound: Tensor, eps: float) -> Tensor:
        """numerator / max(|overlap|, exp(-m)), both sides times `factor`, so that none overflows (`_bounded_exponentials`)."""
        numerator, normalizer = numerator * factor, torch.maximum(_absolute(overlap) * factor, bound)
        if eps > SMALL_EPS:
            normalizer = normalizer + factor * (eps * 2.0**-HEADROOM)
        largest = emit(
            "ReduceMax", _absolute(numerator), torch.tensor([-1]), shape=[*numerator.shape[:-1], 1], keepdims=1
        )
        smallest = SMALLEST_HALF if self._half else SMALLEST_FLOAT
        least = torch.maximum(largest * (1.0 / LARGEST_H), torch.tensor(smallest))
        return numerator / torch.maximum(normalizer, least)

    def _bounded_exponentials(self, m: Tensor) -> tuple[Tensor, Tensor]:
        """exp(min(m, 0)) and exp(-max(m, 0)), of which the second over the first is exp(-m)."""
        positive = torch.relu(m)
        return self._exp(m - positive), self._exp(positive * -1.0)

    def _exp(self, x: Tensor) -> Tensor:
        """exp of what is at most 0, or near it."""
        return torch.exp(torch.maximum(x, torch.tensor(LEAST_EXPONENT)) if self._half else x)

    def _softplus(self, x: Tensor) -> Tensor:
        """log(1 + exp(x)) = relu(x) + 2 artanh(e / (2 + e)) with e = exp(-|x|): no step of it loses digits in float16."""
        if not self._half:
            return emit("Softplus", x)
        positive = torch.relu(x)
        e = self._exp(x - positive * 2.0)
        t = e / (e + 2.0)
        square = t * t
        series = square * SERIES[-1] + SERIES[-2]
        for coefficient in reversed(SERIES[:-2]):
            series = series * square + coefficient
        return positive + t * series


def _standardized(x: Tensor, eps: float) -> Tensor:
    """Mean 0 and variance 1 along the last axis, whatever the size of x."""
    ones = torch.tensor([1.0] * int(x.shape[-1]))
    return emit("LayerNormalization", x, ones, axis=-1, epsilon=eps)


def _absolute(x: Tensor) -> Tensor:
    return torch.maximum(x, x * -1.0)


def _expand(per_head: Tensor) -> Tensor:
    """(1, 1, H) -> (1, H, 1, 1)."""
    return reshape(per_head, [1, per_head.shape[-1], 1, 1], keep=0)
