"""Run a calibration text through the model block by block, and quantize each block on what it sees.

A block's inputs come from the blocks before it as they will be deployed: quantized. So later blocks learn to live with
the errors of earlier ones. One block is in float in memory at a time, besides the integers already made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlstm_edge_runtime.errors import InputError

from ..model import BlockModule, Model, add_norm
from ..ops.reference import Reference
from ..reference import Progress, initial_state, materialize, no_progress
from ..spec import ModelSpec
from ..weights import FloatArray, Weight, Weights
from .gptq import gptq
from .plan import EMBEDDING, HEAD, Plan
from .scheme import Packed
from .sources import as_matrix, round_searched

SEQUENCE, SEQUENCES = 128, 64  # tokens a sequence, sequences: 8,192 tokens
LEAST = 256  # tokens below which a calibration says little


@dataclass
class Recording(Reference):
    """The reference, which also sums x x^T of every dense product's inputs, by the identity of the weight."""

    sums: dict[int, Tensor] = field(default_factory=dict)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Record, then compute."""
        flat = x.reshape(-1, x.shape[-1])
        self.sums[id(weight)] = self.sums.get(id(weight), torch.zeros(1)) + flat.T @ flat
        return super().linear(x, weight, bias)


def calibration_batch(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Evenly spread windows (S, T) of a text's ids; InputError for a text too short to say anything."""
    if len(ids) < LEAST:
        raise InputError(f"expected a calibration text of {LEAST} tokens or more, came {len(ids)}; use a longer one")
    length = min(SEQUENCE, len(ids) // 2)
    count = min(SEQUENCES, len(ids) // length)
    starts = np.linspace(0, len(ids) - length, count).astype(np.int64)
    return np.stack([ids[start : start + length] for start in starts])


@torch.no_grad()
def quantize_with_gptq(
    spec: ModelSpec, weights: Weights, plan: Plan, ids: NDArray[np.int64], *, progress: Progress = no_progress
) -> dict[str, Packed]:
    """Canonical name -> integers and scales of every planned tensor; `ids` (S, T)."""
    packed: dict[str, Packed] = {}
    if EMBEDDING in plan and not spec.tied:
        packed[EMBEDDING] = round_searched(EMBEDDING, weights[EMBEDDING].load(), plan[EMBEDDING])
    table = torch.from_numpy(np.array(weights[EMBEDDING].load()))
    x, delta = table[torch.from_numpy(ids)], None
    del table
    for index in range(len(spec.blocks)):
        x, delta = _quantize_block(spec, weights, plan, index, x, delta, packed)
        progress("calibrate", index + 1, len(spec.blocks))
    head = EMBEDDING if spec.tied else HEAD
    if head in plan:
        hidden = _final(spec, weights, x, delta)
        flat = hidden.reshape(-1, hidden.shape[-1])
        packed[head] = gptq(weights[head].load(), flat.T @ flat, plan[head])
    return packed


def _quantize_block(
    spec: ModelSpec,
    weights: Weights,
    plan: Plan,
    index: int,
    x: Tensor,
    delta: Tensor | None,
    packed: dict[str, Packed],
) -> tuple[Tensor, Tensor]:
    """Observe the float block, round its matrices, run it again as it will be."""
    prefix, ops = f"blocks.{index}.", Recording()
    with torch.device("meta"):
        block = BlockModule(spec.blocks[index], spec.width, ops)
    materialize(block, weights, torch.float32, prefix)
    state = initial_state(spec, torch.float32, batch=len(x))
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    block(x, delta, own)
    for name, parameter in block.named_parameters():
        if prefix + name in plan:
            scheme, matrix = plan[prefix + name], np.ascontiguousarray(parameter.numpy().T)
            packed[prefix + name] = gptq(matrix, ops.sums[id(parameter)], scheme)
            parameter.copy_(torch.from_numpy(scheme.dequantize(packed[prefix + name], matrix.shape[1])).T)
    x, delta, _ = block(x, delta, own)
    return x, delta


def _final(spec: ModelSpec, weights: Weights, x: Tensor, delta: Tensor | None) -> Tensor:
    """What the head sees."""
    if spec.norm is None:
        return x if delta is None else x + delta
    bare = ModelSpec(family=spec.family, width=spec.width, blocks=(), norm=spec.norm)
    with torch.device("meta"):
        model = Model(bare, Reference())
    materialize(model, weights, torch.float32)
    return add_norm(Reference(), x, delta, model.norm, spec.norm)[1]


def with_packed(weights: Weights, packed: Mapping[str, Packed], plan: Plan) -> Weights:
    """The weights as they are after quantization, for the reference to run."""

    def restore(name: str) -> Weight:
        rows, columns = as_matrix(name, np.empty(weights[name].shape, np.float32)).shape
        del rows
        scheme = plan[name]

        def load() -> FloatArray:
            matrix = scheme.dequantize(packed[name], columns)
            return matrix if name in (EMBEDDING, HEAD) else np.ascontiguousarray(matrix.T)

        return Weight(weights[name].shape, load)

    return {name: restore(name) if name in packed else weight for name, weight in weights.items()}
