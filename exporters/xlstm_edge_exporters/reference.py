"""Run the canonical model in plain torch, one block in memory at a time.

The oracle behind test vectors and `verify --against`: float64 by default, no ONNX involved. All tokens go through one
block before the next is loaded, so the largest checkpoint needs the memory of its largest block, not of itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xlstm_edge_runtime.progress import Progress, no_progress

from .model import BlockModule, Model
from .ops import Ops
from .ops.parallel import Parallel
from .ops.reference import Reference
from .ops.rounded import Marked
from .spec import Block, ModelSpec
from .weights import Weights, loaded

HEAD_ROWS = 4096  # of the head in memory at once, in whatever float
Marks = Mapping[str, Any]  # what a variant knows of weights, as their block sizes
Stream = tuple[Tensor, Tensor | None]  # the residual stream, and what is still to be added to it


@dataclass(frozen=True, slots=True)
class ReferenceRun:
    """Outputs of every token, (T, V) or (T, D), and the state after the last one, each (1, *shape)."""

    outputs: NDArray[np.float64]
    state: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of computing the same: in which float, and with which operations."""

    dtype: torch.dtype = torch.float64
    ops: Callable[[], Reference] = Parallel


def run_reference(
    spec: ModelSpec,
    weights: Weights,
    inputs: NDArray[np.generic],
    *,
    dtype: torch.dtype = torch.float64,
    progress: Progress = no_progress,
) -> ReferenceRun:
    """Token ids (T,) or vectors (T, D) through the whole model from the zero state, token after token.

    Every cell is the official one, stabilized and with its epsilon, whatever the graphs make of it.
    """
    spec = spec.official()
    with torch.no_grad():
        stream: Stream = _embed(spec, weights, inputs, dtype), None
        state: dict[str, Tensor] = {}
        progress("reference", 0, len(spec.blocks))
        for index in range(len(spec.blocks)):
            ops = Reference()
            stream, own = _run_block(spec, index, _block(spec, weights, index, ops, dtype), stream)
            state |= {f"blocks.{index}.{name}": tensor for name, tensor in own.items()}
            progress("reference", index + 1, len(spec.blocks))
        alone = "reference"
        outputs = _outputs(spec, weights, {alone: Variant(dtype, Reference)}, {}, {alone: stream})[alone]
    arrays = {name: tensor.to(torch.float64).numpy() for name, tensor in state.items()}
    return ReferenceRun(outputs, arrays)


def run_variants(
    spec: ModelSpec,
    weights: Weights,
    inputs: NDArray[np.generic],
    variants: Mapping[str, Variant],
    *,
    marks: Marks | None = None,
    keep: Sequence[int] | None = None,
    progress: Progress = no_progress,
) -> dict[str, NDArray[np.float64]]:
    """Name of a variant -> its outputs, (T, V) or (T, D), all tokens of a block at once; cells as in `run_reference`.

    `marks` say of quantized weights what a variant needs to round like them, as block sizes; `keep` the positions whose outputs
    are wanted (None: all of them).
    """
    spec, marks = spec.official(), marks or {}
    with torch.no_grad():
        rows = _rows(spec, weights, inputs)
        streams: dict[str, Stream] = {n: (rows.to(variant.dtype)[None], None) for n, variant in variants.items()}
        progress("reference", 0, len(spec.blocks))
        for index in range(len(spec.blocks)):
            prefix = f"blocks.{index}."
            own = _load_block(weights, prefix)
            for dtype, names in _by_dtype(variants).items():
                block = _block(spec, own, index, Reference(), dtype)
                for name in names:
                    _set_ops(block, variants[name], marks, prefix)
                    streams[name], _ = _run_block(spec, index, block, streams[name])
                del block  # before there is another of it
            progress("reference", index + 1, len(spec.blocks))
        kept = {name: _at(stream, keep) for name, stream in streams.items()}
        outputs = _outputs(spec, weights, variants, marks, kept)
        return {name: outputs[name] for name in variants}


def _load_block(weights: Weights, prefix: str) -> Weights:
    """The weights of one block, read once."""
    return {name: loaded(weight.load()) for name, weight in weights.items() if name.startswith(prefix)}


def _set_ops(module: nn.Module, variant: Variant, marks: Marks, prefix: str = "") -> None:
    """Make a module compute as this variant says."""
    ops = variant.ops()
    for part in module.modules():
        if hasattr(part, "ops"):
            part.ops = ops  # type: ignore[assignment]  # mypy sees nn.Module's catch-all attribute
    if isinstance(ops, Marked):
        for name, parameter in module.named_parameters():
            if prefix + name in marks:
                ops.mark(parameter, marks[prefix + name])


def _at(stream: Stream, positions: Sequence[int] | None) -> Stream:
    """The stream at some positions alone."""
    if positions is None:
        return stream
    x, delta = stream
    return x[:, list(positions)], None if delta is None else delta[:, list(positions)]


def _by_dtype(variants: Mapping[str, Variant]) -> dict[torch.dtype, list[str]]:
    """Names of the variants that compute in each float."""
    names: dict[torch.dtype, list[str]] = {}
    for name, variant in variants.items():
        names.setdefault(variant.dtype, []).append(name)
    return names


def _outputs(
    spec: ModelSpec,
    weights: Weights,
    variants: Mapping[str, Variant],
    marks: Marks,
    streams: Mapping[str, Stream],
) -> dict[str, NDArray[np.float64]]:
    """What the head makes of each variant's stream, some of its rows at a time."""
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in variants}
    for part, own, sizes in _heads(spec, weights, marks):
        for dtype, names in _by_dtype(variants).items():
            head = _head(part, own, Reference(), dtype)
            for name in names:
                _set_ops(head, variants[name], sizes)
                parts[name].append(head.output(*streams[name])[0].to(torch.float64).numpy())
    return {name: np.concatenate(found, -1) for name, found in parts.items()}


def _heads(spec: ModelSpec, weights: Weights, marks: Marks) -> Iterator[tuple[ModelSpec, Weights, Marks]]:
    """Models without blocks and with some of the tokens each; a stack of vectors, which has no head, as it is."""
    if spec.vocab_size is None:
        yield replace(spec, blocks=()), weights, marks
        return
    name = "embedding.weight" if spec.tied else "head.weight"
    table, sizes = weights[name].load(), {"head.weight": marks[name]} if name in marks else {}
    for start in range(0, len(table), HEAD_ROWS):
        rows = table[start : start + HEAD_ROWS]
        part = replace(spec, blocks=(), vocab_size=len(rows), tied=False)
        yield part, {**weights, "head.weight": loaded(rows)}, sizes


def materialize(module: nn.Module, weights: Weights, dtype: torch.dtype, prefix: str = "") -> nn.Module:
    """Give a module built on the meta device its weights, tensor by tensor."""
    for name, _ in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        array = weights[prefix + name].load()  # may be a view of a file
        data = torch.from_numpy(array.astype(np.float64) if dtype == torch.float64 else np.array(array)).to(dtype)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(data, requires_grad=False))
    return module


def initial_state(spec: ModelSpec, dtype: torch.dtype, batch: int = 1) -> dict[str, Tensor]:
    """The zero state as torch tensors."""
    return {name: torch.from_numpy(array).to(dtype) for name, array in spec.state_table().initial(batch).items()}


def block_state(block: Block, dtype: torch.dtype, batch: int = 1) -> dict[str, Tensor]:
    """The zero state of one block, names without its prefix; the sequences of a batch share its memory."""
    rows = (row for row in block.mixer.states() if 0 not in row.shape)
    return {row.name: torch.full((1, *row.shape), row.initial, dtype=dtype).expand(batch, *row.shape) for row in rows}


def build(
    spec: ModelSpec,
    weights: Weights,
    dtype: torch.dtype = torch.float32,
    *,
    ops: Ops | None = None,
    all_logits: bool = False,
) -> Model:
    """The whole canonical model with its weights, for models that fit into memory."""
    with torch.device("meta"):
        model = Model(spec, ops or Reference(), all_logits=all_logits)
    materialize(model, weights, dtype)
    return model.eval()


def _block(spec: ModelSpec, weights: Weights, index: int, ops: Ops, dtype: torch.dtype) -> BlockModule:
    with torch.device("meta"):
        block = BlockModule(spec.blocks[index], spec.width, ops)
    materialize(block, weights, dtype, f"blocks.{index}.")
    return block


def _run_block(spec: ModelSpec, index: int, block: BlockModule, stream: Stream) -> tuple[Stream, dict[str, Tensor]]:
    """The stream after a block from the zero state, and the block's own state."""
    x, delta, new = block(*stream, block_state(spec.blocks[index], stream[0].dtype))
    return (x, delta), new


def _embed(spec: ModelSpec, weights: Weights, inputs: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    return _rows(spec, weights, inputs).to(dtype)[None]


def _rows(spec: ModelSpec, weights: Weights, inputs: NDArray[np.generic]) -> Tensor:
    """The vectors (T, D) of ids, or vectors as they are."""
    rows = inputs if spec.vocab_size is None else weights["embedding.weight"].load()[inputs.astype(np.int64)]
    return torch.from_numpy(np.array(rows))


def _head(spec: ModelSpec, weights: Weights, ops: Ops, dtype: torch.dtype) -> Model:
    """A model without blocks that only makes outputs."""
    with torch.device("meta"):
        model = Model(spec, ops, all_logits=True)
    if spec.vocab_size is not None:
        del model.embedding  # as large as the head, and not asked for
    materialize(model, weights, dtype)
    return model


def iterate_names(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every canonical parameter."""
    with torch.device("meta"):
        for name, parameter in Model(spec, Reference()).named_parameters():
            yield name, tuple(parameter.shape)
