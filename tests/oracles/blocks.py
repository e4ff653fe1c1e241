"""A large checkpoint beside the official package, one block in memory at a time.

    python -m tests.oracles.blocks CHECKPOINT [--tokens 8]

Every block of the package is made, filled, stepped over the tokens and dropped, each on the output of the one before. Ours
is held against it twice: each block alone on the official block's input, and the whole model by itself, down to the logits.
Differences are the largest ones, as a share of the range of the official outputs.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.pytorch_baseline import official_model
from xlstm_edge_exporters.reference import run_reference
from xlstm_edge_exporters.spec import ModelSpec

SEED = 11


@torch.no_grad()
def compare_blocks(checkpoint: Checkpoint, ids: NDArray[np.int64]) -> Iterator[tuple[str, float]]:
    """What was compared, and the difference; for the xLSTM-Large form, in the package's files or Hugging Face's."""
    with torch.device("meta"):
        model = official_model(checkpoint)
    embedding = "embedding" if hasattr(model, "embedding") else "backbone.embeddings"
    stream = _filled(model, embedding, checkpoint)(torch.from_numpy(ids)[None])
    for index in range(len(checkpoint.spec.blocks)):
        block = _filled(model, f"backbone.blocks.{index}", checkpoint)
        ours = _our_block(checkpoint, index, stream[0].numpy())
        stream = _steps(block, stream)
        yield f"block {index}", _difference(ours, stream[0].numpy())
    if "backbone.out_norm.weight" in checkpoint.stored:
        stream = _filled(model, "backbone.out_norm", checkpoint)(stream)
    head = embedding if checkpoint.spec.tied else "lm_head"
    logits = _filled(model, "lm_head", checkpoint, head)(stream)[0].numpy()
    if (cap := checkpoint.spec.logit_soft_cap) is not None:
        logits = cap * np.tanh(logits / cap)
    yield "logits", _difference(run_reference(checkpoint.spec, checkpoint.weights, ids).outputs, logits)


def _filled(model: nn.Module, name: str, checkpoint: Checkpoint, source: str | None = None) -> Any:
    """A module of a model without data, in memory with the checkpoint's tensors of that name, or of the name `source`.

    Memory goes with the module.
    """
    module, prefix = model.get_submodule(name), f"{source or name}."
    parent, _, leaf = name.rpartition(".")
    own = {
        stored.removeprefix(prefix): torch.from_numpy(np.array(checkpoint.stored[stored].load()))
        for stored in checkpoint.stored.names
        if stored.startswith(prefix)
    }
    module.load_state_dict(own, assign=True)
    setattr(model.get_submodule(parent), leaf, nn.Identity())  # the model lets go of it
    return module


def _steps(block: Any, inputs: torch.Tensor) -> torch.Tensor:
    """(1, T, D) through a block of the package, token by token with its own state."""
    outputs, state = [], None
    for token in inputs[0]:
        output, state = block(token[None, None], state)
        outputs.append(output[0, 0])
    return torch.stack(outputs)[None]


def _our_block(checkpoint: Checkpoint, index: int, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same block in float64, as a stack of one."""
    spec, prefix = checkpoint.spec, f"blocks.{index}."
    alone = ModelSpec(family=spec.family, width=spec.width, blocks=(spec.blocks[index],), norm=None)
    own = {n.replace(prefix, "blocks.0.", 1): w for n, w in checkpoint.weights.items() if n.startswith(prefix)}
    return run_reference(alone, own, inputs).outputs


def _difference(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(got - wanted).max() / np.ptp(wanted))


def main() -> None:
    """Print a line a block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=8)
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.checkpoint)
    ids = np.random.default_rng(SEED).integers(0, checkpoint.spec.vocab_size, arguments.tokens)
    for name, difference in compare_blocks(checkpoint, ids):
        print(f"{name:>10}  {difference:.1e} of the range", flush=True)


if __name__ == "__main__":
    main()
