"""The recurrences as the papers print them, one token after the other: the truth the lowerings are held to.

Runs in whatever float dtype its inputs have (float64 for test vectors). Knows nothing of ONNX.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..relative_gates import HEADROOM
from ..spec import Activation, Norm
from . import MLSTMState, SLSTMState


class Reference:
    """Plain torch; see `Ops` for shapes."""

    def embed(self, ids: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(ids, weight)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """MatMul, and Add where there is a bias."""
        y = x @ weight
        return y if bias is None else y + bias

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, spec: Norm) -> Tensor:
        """RMS or layer norm with the biased variance."""
        if spec.kind == "layer":
            return F.layer_norm(x, (x.shape[-1],), weight, bias, spec.eps)
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + spec.eps) * weight
        return y if bias is None else y + bias

    def add_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, spec: Norm
    ) -> tuple[Tensor, Tensor]:
        x = x + delta
        return x, self.norm(x, weight, bias, spec)

    def head_norm(self, h: Tensor, weight: Tensor | None, bias: Tensor | None, spec: Norm) -> Tensor:
        """Always mean-subtracting, in every family."""
        y = F.layer_norm(h, (h.shape[-1],), None, None, spec.eps).flatten(-2)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def split(self, x: Tensor, sizes: Sequence[int], dim: int = -1) -> tuple[Tensor, ...]:
        return torch.split(x, list(sizes), dim)

    def last(self, x: Tensor) -> Tensor:
        return x[:, -1]

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """The names of xlstm/components/feedforward.py; gelu is the erf form."""
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "gelu": F.gelu,
            "relu": F.relu,
            "relu^2": lambda t: F.relu(t).square(),
            "sigmoid": torch.sigmoid,
            "silu": F.silu,
            "selu": F.selu,
        }
        return functions[kind](x)

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        return scale * (x @ weight.T)

    def block_diagonal(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv1d(x, weight, bias, groups=x.shape[1] // weight.shape[1])

    def causal_conv_silu(
        self, x: Tensor, weight: Tensor, bias: Tensor, window: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Index K-1 of the kernel meets the newest sample."""
        if window is None:
            return F.silu(F.conv1d(x, weight, bias, groups=x.shape[1])), None
        padded = torch.cat([window, x], -1)
        return F.silu(F.conv1d(padded, weight, bias, groups=x.shape[1])), padded[..., -window.shape[-1] :]

    def mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float
    ) -> tuple[Tensor, MLSTMState]:
        """arXiv:2405.04517 equations 19 to 27, stabilized, with q scaled by dk**-0.5 instead of k."""
        (C, n, m), heads = state, state[0].shape[1]
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
        q = q * q.shape[-1] ** -0.5
        i, f = gates[..., :heads], -gates[..., heads:]
        outputs = []
        for t in range(q.shape[1]):
            h, (C, n, m) = _mlstm_step(q[:, t], k[:, t], v[:, t], i[:, t, None], f[:, t, None], (C, n, m), eps)
            outputs.append(h)
        return torch.stack(outputs, 1), (C, n, m)

    def bounded_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The same equations before stabilization (equations 19 to 23): C and n carry exp(i) itself."""
        (C, n), heads = state, state[0].shape[1]
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
        q = q * q.shape[-1] ** -0.5
        gain, decay = torch.exp(gates[..., :heads]), torch.sigmoid(-gates[..., heads:])
        outputs = []
        for t in range(q.shape[1]):
            a, b = decay[:, t, :, None, None], gain[:, t, :, None, None]
            C = a * C + b * k[:, t, :, :, None] * v[:, t, :, None, :]
            n = a * n + b * k[:, t, :, :, None]
            query = q[:, t, :, None, :]
            outputs.append(((query @ C) / (query @ n).abs().clamp_min(1.0)).squeeze(-2))
        return torch.stack(outputs, 1), (C, n)

    def relative_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float, offset: Tensor
    ) -> tuple[Tensor, MLSTMState]:
        """The official cell on absolute gates and an unscaled memory."""
        (C, n, m), shift = state, offset - HEADROOM * math.log(2.0)
        gates = gates + torch.cat([shift, torch.zeros_like(shift)], -1)
        h, (C, n, m) = self.mlstm(q, k, v, gates, (C * 2**HEADROOM, n * 2**HEADROOM, m + shift), eps)
        return h, (C / 2**HEADROOM, n / 2**HEADROOM, m - shift)

    def slstm(self, wx: Tensor, recurrent: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
        """arXiv:2405.04517 equations 8 to 18, stabilized; m starts at -1e30, so the first step is like the others."""
        per_head = (
            wx.reshape(wx.shape[0], 2, recurrent.shape[0], -1, wx.shape[2])
            .permute(4, 0, 2, 1, 3)
            .flatten(3)
            .unsqueeze(3)
        )
        outputs = []
        for step in per_head:
            state = _slstm_step(step, recurrent, state)
            outputs.append(state[0].squeeze(2))
        return torch.stack(outputs, 1), state


def _mlstm_step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState, eps: float
) -> tuple[Tensor, MLSTMState]:
    """One token: q, k (B, H, dk), v (B, H, dv), i and f (B, 1, H)."""
    C, n, m = state
    log_f = F.logsigmoid(f)
    m_new = torch.maximum(log_f + m, i)
    decay, gain = (g.squeeze(1)[..., None, None] for g in (torch.exp(log_f + m - m_new), torch.exp(i - m_new)))
    C = decay * C + gain * k[..., :, None] * v[..., None, :]
    n = decay * n + gain * k[..., :, None]
    numerator = (q[..., None, :] @ C).squeeze(-2)
    denominator = (q[..., None, :] @ n).squeeze(-2).abs().maximum(torch.exp(-m_new).transpose(1, 2))
    return numerator / (denominator + eps), (C, n, m_new)


def _slstm_step(wx: Tensor, recurrent: Tensor, state: SLSTMState) -> SLSTMState:
    """One token: wx and every state tensor are row vectors per head, (B, H, 1, ...)."""
    y, c, n, m = state
    i, minus_f, z, o = (wx + y @ recurrent).chunk(4, -1)
    decayed = F.logsigmoid(-minus_f) + m
    m_new = torch.maximum(i, decayed)
    ig, fg = torch.exp(i - m_new), torch.exp(decayed - m_new)
    c = fg * c + ig * torch.tanh(z)
    n = fg * n + ig
    return torch.sigmoid(o) * c / n, c, n, m_new
