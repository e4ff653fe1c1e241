"""The reference as quantized kernels compute it: activations rounded to int8 before each quantized product.

onnxruntime's MatMulNBits at accuracy level 4 cuts its input into groups as the weight is cut, scales each by its largest
magnitude over 127, and multiplies integers. Rounding the reference's activations in the same way leaves float rounding
as the only difference, so that a quantized bundle can be held to a tight bound.
"""

import torch
from torch import Tensor, nn

from .reference import Reference

LEVELS = 127


class Rounded(Reference):
    """`groups` maps the identity of a weight to its group size; other weights multiply unrounded inputs."""

    def __init__(self) -> None:
        self.groups: dict[int, int] = {}

    def mark(self, parameter: nn.Parameter, group: int) -> None:
        """Round what meets this weight."""
        self.groups[id(parameter)] = group

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Round, then multiply."""
        return super().linear(self._round(x, weight), weight, bias)

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """The scale comes first, as in the graph."""
        return super().project(self._round(x * scale, weight), weight, 1.0)

    def _round(self, x: Tensor, weight: Tensor) -> Tensor:
        group = self.groups.get(id(weight))
        return x if group is None else round_activations(x, group)


def round_activations(x: Tensor, group: int) -> Tensor:
    """x (..., K) with each group of the last axis rounded to 255 levels around 0; the last group may be short."""
    columns = x.shape[-1]
    padded = nn.functional.pad(x, (0, -columns % group)).reshape(*x.shape[:-1], -1, group)
    step = padded.abs().amax(-1, keepdim=True) / LEVELS
    rounded = torch.round(padded / torch.where(step == 0, 1.0, step)) * step
    flat: Tensor = rounded.flatten(-2)
    return flat[..., :columns]
