"""The few operations that have more than one lowering; all else in the model is plain torch.

`Reference` computes (any float dtype, any chunk length, step by step); `Ort` and `Portable` emit ONNX nodes while
`torch.onnx.export` traces. The model is written once against this protocol.

Shapes: B batch, T tokens of this call, D width, H heads, dk/dv head widths, C channels, K convolution taps.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..spec import Activation, Norm

MLSTMState = tuple[Tensor, Tensor, Tensor]
SLSTMState = tuple[Tensor, Tensor, Tensor, Tensor]


class Ops(Protocol):
    """One lowering of the operations below."""

    def embed(self, ids: Tensor, weight: Tensor) -> Tensor:
        """Rows of weight (V, D) for ids (B, T) -> (B, T, D)."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x @ weight + bias for weight (in, out)."""

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, spec: Norm) -> Tensor:
        """Normalize the last axis of x (..., D)."""

    def add_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, spec: Norm
    ) -> tuple[Tensor, Tensor]:
        """(x + delta, norm(x + delta)): the residual and the next normed input in one go."""

    def head_norm(self, h: Tensor, weight: Tensor | None, bias: Tensor | None, spec: Norm) -> Tensor:
        """Layer norm of each head of h (B, T, H, dv) alone; returns (B, T, H*dv), weighted per feature."""

    def split(self, x: Tensor, sizes: Sequence[int], dim: int = -1) -> tuple[Tensor, ...]:
        """Cut x along `dim`."""

    def last(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, D), the last token."""

    def silu(self, x: Tensor) -> Tensor:
        """x * sigmoid(x)."""

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """The feed-forward's activation."""

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """scale * x @ weight.T for weight (V, D): the output head, stored as the embedding is."""

    def block_diagonal(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Block-diagonal projection of x (B, C, T) by weight (out, C / groups, 1), as a convolution of one tap."""

    def causal_conv_silu(
        self, x: Tensor, weight: Tensor, bias: Tensor, window: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """silu of the depthwise causal convolution of x (B, C, T) with weight (C, 1, K).

        `window` (B, C, K-1) holds the inputs before this call, None when K is 1; returns the window after it.
        """

    def mlstm(  # q, k, v, gates and three states are what the cell is made of
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float
    ) -> tuple[Tensor, MLSTMState]:
        """mLSTM over T tokens: q, k (B, T, H*dk), v (B, T, H*dv), gates (B, T, 2H) = [i | -f].

        The state is (C, n, m) as `xlstm_edge_runtime.state` lays it out; returns h (B, T, H, dv) and the state.
        """

    def bounded_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """mLSTM whose gates are bounded, so that it needs no stabilizer: as `mlstm`, with the state (C, n)."""

    def relative_mlstm(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState, eps: float, offset: Tensor
    ) -> tuple[Tensor, MLSTMState]:
        """mLSTM with relative gates and a scaled memory (see `relative_gates`): `offset` (1, H) is what m is short of."""

    def slstm(self, wx: Tensor, recurrent: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
        """sLSTM over T tokens: wx (B, 2*H*2*DH, T) = [i | -f] of every head, then [z | o] of every head, with biases.

        `recurrent` (H, DH, 4*DH) maps a head's last output to its [i | -f | z | o]; returns h (B, T, H, DH) and
        (y, c, n, m).
        """
