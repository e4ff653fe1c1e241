"""Lowering for onnxruntime: one graph for any chunk length T from 1 to K, with onnxruntime's recurrent operators.

The stabilizer of the mLSTM looks sequential but has a closed form. With F_t the running sum of log f inside the chunk
and a_t = i_t - F_t, let M_t = max(m_in, a_1 .. a_t). Then m_t = F_t + M_t, the log decay is M_{t-1} - M_t and the input
gate exp(a_t - M_t): one CumSum and one running maximum, and what remains is gated linear attention, which
`com.microsoft::LinearAttention` does natively for one token and for many. The normalizer n is the same recurrence with
the input gate in the place of the value.

The running maximum is a MaxPool whose window reaches K tokens back: exact while T <= K. Where K is 1 the step is written out,
without pools, sums and loops over one token.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..spec import Activation, Norm
from . import MLSTMState, SLSTMState
from .emit import (
    emit,
    emit_many,
    grouped_conv,
    last_token,
    merge_heads,
    reshape,
    slice_axis,
    slstm_cell,
    split,
    split_heads,
    unsqueeze_last,
)

MS = "com.microsoft::"


class Ort:
    """Emits opset 23 and com.microsoft nodes; `chunk` is K, the largest T that the graph is exact for."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def embed(self, ids: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(ids, weight)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """MatMul, and Add where there is a bias."""
        y = x @ weight
        return y if bias is None else y + bias

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, spec: Norm) -> Tensor:
        """RMSNormalization or LayerNormalization: one node each."""
        if spec.kind == "layer":
            return emit("LayerNormalization", x, weight, bias, axis=-1, epsilon=spec.eps)
        y = emit("RMSNormalization", x, weight, axis=-1, epsilon=spec.eps)
        return y if bias is None else y + bias

    def add_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, spec: Norm
    ) -> tuple[Tensor, Tensor]:
        """Skip*LayerNormalization: residual and norm in one pass over memory. The optimizer does not fuse this itself."""
        shapes = [x.shape, [*x.shape[:-1], 1], [*x.shape[:-1], 1], x.shape]
        if spec.kind == "layer":
            y, _, _, total = emit_many(
                MS + "SkipLayerNormalization", x, delta, weight, bias, shapes=shapes, epsilon=spec.eps
            )
            return total, y
        name = MS + "SkipSimplifiedLayerNormalization"
        y, _, _, total = emit_many(name, x, delta, weight, shapes=shapes, epsilon=spec.eps)
        return total, y if bias is None else y + bias

    def head_norm(self, h: Tensor, weight: Tensor | None, bias: Tensor | None, spec: Norm) -> Tensor:
        """LayerNormalization over dv, then the weight, which differs from head to head."""
        ones = torch.tensor([1.0] * int(h.shape[-1]))
        y = merge_heads(emit("LayerNormalization", h, ones, axis=-1, epsilon=spec.eps))
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def split(self, x: Tensor, sizes: Sequence[int], dim: int = -1) -> tuple[Tensor, ...]:
        return split(x, sizes, dim)

    def last(self, x: Tensor) -> Tensor:
        return last_token(x)

    def silu(self, x: Tensor) -> Tensor:
        """QuickGelu with alpha 1 is SiLU."""
        return emit(MS + "QuickGelu", x, alpha=1.0)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """One node where there is one."""
        if kind == "silu":
            return self.silu(x)
        if kind == "relu^2":
            y = torch.relu(x)
            return y * y
        return {"gelu": F.gelu, "relu": torch.relu, "sigmoid": torch.sigmoid, "selu": F.selu}[kind](x)

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """FusedMatMul reads the (V, D) matrix as it lies, so that a tied embedding is stored once."""
        x = x if scale == 1.0 else x * scale
        return emit(MS + "FusedMatMul", x, weight, shape=[*x.shape[:-1], weight.shape[0]], transB=1)

    def block_diagonal(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One Conv."""
        return grouped_conv(x, weight, bias, x.shape[1] // weight.shape[1])

    def causal_conv_silu(
        self, x: Tensor, weight: Tensor, bias: Tensor, window: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """CausalConvWithState with its fused SiLU."""
        if window is None:
            return self.silu(grouped_conv(x, weight, bias, weight.shape[0])), None
        y, new = emit_many(
            MS + "CausalConvWithState", x, weight, bias, window, shapes=[x.shape, window.shape], activation="silu"
        )
        return y, new

    def mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float
    ) -> tuple[Tensor, MLSTMState]:
        """See the head of this module; sums of log f are kept negated throughout (p = -F)."""
        (C, n, m), heads = state, state[1].shape[1]
        i, minus_f = split(gates, [heads, heads])
        p = emit("Softplus", minus_f)
        p = p if self.chunk == 1 else emit("CumSum", p, torch.tensor(1))
        a = i + p
        before, now = self._running_max(m, a)
        decay, gain, minus_m = before - now, torch.exp(a - now), p - now
        h, d, C, n = _attend(q, k, v, gain, decay, C, n)
        denominator = torch.maximum(torch.abs(d), torch.exp(minus_m)) + eps
        m = torch.neg(minus_m if self.chunk == 1 else slice_axis(minus_m, -1, 2**31, 1, m.shape))
        return split_heads(h, heads) / unsqueeze_last(denominator), (C, n, m)

    def bounded_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Nothing to stabilize: the log decay is -softplus(-f), the gain exp(i), for one token and for many."""
        (C, n), heads = state, state[1].shape[1]
        i, minus_f = split(gates, [heads, heads])
        decay, gain = torch.neg(emit("Softplus", minus_f)), torch.exp(i)
        h, d, C, n = _attend(q, k, v, gain, decay, C, n)
        denominator = torch.maximum(torch.abs(d), torch.tensor([1.0]))
        return split_heads(h, heads) / unsqueeze_last(denominator), (C, n)

    def relative_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float, offset: Tensor
    ) -> tuple[Tensor, MLSTMState]:
        """No target with this lowering has relative gates."""
        raise NotImplementedError

    def slstm(self, wx: Tensor, recurrent: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
        """A placeholder node over time-major gates; `passes.scan` puts the ONNX Scan in its place."""
        (batch, _, tokens), (heads, dh, _) = wx.shape, recurrent.shape
        if self.chunk == 1:
            return _slstm_step(wx, recurrent, state)
        wx = reshape(wx.transpose(1, 2), [batch, tokens, 2, heads, 2 * dh], keep=2)
        wx = reshape(wx.permute(1, 0, 3, 2, 4), [tokens, batch, heads, 1, 4 * dh], keep=2)
        shapes = [s.shape for s in state] + [[tokens, batch, heads, 1, dh]]
        y, c, n, m, ys = emit_many("xlstm_edge::SLSTM", wx, recurrent, *state, shapes=shapes)
        return reshape(ys.transpose(0, 1), [batch, tokens, heads, dh], keep=2), (y, c, n, m)

    def _running_max(self, m: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """(M_{t-1}, M_t), each (B, T, H), of m (B, 1, H) and a (B, T, H)."""
        if self.chunk == 1:
            return m, torch.maximum(m, a)
        padded = torch.cat([m, a], 1)
        batch, length, heads = padded.shape
        image = emit("Unsqueeze", padded, torch.tensor([1]), shape=[batch, 1, length, heads])
        pooled = emit("MaxPool", image, kernel_shape=[self.chunk + 1, 1], pads=[self.chunk, 0, 0, 0], strides=[1, 1])
        running = emit("Squeeze", pooled, torch.tensor([1]), shape=padded.shape)
        return slice_axis(running, 0, -1, 1, a.shape), slice_axis(running, 1, 2**31, 1, a.shape)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, gain: Tensor, decay: Tensor, C: Tensor, n: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q C, q n, new C, new n): gated linear attention with the gained value, and with the gain as value.

    Where the heads of C come split along the value axis, each part is a value head of its own beside fewer query and key heads.
    """
    name, heads, splits = MS + "LinearAttention", n.shape[1], C.shape[1] // n.shape[1]
    attention = {"update_rule": "gated", "q_num_heads": heads, "scale": C.shape[2] ** -0.5}
    gained = v * (gain @ _repeat(heads, v.shape[2] // heads))
    decays = decay if splits == 1 else decay @ _repeat(heads, splits)
    h, C = emit_many(name, q, k, gained, C, decays, shapes=[v.shape, C.shape], kv_num_heads=heads * splits, **attention)
    d, n = emit_many(name, q, k, gain, n, decay, shapes=[gain.shape, n.shape], kv_num_heads=heads, **attention)
    return h, d, C, n


def _slstm_step(wx: Tensor, recurrent: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
    """One token: wx (B, 2*H*2*DH, 1); what `passes.scan` puts into its loop."""
    batch, (heads, dh, _) = wx.shape[0], recurrent.shape
    wx = reshape(wx, [batch, 2, heads, 2 * dh], keep=1).transpose(1, 2)
    raw = reshape(wx, [batch, heads, 1, 4 * dh], keep=1) + state[0] @ recurrent
    o, c, n, m = slstm_cell(raw, state, partial(emit, "Softplus"))
    y = o * c / n
    return reshape(y, [batch, 1, heads, dh], keep=1), (y, c, n, m)


def _repeat(heads: int, times: int) -> Tensor:
    """(H, H*times) of ones and zeros: a product with it gives a number per head to each of the head's features."""
    owners = [column // times for column in range(heads * times)]
    return torch.tensor([[float(owner == head) for owner in owners] for head in range(heads)])
