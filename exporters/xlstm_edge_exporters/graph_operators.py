"""What the operators of an accelerator's graph mean, in torch: for whoever runs such a graph, or writes it in another form.

Each takes a node's inputs, None where one is left out, and its attributes, and gives its outputs. What only says shapes (the
sizes of a Reshape, the axis of a Slice) may be a tensor or a numpy array.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Inputs = Sequence[Any]
Attributes = Mapping[str, Any]


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    return F.conv1d(x, weight, bias, groups=int(attributes["group"]))


def _dequantize(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    scale: Tensor = inputs[1]
    zero: Tensor | int = inputs[2].int() if len(inputs) > 2 else 0
    by_rows = len(inputs) == 2 and int(attributes["axis"]) == 0
    return (x - zero) * (scale[:, None] if by_rows else scale)


def _gather_rows(table: Tensor, index: Any) -> Tensor:
    """Rows by number; one that a constant names is a slice, which every compiler has."""
    if isinstance(index, Tensor):
        return F.embedding(index[..., 0], table)
    return table.narrow(0, int(index.item()), 1)


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b, c = (*inputs, None)[:3]
    product: Tensor = a @ (b.T if attributes.get("transB") else b)
    return product if c is None else product + c


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    return F.layer_norm(x, (x.shape[-1],), weight, bias, attributes["epsilon"])


def _reduce_max(inputs: Inputs, attributes: Attributes) -> Tensor:
    x: Tensor = inputs[0]
    return x.amax([int(axis) for axis in inputs[1]], keepdim=bool(attributes.get("keepdims", 1)))


def _reshape(x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else int(size) for i, size in enumerate(shape)])


def _slice(x: Tensor, start: Tensor, end: Tensor, axis: Tensor) -> Tensor:
    along = int(axis.item())
    first, last, _ = slice(int(start.item()), int(end.item())).indices(x.shape[along])
    return x.narrow(along, first, last - first)


def _softplus(x: Tensor) -> Tensor:
    """Without overflow, and without a comparison, which LiteRT's kernels for CPUs lack."""
    return torch.relu(x) + torch.log1p(torch.exp(-x.abs()))


def _split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    x, sizes = inputs
    return torch.split(x, [int(size) for size in sizes], int(attributes["axis"]))


def _one(function: Callable[..., Tensor]) -> Callable[[Inputs, Attributes], tuple[Tensor, ...]]:
    """An operator without attributes."""
    return lambda inputs, _: (function(*inputs),)


def _with(function: Callable[[Inputs, Attributes], Tensor]) -> Callable[[Inputs, Attributes], tuple[Tensor, ...]]:
    """An operator with one output."""
    return lambda inputs, attributes: (function(inputs, attributes),)


OPERATORS: dict[str, Callable[[Inputs, Attributes], tuple[Tensor, ...]]] = {
    "Add": _one(torch.add),
    "Concat": _with(lambda inputs, attributes: torch.cat(list(inputs), int(attributes["axis"]))),
    "Conv": _with(_conv),
    "DequantizeLinear": _with(_dequantize),
    "Div": _one(torch.div),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "GatherND": _one(_gather_rows),
    "Gemm": _with(_gemm),
    "LayerNormalization": _with(_layer_norm),
    "MatMul": _one(torch.matmul),
    "Max": _one(torch.maximum),
    "Mul": _one(torch.mul),
    "ReduceMax": _with(_reduce_max),
    "Relu": _one(torch.relu),
    "QuantizeLinear": _one(lambda x, scale, zero: (torch.round(x / scale) + zero.int()).clamp(0, 65535).int()),
    "Reshape": _one(_reshape),
    "Sigmoid": _one(torch.sigmoid),
    "Slice": _one(_slice),
    "Softplus": _one(_softplus),
    "Split": _split,
    "Sub": _one(torch.sub),
    "Tanh": _one(torch.tanh),
    "Transpose": _with(lambda inputs, attributes: inputs[0].permute([int(axis) for axis in attributes["perm"]])),
}
