"""Lowering of prompts for compilers of accelerators: a fixed number of tokens in one call, products instead of a recurrence.

The mLSTM over T tokens is the stabilized parallel form of arXiv:2405.04517, equations 64 to 73, with the state that came in as
one more token. sLSTMs have no such form: their steps stand one after the other in the graph.
"""

import torch
from torch import Tensor

from ..relative_gates import HEADROOM
from . import MLSTMState, SLSTMState
from .accelerator import Accelerator
from .emit import emit, reshape, slice_axis, slstm_cell, split

# Added to the exponents of what lies in the future: exp gives 0, and float16 holds the number.
FUTURE = -1e4


class AcceleratorChunk(Accelerator):
    """Emits nodes for calls of exactly `tokens` tokens; everything that looks at one token alone is that of `Accelerator`."""

    def __init__(self, tokens: int, *, half: bool) -> None:
        super().__init__(half=half)
        self._tokens = tokens

    def last(self, x: Tensor) -> Tensor:
        """GatherND: of two Slices that are added HTP takes other rows."""
        rows, index = reshape(x, x.shape[1:], keep=0), torch.tensor([[self._tokens - 1]])
        return emit("GatherND", rows, index, shape=[1, x.shape[2]])

    def relative_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float, offset: Tensor
    ) -> tuple[Tensor, MLSTMState]:
        """Weights of all earlier tokens and of the memory, (T, T + 1) a head, no larger than 1."""
        C, n, m = state
        _, heads, dk, dv = C.shape
        tokens = self._tokens
        exponents = self._exponents(gates, m)
        new_m = emit("ReduceMax", exponents, torch.tensor([-1]), shape=[1, heads, tokens, 1], keepdims=1)
        weights, decay = split(self._exp(exponents - new_m), [tokens, 1])

        query = reshape(q, [1, tokens, heads, dk], keep=0).transpose(1, 2) * dk**-0.5
        columns = reshape(k, [1, tokens, heads, dk], keep=0).permute(0, 2, 3, 1) * 2.0**-HEADROOM
        rows, ones = reshape(v, [1, tokens, heads, dv], keep=0).transpose(1, 2), torch.tensor([[1.0]] * tokens)
        scores = (query @ columns) * weights
        numerator, overlap = scores @ rows + (query @ C) * decay, scores @ ones + (query @ n) * decay
        factor, bound = self._bounded_exponentials(new_m + reshape(offset, [1, heads, 1, 1], keep=0))
        h = self._normalized(numerator, overlap, factor, bound, eps)

        # The weights of the last token are those of the new memory.
        left = self._last_row(decay)
        columns = columns * self._last_row(weights)
        C, n = left * C + columns @ rows, left * n + columns @ ones
        return h.transpose(1, 2), (C, n, reshape(self._last_row(new_m), [1, 1, heads], keep=0))

    def _exponents(self, gates: Tensor, m: Tensor) -> Tensor:
        """(1, H, T, T + 1): i_s and what is forgotten from s to t, in log; of the memory, m and all that is forgotten to t.

        What is forgotten is summed for every pair by one product with a constant: differences of long sums lose digits.
        """
        tokens, heads = self._tokens, m.shape[-1]
        i, minus_f = split(gates, [heads, heads])
        forgotten = self._softplus(minus_f).transpose(1, 2) @ _spans(tokens)
        i, m = reshape(i.transpose(1, 2), [1, heads, 1, tokens], keep=0), reshape(m, [1, heads, 1, 1], keep=0)
        return reshape(forgotten, [1, heads, tokens, tokens + 1], keep=0) + torch.cat([i, m], -1) + _future(tokens)

    def _last_row(self, x: Tensor) -> Tensor:
        """(1, H, T, X) -> (1, H, 1, X)."""
        shape = [*x.shape[:2], 1, x.shape[3]]
        return slice_axis(x, self._tokens - 1, self._tokens, 2, shape)

    def slstm(self, wx: Tensor, recurrent: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
        """One step after the other."""
        heads, dh, _ = recurrent.shape
        wx = reshape(wx, [2, heads, 2 * dh, self._tokens], keep=0).permute(3, 1, 0, 2)
        outputs = []
        for part in split(reshape(wx, [self._tokens, heads, 1, 4 * dh], keep=0), [1] * self._tokens, 0):
            o, c, n, m = slstm_cell(part + state[0] @ recurrent, state, self._softplus, self._exp)
            state = (o * (c / n), c, n, m)
            outputs.append(state[0])
        return torch.cat(outputs, 2).transpose(1, 2), state


def _spans(tokens: int) -> Tensor:
    """(T, T * (T + 1)): row r is -1 for the pairs (t, s) with s < r <= t; the memory is the s before all tokens."""
    pairs = [(t, s) for t in range(tokens) for s in (*range(tokens), -1)]
    return torch.tensor([[-1.0 if s < r <= t else 0.0 for t, s in pairs] for r in range(tokens)])


def _future(tokens: int) -> Tensor:
    """(1, 1, T, T + 1): 0 for what token t knows, `FUTURE` for what comes after it."""
    return torch.tensor([[[[FUTURE if s > t else 0.0 for s in (*range(tokens), -1)] for t in range(tokens)]]])
