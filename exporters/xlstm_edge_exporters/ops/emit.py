"""What the two ONNX lowerings share: one node in the trace for one call.

`torch.onnx.ops.symbolic` puts a named ONNX operator into the traced graph, with the shape and dtype that tracing goes
on with; nothing is computed. These functions are used while `torch.onnx.export` traces, never to run a model.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import SymInt, Tensor

Shape = Sequence[int | SymInt]


def emit(op: str, *inputs: Tensor | None, shape: Shape | None = None, **attributes: Any) -> Tensor:
    """One node with one output; `shape` is that of the first input unless given."""
    first = inputs[0]
    assert first is not None
    return torch.onnx.ops.symbolic(
        op, inputs, attributes, dtype=first.dtype, shape=first.shape if shape is None else shape, version=_version(op)
    )


def emit_many(op: str, *inputs: Tensor | None, shapes: Sequence[Shape], **attributes: Any) -> Sequence[Tensor]:
    """One node with several outputs."""
    first = inputs[0]
    assert first is not None
    dtypes = [first.dtype] * len(shapes)
    return torch.onnx.ops.symbolic_multi_out(op, inputs, attributes, dtypes=dtypes, shapes=shapes, version=_version(op))


def split(x: Tensor, sizes: Sequence[int], dim: int = -1) -> tuple[Tensor, ...]:
    """ONNX Split with explicit sizes (the same in every opset since 13); torch.split would become a sequence."""
    axis = dim % x.ndim
    shapes = [[*x.shape[:axis], size, *x.shape[axis + 1 :]] for size in sizes]
    return tuple(emit_many("Split", x, torch.tensor(list(sizes)), shapes=shapes, axis=axis))


def slice_axis(x: Tensor, start: int, end: int, axis: int, shape: Shape) -> Tensor:
    """x[start:end] along `axis`, negative numbers from the end."""
    bounds = [torch.tensor([number]) for number in (start, end, axis)]
    return emit("Slice", x, *bounds, shape=shape)


def reshape(x: Tensor, shape: Shape, *, keep: int) -> Tensor:
    """Reshape that copies the first `keep` axes (ONNX's 0), so that no shape has to be computed at run time."""
    rest = [int(size) for size in shape[keep:]]
    return emit("Reshape", x, torch.tensor([0] * keep + rest), shape=shape)


def unsqueeze_last(x: Tensor) -> Tensor:
    """(...) -> (..., 1)."""
    return emit("Unsqueeze", x, torch.tensor([x.ndim]), shape=[*x.shape, 1])


def last_token(x: Tensor) -> Tensor:
    """(B, T, D) -> (B, D)."""
    return emit("Gather", x, torch.tensor(-1), shape=[x.shape[0], x.shape[2]], axis=1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H*d) -> (B, T, H, d)."""
    return reshape(x, [*x.shape[:2], heads, x.shape[2] // heads], keep=2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, T, H, d) -> (B, T, H*d)."""
    return reshape(x, [*x.shape[:2], prod(x.shape[2:])], keep=2)


def grouped_conv(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Conv along time of x (B, C, T), unpadded; torch would invent a zero bias where there is none."""
    length = x.shape[2] - weight.shape[2] + 1
    return emit("Conv", x, weight, bias, shape=[x.shape[0], weight.shape[0], length], group=groups)


def slstm_cell(
    raw: Tensor,
    state: Sequence[Tensor],
    softplus: Callable[[Tensor], Tensor],
    exp: Callable[[Tensor], Tensor] = torch.exp,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One stabilized sLSTM step: raw (B, H, 1, 4*DH) = [i | -f | z | o], state (y, c, n, m) -> (sigmoid(o), c, n, m)."""
    _, c, n, m = state
    i, minus_f, z, o = split(raw, [raw.shape[-1] // 4] * 4)
    decayed = m - softplus(minus_f)
    m = torch.maximum(i, decayed)
    gain, decay = exp(i - m), exp(decayed - m)
    return torch.sigmoid(o), decay * c + gain * torch.tanh(z), decay * n + gain, m


def mean_last(x: Tensor) -> Tensor:
    """Mean over the last axis, kept."""
    return emit("ReduceMean", x, torch.tensor([-1]), shape=[*x.shape[:-1], 1], keepdims=1)


def _version(op: str) -> int | None:
    return 1 if "::" in op else None  # contrib domains have versions of their own; ONNX's is the opset's
