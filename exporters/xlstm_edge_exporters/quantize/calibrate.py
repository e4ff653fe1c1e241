"""Run a calibration text through the model block by block, and quantize each matrix on what it sees.

Two streams go side by side: one through the float model, one through the model as far as it is quantized. A matrix is
rounded for the inputs it will really get, to the outputs it had in float, so later matrices make up for the errors of
earlier ones. One block is in float in memory at a time, with its inputs; finished integers go to a store on the disk.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.progress import Progress, no_progress

from ..model import BlockModule, Model, add_norm
from ..ops.parallel import Parallel
from ..recipe import LEAST_TOKENS
from ..reference import block_state, materialize
from ..spec import ModelSpec
from ..weights import FloatArray, Weights
from .check import within_limits
from .gptq import corrected, gptq, gram
from .orientation import EMBEDDING, HEAD, as_canonical, as_matrix
from .plan import Plan
from .scheme import Packed, Scheme
from .sources import round_searched
from .store import Store

SEQUENCE = 256  # tokens of a window
STREAMS = "streams"  # in the store: how far it is, and the residual streams there
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

    def __init__(self, wanted: list[Tensor], plan: Plan, names: Mapping[int, str], store: Store) -> None:
        """`wanted` is used up."""
        self._wanted, self._plan, self._names, self._store = wanted, plan, names, store

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Quantize if planned, compute, and let go of the weight, which has no more use."""
        wanted, name = self._wanted.pop(0), self._names[id(weight)]
        if (scheme := self._plan.get(name)) is not None:
            matrix = as_matrix(name, weight.numpy())
            packed = _quantized(name, matrix, wanted, x.reshape(-1, x.shape[-1]), scheme, self._store)
            del wanted, matrix
            weight.copy_(torch.from_numpy(as_canonical(name, scheme.dequantize(packed, weight.shape[0]))))
        result = super().linear(x, weight, bias)
        weight.data = torch.empty(0)
        return result


def calibration_batch(inputs: NDArray[Any], tokens: int) -> NDArray[Any]:
    """Windows (S, T) of ids (N,), or (S, T, D) of vectors (N, D), spread evenly; about `tokens` tokens in all.

    InputError for too few inputs to say anything.
    """
    if len(inputs) < LEAST_TOKENS:
        raise InputError(
            f"expected {LEAST_TOKENS} tokens or more to calibrate on, got {len(inputs)}; use a longer text"
        )
    length = min(SEQUENCE, len(inputs) // 2)
    count = max(1, min(tokens // length, len(inputs) // length))
    starts = np.linspace(0, len(inputs) - length, count).astype(np.int64)
    return np.stack([inputs[start : start + length] for start in starts])


@torch.no_grad()
def quantize_with_gptq(
    spec: ModelSpec,
    weights: Weights,
    plan: Plan,
    inputs: NDArray[Any],
    store: Store,
    *,
    resume: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Integers and scales of every planned tensor, into the store; `inputs` (S, T) ids, or (S, T, D) vectors of a stack.

    With `resume` the store also has after each block how far it is, with both streams, and a next call goes on from there.
    """
    blocks = len(spec.blocks)
    done, exact, stream = _resumed(store) or (0, *_begin(spec, weights, plan, inputs, store))
    progress("calibrate", done, blocks)
    for index in range(done, blocks):
        exact, stream = _quantize_block(spec, weights, plan, index, exact, stream, store)
        if resume:
            store.save(STREAMS, _streams(index + 1, exact, stream))
        progress("calibrate", index + 1, blocks)
    if HEAD in plan and not spec.tied:
        wanted, got = (_final(spec, weights, s) for s in (exact, stream))
        _quantized(HEAD, weights[HEAD].load(), wanted, got, plan[HEAD], store)


def _quantized(name: str, matrix: FloatArray, wanted: Tensor, got: Tensor, scheme: Scheme, store: Store) -> Packed:
    """Integers of `matrix` (N, K) for inputs `got` (S, K), towards the outputs it had with `wanted` (S, K); in the store."""
    rows, columns = matrix.shape
    if (packed := store.load_packed(name, rows, columns, scheme)) is None:
        hessian = gram(got)
        packed = gptq(corrected(matrix, hessian, wanted, got), hessian, scheme)
        del hessian
        packed = within_limits(name, matrix, packed, scheme)
        store.save_packed(name, packed)
    return packed


def _begin(spec: ModelSpec, weights: Weights, plan: Plan, inputs: NDArray[Any], store: Store) -> tuple[Stream, Stream]:
    """Both streams before the first block."""
    if spec.vocab_size is None:
        return (torch.from_numpy(inputs), None), (torch.from_numpy(inputs), None)
    exact = _embed(weights[EMBEDDING].load(), inputs)
    if EMBEDDING not in plan:
        return exact, exact
    rows, columns = weights[EMBEDDING].shape
    if (packed := store.load_packed(EMBEDDING, rows, columns, plan[EMBEDDING])) is None:
        packed = _quantize_table(spec, weights, plan, exact)
        store.save_packed(EMBEDDING, packed)
    return exact, _embed(plan[EMBEDDING].dequantize(packed, spec.width), inputs)


def _streams(done: int, exact: Stream, stream: Stream) -> dict[str, NDArray[np.generic]]:
    """Both residual pairs after so many blocks, for the store."""
    pairs = {"x": exact[0], "delta": exact[1], "got_x": stream[0], "got_delta": stream[1]}
    return {"done": np.array(done), **{name: tensor.numpy() for name, tensor in pairs.items() if tensor is not None}}


def _resumed(store: Store) -> tuple[int, Stream, Stream] | None:
    """How many blocks are done, and both streams after them; None at the start, or where they are not all there."""
    found, names = store.load(STREAMS), ("x", "delta", "got_x", "got_delta")
    if found is None or not {"done", *names} <= found.keys():
        return None
    x, delta, got_x, got_delta = (torch.from_numpy(found[name]) for name in names)
    return int(found["done"]), (x, delta), (got_x, got_delta)


def _embed(table: FloatArray, ids: NDArray[np.int64]) -> Stream:
    return torch.from_numpy(np.array(table))[torch.from_numpy(ids)], None


def _quantize_table(spec: ModelSpec, weights: Weights, plan: Plan, stream: Stream) -> Packed:
    """The embedding; where it is the head as well, an error counts as much looked up as multiplied."""
    if not spec.tied:
        return round_searched(EMBEDDING, weights[EMBEDDING], plan[EMBEDDING])
    table = weights[EMBEDDING].load()
    for index in range(len(spec.blocks)):
        stream = _run(spec, index, _block(spec, weights, index), Parallel(), stream)
    hidden = _final(spec, weights, stream)
    hessian = gram(hidden)
    hessian /= torch.diagonal(hessian).mean().clamp_min(1e-12)
    packed = gptq(table, hessian + torch.eye(len(hessian)), plan[EMBEDDING])
    return within_limits(EMBEDDING, table, packed, plan[EMBEDDING])


def _quantize_block(
    spec: ModelSpec, weights: Weights, plan: Plan, index: int, exact: Stream, stream: Stream, store: Store
) -> tuple[Stream, Stream]:
    """Both streams after the block; the integers of its matrices are in the store then."""
    block, recording = _block(spec, weights, index), Recording()
    exact = _run(spec, index, block, recording, exact)
    names = {id(parameter): f"blocks.{index}.{name}" for name, parameter in block.named_parameters()}
    stream = _run(spec, index, block, Quantizing(recording.inputs, plan, names, store), stream)
    return exact, stream


def _block(spec: ModelSpec, weights: Weights, index: int) -> BlockModule:
    with torch.device("meta"):
        block = BlockModule(spec.blocks[index], spec.width, Parallel())
    materialize(block, weights, torch.float32, f"blocks.{index}.")
    return block


def _run(spec: ModelSpec, index: int, block: BlockModule, ops: Parallel, stream: Stream) -> Stream:
    """The stream after a block that computes with `ops`, from the zero state."""
    for module in block.modules():
        if hasattr(module, "ops"):
            module.ops = ops  # type: ignore[assignment]  # mypy sees nn.Module's catch-all attribute
    x, delta, _ = block(*stream, block_state(spec.blocks[index], torch.float32, len(stream[0])))
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
