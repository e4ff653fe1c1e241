"""The reference with the mLSTM over a whole sequence at once: the same outputs, many times faster, and no state out.

For calibration, where sequences start from the zero state and only the outputs matter. The stabilized parallel form is
that of arXiv:2405.04517, equations 64 to 73, with the stabilizer of the recurrent form, whose m starts at 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from . import MLSTMState
from .reference import Reference

# Shares of the largest weight that no float can tell from none; products with subnormal numbers take ten times as long.
FORGOTTEN = 1e-30


class Parallel(Reference):
    """Only right from the zero state; the mLSTM's state comes back as it went in."""

    def mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float
    ) -> tuple[Tensor, MLSTMState]:
        """All T tokens in one product of (T, T) weights."""
        return _attend(q, k, v, gates, state[0].shape[1], eps), state

    def bounded_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The same; a stabilizer changes nothing but the rounding."""
        return _attend(q, k, v, gates, state[0].shape[1], 0.0), state


def _attend(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, heads: int, eps: float) -> Tensor:
    """(B, T, H, dv): weight of token s in the output of token t is exp(F_t - F_s + i_s) q_t k_s, F the sum of log f."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    i, log_f = gates[..., :heads].transpose(1, 2), F.logsigmoid(-gates[..., heads:]).transpose(1, 2)
    total, tokens = log_f.cumsum(-1), q.shape[2]
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
    exponent = (total[..., :, None] - total[..., None, :] + i[..., None, :]).masked_fill_(future, -torch.inf)
    m = torch.maximum(exponent.amax(-1), total)
    decay = F.threshold(exponent.sub_(m[..., None]).exp_(), FORGOTTEN, 0.0, inplace=True)
    weights = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 * decay
    denominator = weights.sum(-1).abs().maximum(torch.exp(-m)) + eps
    h: Tensor = (weights @ v) / denominator[..., None]
    return h.transpose(1, 2)
