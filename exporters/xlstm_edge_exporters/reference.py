"""Run the canonical model in plain torch, one block in memory at a time.

The oracle behind test vectors and `verify --against`: float64 by default, no ONNX involved. All tokens go through one
block before the next is loaded, so the largest checkpoint needs the memory of its largest tensor group, not of itself.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .model import BlockModule, Model
from .ops import Ops
from .ops.reference import Reference
from .ops.rounded import Rounded
from .spec import ModelSpec
from .weights import Weights

Groups = Mapping[str, int]
Progress = Callable[[str, int, int], None]


def no_progress(_label: str, _done: int, _total: int) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class ReferenceRun:
    """Outputs of every token, (T, V) or (T, D), and the state after the last one, each (1, *shape)."""

    outputs: NDArray[np.float64]
    state: dict[str, NDArray[np.float64]]


def run_reference(
    spec: ModelSpec,
    weights: Weights,
    inputs: NDArray[np.generic],
    *,
    dtype: torch.dtype = torch.float64,
    groups: Groups | None = None,
    progress: Progress = no_progress,
) -> ReferenceRun:
    """Token ids (T,) or vectors (T, D) through the whole model from the zero state.

    `groups` names weights whose inputs are rounded to int8 in groups of that size, as quantized kernels do.
    """
    groups = groups or {}
    with torch.no_grad():
        x, delta = _embed(spec, weights, inputs, dtype), None
        state: dict[str, Tensor] = {}
        for index in range(len(spec.blocks)):
            x, delta, own = _run_block(spec, weights, index, x, delta, groups)
            state |= {f"blocks.{index}.{name}": tensor for name, tensor in own.items()}
            progress("reference", index + 1, len(spec.blocks))
        outputs = _head(spec, weights, dtype, groups)(x, delta)
    arrays = {name: tensor.to(torch.float64).numpy() for name, tensor in state.items()}
    return ReferenceRun(outputs[0].to(torch.float64).numpy(), arrays)


def materialize(module: nn.Module, weights: Weights, dtype: torch.dtype, prefix: str = "") -> nn.Module:
    """Give a module built on the meta device its weights, tensor by tensor."""
    for name, _ in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        data = torch.from_numpy(np.array(weights[prefix + name].load())).to(dtype)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(data, requires_grad=False))
    return module


def initial_state(spec: ModelSpec, dtype: torch.dtype, batch: int = 1) -> dict[str, Tensor]:
    """The zero state as torch tensors."""
    return {name: torch.from_numpy(array).to(dtype) for name, array in spec.state_table().initial(batch).items()}


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


def _run_block(
    spec: ModelSpec, weights: Weights, index: int, x: Tensor, delta: Tensor | None, groups: Groups
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    ops = Rounded()
    prefix = f"blocks.{index}."
    with torch.device("meta"):
        block = BlockModule(spec.blocks[index], spec.width, ops)
    materialize(block, weights, x.dtype, prefix)
    _mark(ops, block, groups, prefix)
    zero = initial_state(spec, x.dtype)
    own = {name.removeprefix(prefix): tensor for name, tensor in zero.items() if name.startswith(prefix)}
    result: tuple[Tensor, Tensor, dict[str, Tensor]] = block(x, delta, own)
    return result


def _embed(spec: ModelSpec, weights: Weights, inputs: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    rows = inputs if spec.vocab_size is None else weights["embedding.weight"].load()[inputs.astype(np.int64)]
    return torch.from_numpy(np.array(rows)).to(dtype)[None]


def _head(
    spec: ModelSpec, weights: Weights, dtype: torch.dtype, groups: Groups
) -> Callable[[Tensor, Tensor | None], Tensor]:
    headless = ModelSpec(
        family=spec.family,
        width=spec.width,
        blocks=(),
        norm=spec.norm,
        vocab_size=spec.vocab_size,
        tied=spec.tied,
        logit_soft_cap=spec.logit_soft_cap,
    )
    ops = Rounded()
    with torch.device("meta"):
        model = Model(headless, ops, all_logits=True)
    materialize(model, weights, dtype)
    _mark(ops, model, groups)
    return model.output


def _mark(ops: Rounded, module: nn.Module, groups: Groups, prefix: str = "") -> None:
    for name, parameter in module.named_parameters():
        if prefix + name in groups:
            ops.mark(parameter, groups[prefix + name])


def iterate_names(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every canonical parameter."""
    with torch.device("meta"):
        for name, parameter in Model(spec, Reference()).named_parameters():
            yield name, tuple(parameter.shape)
