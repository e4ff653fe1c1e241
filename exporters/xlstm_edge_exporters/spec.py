"""What an xLSTM is, once no family's names are left: the canonical description of a model.

A loader turns a checkpoint into a `ModelSpec` plus canonical weights; model, tracer, quantizer and manifest read only
these. Everything here is a number, a flag or a name; there is no tensor in this module.

Glossary: `UpMLSTM` is the pre up-projection mLSTM block of xLSTM v1 (arXiv:2405.04517, figure 11), `SLSTM` its post
up-projection sLSTM block (figure 10), `MLSTM` the layer of xLSTM-Large (arXiv:2503.13427, figure 8).
"""

from dataclasses import dataclass, replace
from typing import Literal

from xlstm_edge_runtime.state import SLSTM_INITIAL_M, StateSpec, StateTable

Activation = Literal["gelu", "relu", "relu^2", "sigmoid", "silu", "selu"]

LARGEST_BOUND, SMALL_EPS = 20.0, 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """RMS norm or mean-subtracting layer norm over the last axis; the weight is the effective one (1 + w is folded)."""

    kind: Literal["rms", "layer"]
    eps: float
    bias: bool = False
    weight: bool = True  # False where a loader folded it into the matrix that follows


@dataclass(frozen=True, slots=True, kw_only=True)
class UpMLSTM:
    """v1 mLSTM: up-projection, causal convolution, block-diagonal q/k/v, learnable skip, SiLU gate, down-projection."""

    inner: int
    heads: int
    conv_kernel: int
    qkv_block: int
    head_norm: Norm
    bias: bool
    eps: float = 1e-6
    relative: bool = False  # see `relative_gates`

    @property
    def head_width(self) -> int:
        """Width of one head of q, k and v."""
        return self.inner // self.heads

    def states(self) -> tuple[StateSpec, ...]:
        """Rows of the state table, without the block's prefix."""
        cell = _mlstm_states(self.heads, self.head_width, self.head_width)
        return (StateSpec("conv", (self.inner, self.conv_kernel - 1)), *cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class MLSTM:
    """xLSTM-Large mLSTM layer: dense q, k, v and output gate from one normed input, soft-capped gates."""

    heads: int
    qk_width: int
    v_width: int
    gate_soft_cap: float | None
    head_norm: Norm
    bias: bool
    eps: float = 1e-6
    stabilized: bool = False  # True: keep the stabilizer in any case, as the official cell does
    relative: bool = False  # see `relative_gates`

    @property
    def bounded(self) -> bool:
        """Whether the gates are so soft-capped that float32 needs no stabilizer: exp(cap) is far from its limits.

        Without one, the memory is exp(m) times the stabilized one and the output the same, but for the epsilon in its
        denominator, which a layer norm makes invisible unless it is large. That is a lowering, to be held to the
        stabilized cell: `ModelSpec.official`.
        """
        if self.stabilized or self.relative or self.gate_soft_cap is None:
            return False
        return self.gate_soft_cap <= LARGEST_BOUND and self.eps <= SMALL_EPS

    def states(self) -> tuple[StateSpec, ...]:
        """Rows of the state table, without the block's prefix; a bounded memory has no stabilizer m."""
        rows = _mlstm_states(self.heads, self.qk_width // self.heads, self.v_width // self.heads)
        return rows[:2] if self.bounded else rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SLSTM:
    """sLSTM with block-diagonal memory mixing; `conv_kernel` 0 means no convolution before the i and f gates."""

    heads: int
    width: int
    conv_kernel: int
    head_norm: Norm

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    def states(self) -> tuple[StateSpec, ...]:
        """Rows of the state table, without the block's prefix."""
        conv = (StateSpec("conv", (self.width, self.conv_kernel - 1)),) if self.conv_kernel else ()
        shape = (self.heads, 1, self.head_width)
        cell = tuple(StateSpec(name, shape) for name in ("y", "c", "n"))
        return (*conv, *cell, StateSpec("m", shape, SLSTM_INITIAL_M))


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """Gated feed-forward: down(act(gate(x)) * up(x)); gate and up are one fused projection, in this order."""

    width: int
    activation: Activation
    bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """norm -> mixer -> residual, then optionally norm -> feed-forward -> residual."""

    norm: Norm
    mixer: UpMLSTM | MLSTM | SLSTM
    ffn_norm: Norm | None = None
    ffn: FeedForward | None = None

    def official(self) -> "Block":
        """With a stabilized cell."""
        mixer = replace(self.mixer, stabilized=True) if isinstance(self.mixer, MLSTM) else self.mixer
        return replace(self, mixer=mixer)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A whole model; `vocab_size` None means a bare stack: float vectors in, float vectors out."""

    family: str
    width: int
    blocks: tuple[Block, ...]
    norm: Norm | None
    vocab_size: int | None = None
    tied: bool = False
    logit_soft_cap: float | None = None
    context_length: int | None = None

    def official(self) -> "ModelSpec":
        """The same model with every cell as the official packages compute it: stabilized, with its epsilon."""
        return replace(self, blocks=tuple(block.official() for block in self.blocks))

    def state_table(self) -> StateTable:
        """Every state tensor of the model, named `blocks.{i}.{tensor}`, in block order."""
        return StateTable(
            [
                StateSpec(f"blocks.{i}.{row.name}", row.shape, row.initial)
                for i, block in enumerate(self.blocks)
                for row in block.mixer.states()
                if 0 not in row.shape  # a convolution of one tap remembers nothing
            ]
        )


def _mlstm_states(heads: int, dk: int, dv: int) -> tuple[StateSpec, ...]:
    return (StateSpec("C", (heads, dk, dv)), StateSpec("n", (heads, dk, 1)), StateSpec("m", (1, heads)))
