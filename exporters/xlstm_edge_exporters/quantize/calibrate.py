"""Run a calibration text through the model block by block, and quantize each matrix on what it sees.

Two streams go side by side: one through the float model, one through the model as far as it is quantized. A matrix is
rounded for the inputs it will really get, to the outputs it had in float, so later matrices make up for the errors of
earlier ones. One block is in float in memory at a time, with its inputs, besides the integers already made.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.progress import Progress, no_progress

from ..model import BlockModule, Model, add_norm
from ..ops.parallel import Parallel
from ..reference import initial_state, materialize
from ..spec import ModelSpec
from ..weights import FloatArray, Weight, Weights
from .check import within_limits
from .gptq import corrected, gptq
from .orientation import EMBEDDING, HEAD, as_canonical, as_matrix, matrix_shape
from .plan import Plan
from .scheme import Packed
from .sources import round_searched

SEQUENCE, SEQUENCES = 256, 64  # tokens a sequence, sequences: 16,384 tokens
LEAST = 256  # tokens below which a calibration says little
Stream = tuple[Tensor, Tensor | None]


class Recording(Parallel):
    """The reference, which also keeps the inputs (S, K) of each dense product, in order."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Record, then compute."""
        self.inputs.append(x.reshape(-1, x.shape[-1]))
        return super().linear(x, weight, bias)


class Quantizing(Parallel):
    """The reference, which quantizes each planned weight when its product is due, and goes on with the integers.

    `wanted` are the inputs that the same products had in float; `names` gives the canonical name of a weight's identity.
    """

    def __init__(self, wanted: Sequence[Tensor], plan: Plan, names: Mapping[int, str]) -> None:
        self.packed: dict[str, Packed] = {}
        self._wanted, self._plan, self._names = iter(wanted), plan, names

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Quantize if planned, then compute."""
        wanted, name = next(self._wanted), self._names[id(weight)]
        if (scheme := self._plan.get(name)) is not None:
            got = x.reshape(-1, x.shape[-1])
            matrix = as_matrix(name, weight.numpy())
            packed = gptq(corrected(matrix, wanted, got), got.T @ got, scheme)
            self.packed[name] = within_limits(name, matrix, packed, scheme)
            weight.copy_(torch.from_numpy(as_canonical(name, scheme.dequantize(self.packed[name], matrix.shape[1]))))
        return super().linear(x, weight, bias)


def calibration_batch(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Evenly spread windows (S, T) of a text's ids; InputError for a text too short to say anything."""
    if len(ids) < LEAST:
        raise InputError(f"expected a calibration text of {LEAST} tokens or more, got {len(ids)}; use a longer one")
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
    progress("calibrate", 0, len(spec.blocks))
    exact = _embed(weights[EMBEDDING].load(), ids)
    stream = exact
    if EMBEDDING in plan:
        packed[EMBEDDING] = _quantize_table(spec, weights, plan, exact)
        stream = _embed(plan[EMBEDDING].dequantize(packed[EMBEDDING], spec.width), ids)
    for index in range(len(spec.blocks)):
        exact, stream, made = _quantize_block(spec, weights, plan, index, exact, stream)
        packed |= made
        progress("calibrate", index + 1, len(spec.blocks))
    if HEAD in plan and not spec.tied:
        wanted, got = (_final(spec, weights, s) for s in (exact, stream))
        table = weights[HEAD].load()
        packed[HEAD] = within_limits(
            HEAD, table, gptq(corrected(table, wanted, got), got.T @ got, plan[HEAD]), plan[HEAD]
        )
    return packed


def _embed(table: FloatArray, ids: NDArray[np.int64]) -> Stream:
    return torch.from_numpy(np.array(table))[torch.from_numpy(ids)], None


def _quantize_table(spec: ModelSpec, weights: Weights, plan: Plan, stream: Stream) -> Packed:
    """The embedding; where it is the head as well, an error counts as much looked up as multiplied."""
    table = weights[EMBEDDING].load()
    if not spec.tied:
        return round_searched(EMBEDDING, table, plan[EMBEDDING])
    for index in range(len(spec.blocks)):
        stream = _run(spec, index, _block(spec, weights, index), Parallel(), stream)
    hidden = _final(spec, weights, stream)
    hessian = hidden.T @ hidden
    hessian /= torch.diagonal(hessian).mean().clamp_min(1e-12)
    packed = gptq(table, hessian + torch.eye(len(hessian)), plan[EMBEDDING])
    return within_limits(EMBEDDING, table, packed, plan[EMBEDDING])


def _quantize_block(
    spec: ModelSpec, weights: Weights, plan: Plan, index: int, exact: Stream, stream: Stream
) -> tuple[Stream, Stream, dict[str, Packed]]:
    """Both streams after the block, and the integers of its matrices."""
    block, recording = _block(spec, weights, index), Recording()
    exact = _run(spec, index, block, recording, exact)
    names = {id(parameter): f"blocks.{index}.{name}" for name, parameter in block.named_parameters()}
    quantizing = Quantizing(recording.inputs, plan, names)
    stream = _run(spec, index, block, quantizing, stream)
    return exact, stream, quantizing.packed


def _block(spec: ModelSpec, weights: Weights, index: int) -> BlockModule:
    with torch.device("meta"):
        block = BlockModule(spec.blocks[index], spec.width, Parallel())
    materialize(block, weights, torch.float32, f"blocks.{index}.")
    return block


def _run(spec: ModelSpec, index: int, block: BlockModule, ops: Parallel, stream: Stream) -> Stream:
    """The stream after a block that computes with `ops`, from the zero state."""
    prefix = f"blocks.{index}."
    for module in block.modules():
        if hasattr(module, "ops"):
            module.ops = ops  # type: ignore[assignment]  # mypy sees nn.Module's catch-all attribute
    state = initial_state(spec, torch.float32, batch=len(stream[0]))
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    x, delta, _ = block(*stream, own)
    return x, delta


def _final(spec: ModelSpec, weights: Weights, stream: Stream) -> Tensor:
    """What the head sees, (S, D)."""
    x, delta = stream
    if spec.norm is None:
        return (x if delta is None else x + delta).flatten(0, 1)
    bare = ModelSpec(family=spec.family, width=spec.width, blocks=(), norm=spec.norm)
    with torch.device("meta"):
        model = Model(bare, Parallel())
    materialize(model, weights, torch.float32)
    return add_norm(Parallel(), x, delta, model.norm, spec.norm)[1].flatten(0, 1)


def with_packed(weights: Weights, packed: Mapping[str, Packed], plan: Plan) -> Weights:
    """The weights as they are after quantization, for the reference to run."""

    def restore(name: str) -> Weight:
        columns, scheme = matrix_shape(name, weights[name].shape)[1], plan[name]

        def load() -> FloatArray:
            return as_canonical(name, scheme.dequantize(packed[name], columns))

        return Weight(weights[name].shape, load)

    return {name: restore(name) if name in packed else weight for name, weight in weights.items()}
