"""Whole models in float64 numpy, read from a checkpoint's own files and names.

    >>> model = reference(Path("checkpoint"))
    >>> logits = model.run([3, 1, 4])  # (3, V)
    >>> model.state()["blocks.0.C"]  # (NH, dk, dv)

Families: xlstm_lm, xlstm_lm_hf (the same in a Hugging Face wrapper), xlstm_stack (its bare blocks), xlstm_large,
xlstm_hf (Hugging Face xLSTMForCausalLM).
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .files import Weights, read_config, read_weights
from .large import LargeBlock, RMSNorm, numbers
from .recurrence import Array, State, layer_norm, soft_cap
from .v1 import NORM_EPS, MLSTMBlock, SLSTMBlock

# family -> (prefix of the block stack, name of the embedding)
STACKS = {
    "xlstm_lm": ("xlstm_block_stack.", "token_embedding.weight"),
    "xlstm_lm_hf": ("model.xlstm_block_stack.", "model.token_embedding.weight"),
    "xlstm_stack": ("", None),
    "xlstm_large": ("backbone.", "embedding.weight"),
    "xlstm_hf": ("backbone.", "backbone.embeddings.weight"),
}


def family_of(names: Collection[str]) -> str:
    """The family, from the tensor names alone."""
    if any(name.startswith("backbone.blocks.") for name in names):
        return "xlstm_hf" if "backbone.embeddings.weight" in names else "xlstm_large"
    for family in ("xlstm_lm_hf", "xlstm_lm", "xlstm_stack"):
        if any(name.startswith(f"{STACKS[family][0]}blocks.") for name in names):
            return family
    raise ValueError("no xLSTM of a known family: no tensor name holds a block of theirs")


class Reference:
    """A model with its state; `step` takes a token id, or for a bare block stack a vector (D,)."""

    def __init__(self, checkpoint: Path) -> None:
        weights, config = read_weights(checkpoint), read_config(checkpoint)
        self.family = family_of(weights.names)
        self.prefix, embedding = STACKS[self.family]
        self.embedding = None if embedding is None else weights.find(embedding)
        self.head_matrix = weights.find("lm_head.weight")
        self._tie()
        self.config = numbers(config)
        self.blocks = self._blocks(weights, config)
        self.norm = self._norm(weights)
        if weights.left:
            raise ValueError(f"tensors nobody reads: {sorted(weights.left)}")

    def _tie(self) -> None:
        """Embedding and head stand in for each other where only one is stored."""
        if self.family != "xlstm_stack":
            self.embedding = self.head_matrix if self.embedding is None else self.embedding
            self.head_matrix = self.embedding if self.head_matrix is None else self.head_matrix
            if self.embedding is None:
                raise KeyError("neither an embedding nor lm_head.weight is stored")

    def _blocks(self, weights: Weights, config: dict[str, Any]) -> list[MLSTMBlock | SLSTMBlock | LargeBlock]:
        """One per index in the names; the cell's name tells the kind."""
        pattern = re.compile(re.escape(f"{self.prefix}blocks.") + r"(\d+)\.")
        indices = sorted({int(match[1]) for name in weights.names if (match := pattern.match(name))})
        prefixes = [f"{self.prefix}blocks.{index}." for index in indices]
        if self.family in ("xlstm_large", "xlstm_hf"):
            return [LargeBlock(weights, prefix, self.config) for prefix in prefixes]
        activation = ((config.get("slstm_block") or {}).get("feedforward") or {}).get("act_fn", "gelu")
        return [
            SLSTMBlock(weights, prefix, activation)
            if f"{prefix}xlstm.slstm_cell._bias_" in weights.names
            else MLSTMBlock(weights, prefix)
            for prefix in prefixes
        ]

    def _norm(self, weights: Weights) -> Array | RMSNorm | None:
        """The norm behind the blocks, if one is stored."""
        if self.family not in ("xlstm_large", "xlstm_hf"):
            stored = weights.find(f"{self.prefix}post_blocks_norm.weight")
            return None if stored is None else 1.0 + stored
        has_norm = "backbone.out_norm.weight" in weights.names
        return RMSNorm(weights, "backbone.out_norm", self.config.norm_eps) if has_norm else None

    def reset(self) -> None:
        """Forget every token."""
        for block in self.blocks:
            block.reset()

    def state(self) -> State:
        """`blocks.{i}.{C,n,m}` (mLSTM) or `blocks.{i}.{y,c,n,m}` (sLSTM), and `blocks.{i}.conv` (channels, K - 1)."""
        return {f"blocks.{i}.{name}": a for i, block in enumerate(self.blocks) for name, a in block.state().items()}

    def step(self, token: Any) -> Array:
        """Logits (V,), or the hidden vector (D,) of a bare stack."""
        x = np.array(token, np.float64) if self.embedding is None else self.embedding[int(token)]
        for block in self.blocks:
            x = block.step(x)
        return self._head(x)

    def run(self, sequence: Iterable[Any]) -> Array:
        """Outputs (T, V) or (T, D) of a sequence, from the present state on."""
        return np.stack([self.step(token) for token in sequence])

    def _head(self, x: Array) -> Array:
        """Final norm, output matrix, and for B and C the logit cap."""
        if isinstance(self.norm, RMSNorm):
            x = self.norm(x)
        elif self.norm is not None:
            x = layer_norm(x, self.norm, NORM_EPS)
        if self.head_matrix is None:
            return x
        return soft_cap(
            self.head_matrix @ x, self.config.logit_cap if self.family in ("xlstm_large", "xlstm_hf") else None
        )


def reference(checkpoint: Path) -> Reference:
    """Read a checkpoint folder, or a .pt state dict that has its config beside it."""
    return Reference(checkpoint)
