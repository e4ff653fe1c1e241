"""Checkpoint families: find which one it is, and turn it into the canonical form.

The family is found from the tensors' names, because `model_type: xlstm` alone means two different things. One module a
family; each knows its own names and layouts and nothing else does.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm_edge_runtime.errors import CheckpointError

from ..spec import ModelSpec
from ..weights import Stored, Weights, listed
from . import large, v1
from .base import Canonical, section
from .files import locate, open_tensors, read_config

FAMILIES = "xLSTM v1 language models and block stacks, xLSTM-Large, Hugging Face xLSTMForCausalLM"
UNSUPPORTED = {
    r"(^|\.)block_stack\.blocks\.\d+\.slstm_layer\.": "a TiRex forecaster",
    r"^stack\.\d+\.(time|variate)_mixer\.": "a TiRex-2 forecaster",
    r"^classifier\.": "a sequence classifier",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: what it is, and its weights, not yet read."""

    folder: Path
    files: tuple[Path, ...]
    config: dict[str, Any]
    spec: ModelSpec
    weights: Weights


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder or weights file; CheckpointError says in one sentence what is wrong with it."""
    located = locate(Path(path))
    config = read_config(located.config)
    stored = Stored(open_tensors(located.weights))
    canonical = _canonical(stored, config)
    files = (located.config, *located.weights)
    return Checkpoint(located.folder, files, config, canonical.spec, canonical.weights)


def family_of(stored: Stored) -> str:
    """A1, A2, A3, B or C; CheckpointError if the names are of no known family."""
    names = stored.names
    for pattern, what in UNSUPPORTED.items():
        if any(re.search(pattern, name) for name in names):
            raise CheckpointError(f"expected one of {FAMILIES}, came {what}; not supported")
    if any(v1.BLOCK.search(name) for name in names):
        if any(name.startswith("model.xlstm_block_stack.") for name in names):
            return "A2"
        return "A1" if {"token_embedding.weight", "lm_head.weight"} & set(names) else "A3"
    if any(large.BLOCK.match(name) for name in names):
        return "C" if "backbone.embeddings.weight" in stored else "B"
    raise CheckpointError(
        f"expected tensors of one of {FAMILIES}, came {listed(names) or 'none'}; not an xLSTM checkpoint"
    )


def _canonical(stored: Stored, config: dict[str, Any]) -> Canonical:
    family = family_of(stored)
    if family == "B":
        return large.load_package(stored, config)
    if family == "C":
        return large.load_hugging_face(stored, config)
    nested = section(config, "_xlstm_config" if family == "A2" else "model")
    return v1.load(stored, config if nested is None else dict(nested), family)
