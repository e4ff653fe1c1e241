"""Lowering for any ONNX runtime: one token, one sequence, standard operators of opset 17 only.

Compilers for mobile accelerators take a graph whole or not at all, so this avoids what one of them lacks: Softplus
(NNAPI), Neg (CoreML's ML programs), RMSNormalization (anything before opset 23). Norms are written in the one
decomposed form that onnxruntime fuses back (Pow, ReduceMean, Sqrt, Div).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spec import Activation, Norm
from . import MLSTMState, SLSTMState
from .emit import (
    emit,
    grouped_conv,
    last_token,
    mean_last,
    merge_heads,
    reshape,
    slice_axis,
    slstm_cell,
    split,
    split_heads,
)


class Portable:
    """Emits nodes that mean the same from opset 13 to 17; `passes.opset17` settles ReduceMean."""

    def embed(self, ids: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.embedding(ids, weight)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """MatMul, and Add where there is a bias."""
        y = x @ weight
        return y if bias is None else y + bias

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, spec: Norm) -> Tensor:
        y = _standardize(x, spec) * weight
        return y if bias is None else y + bias

    def add_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, spec: Norm
    ) -> tuple[Tensor, Tensor]:
        x = x + delta
        return x, self.norm(x, weight, bias, spec)

    def head_norm(self, h: Tensor, weight: Tensor | None, bias: Tensor | None, spec: Norm) -> Tensor:
        y = merge_heads(_standardize(h, spec))
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def split(self, x: Tensor, sizes: Sequence[int], dim: int = -1) -> tuple[Tensor, ...]:
        return split(x, sizes, dim)

    def last(self, x: Tensor) -> Tensor:
        """T is 1: Gather picks the only token."""
        return last_token(x)

    def silu(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """Standard nodes; gelu through Erf."""
        if kind == "silu":
            return self.silu(x)
        if kind == "gelu":
            return x * (torch.erf(x * 2**-0.5) + 1.0) * 0.5
        if kind == "relu^2":
            y = torch.relu(x)
            return y * y
        if kind == "selu":
            return emit("Selu", x)
        return {"relu": torch.relu, "sigmoid": torch.sigmoid}[kind](x)

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """Gemm reads the (V, D) matrix as it lies, so that a tied embedding is stored once."""
        return emit("Gemm", x, weight, shape=[x.shape[0], weight.shape[0]], transB=1, alpha=scale)

    def block_diagonal(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One Conv."""
        return grouped_conv(x, weight, bias, x.shape[1] // weight.shape[1])

    def causal_conv_silu(
        self, x: Tensor, weight: Tensor, bias: Tensor, window: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Concat the window with the new sample, convolve, cut the oldest off."""
        if window is None:
            return self.silu(grouped_conv(x, weight, bias, weight.shape[0])), None
        padded = torch.cat([window, x], -1)
        y = grouped_conv(padded, weight, bias, weight.shape[0])
        return self.silu(y), slice_axis(padded, int(x.shape[2]), 2**31, 2, window.shape)

    def mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float
    ) -> tuple[Tensor, MLSTMState]:
        """The plain step: outer product into C, one row vector times C out of it."""
        C, n, m = state
        _, heads, dk, dv = C.shape
        i, minus_f = split(gates, [heads, heads])
        decayed = m - _softplus(minus_f)
        m = torch.maximum(decayed, i)
        decay = reshape(torch.exp(decayed - m), [1, heads, 1, 1], keep=0)
        key = split_heads(k, heads).transpose(1, 2) * reshape(torch.exp(i - m), [1, heads, 1, 1], keep=0)
        column, row = reshape(key, [1, heads, dk, 1], keep=0), reshape(v, [1, heads, 1, dv], keep=0)
        C, n = decay * C + torch.matmul(column, row), decay * n + column
        query = reshape(q, [1, heads, 1, dk], keep=0) * dk**-0.5
        normalizer = torch.maximum(torch.abs(query @ n), _expand(torch.exp(m * -1.0)))
        h = (query @ C) / (normalizer + eps)
        return reshape(h, [1, 1, heads, dv], keep=0), (C, n, m)

    def bounded_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The plain step without a stabilizer. A Sigmoid loses its digits where the decay is small and exp(i) large."""
        C, n = state
        _, heads, dk, dv = C.shape
        i, minus_f = split(gates, [heads, heads])
        decay = reshape(torch.exp(_softplus(minus_f) * -1.0), [1, heads, 1, 1], keep=0)
        key = split_heads(k, heads).transpose(1, 2) * reshape(torch.exp(i), [1, heads, 1, 1], keep=0)
        column, row = reshape(key, [1, heads, dk, 1], keep=0), reshape(v, [1, heads, 1, dv], keep=0)
        C, n = decay * C + torch.matmul(column, row), decay * n + column
        query = reshape(q, [1, heads, 1, dk], keep=0) * dk**-0.5
        h = (query @ C) / torch.maximum(torch.abs(query @ n), torch.tensor([1.0]))
        return reshape(h, [1, 1, heads, dv], keep=0), (C, n)

    def relative_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float, offset: Tensor
    ) -> tuple[Tensor, MLSTMState]:
        """No target with this lowering has relative gates."""
        raise NotImplementedError

    def slstm(self, wx: Tensor, recurrent: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
        heads, dh, _ = recurrent.shape
        wx = reshape(wx, [1, 2, heads, 2 * dh], keep=0).transpose(1, 2)
        raw = reshape(wx, [1, heads, 1, 4 * dh], keep=0) + state[0] @ recurrent
        o, c, n, m = slstm_cell(raw, state, _softplus)
        y = o * c / n
        return reshape(y, [1, 1, heads, dh], keep=0), (y, c, n, m)


def _standardize(x: Tensor, spec: Norm) -> Tensor:
    if spec.kind == "layer":
        x = x - mean_last(x)
    return x / torch.sqrt(mean_last(torch.pow(x, 2.0)) + spec.eps)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), finite for every x, without Softplus and Neg."""
    return torch.relu(x) + torch.log(torch.exp(torch.abs(x) * -1.0) + 1.0)


def _expand(per_head: Tensor) -> Tensor:
    """(1, 1, H) -> (1, H, 1, 1)."""
    return reshape(per_head, [1, per_head.shape[-1], 1, 1], keep=0)
