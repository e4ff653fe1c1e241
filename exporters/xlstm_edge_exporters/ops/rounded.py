"""The reference as other machines compute it: activations rounded to int8 before each quantized product, or jittered.

Kernels differ in how they round: MLAS on x86-64 takes a step for every block of the weight, KleidiAI on ARM64 one
asymmetric step for a whole row, with bfloat16 scales of the weights; and wherever float32 and float64 fall on two sides
of a border, a whole step lies between two right answers. So no one rounding is the right one: the variants below are samples
of what a healthy kernel may do, and how far they move a model's outputs is how far its outputs may move.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .parallel import Parallel

LEVELS = 127
STEP = 2.0**-23  # between neighbouring float32 numbers, as a share
SHORT_STEP = 2.0**-9  # from a number to the nearest bfloat16, at most
M = TypeVar("M")
Rounding = Callable[[Tensor, int], Tensor]


class Marked(Parallel, Generic[M]):
    """The reference with something known of some weights, by their identity."""

    def __init__(self) -> None:
        self.marks: dict[int, M] = {}

    def mark(self, parameter: nn.Parameter, what: M) -> None:
        """Know this of a weight."""
        self.marks[id(parameter)] = what

    def mark_of(self, weight: Tensor) -> M | None:
        """What is known of a weight."""
        return self.marks.get(id(weight))


class Rounded(Marked[int]):
    """What is known of a weight is its block size; others multiply unrounded inputs."""

    def __init__(self, rounding: Rounding, *, short_scales: bool = False) -> None:
        """`short_scales`: the weights' scales are bfloat16, as KleidiAI packs them."""
        super().__init__()
        self._rounding, self._short = rounding, short_scales

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super().linear(self._round(x, weight), self._shorten(weight, 0), bias)

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """The scale comes first, as in the graph."""
        return super().project(self._round(x * scale, weight), self._shorten(weight, 1), 1.0)

    def _shorten(self, weight: Tensor, axis: int) -> Tensor:
        """Each block along `axis` off by what a bfloat16 may be off: what the scale was is not known any more."""
        block_size = self.mark_of(weight)
        if block_size is None or not self._short:
            return weight
        count = -(-weight.shape[axis] // block_size)
        shape = (count, weight.shape[1]) if axis == 0 else (weight.shape[0], count)
        errors = torch.rand(shape, generator=torch.Generator().manual_seed(count), dtype=weight.dtype) * 2 - 1
        wide = (1 + SHORT_STEP * errors).repeat_interleave(block_size, axis).narrow(axis, 0, weight.shape[axis])
        return wide.mul_(weight)

    def _round(self, x: Tensor, weight: Tensor) -> Tensor:
        block_size = self.mark_of(weight)
        return x if block_size is None else self._rounding(x, block_size)


class Jittered(Parallel):
    """Every input of a product one float32 step aside, by signs that follow from `seed`: another machine's rounding."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super().linear(self._jitter(x), weight, bias)

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """The head is a product, too."""
        return super().project(self._jitter(x), weight, scale)

    def _jitter(self, x: Tensor) -> Tensor:
        signs = torch.randint(0, 2, x.shape[-1:], generator=self._generator) * 2 - 1
        return x * (1 + STEP * signs)


def by_block(x: Tensor, block_size: int) -> Tensor:
    """x (..., K) with each block of the last axis rounded to 255 levels around 0; the last block may be short."""
    return _in_blocks(x, block_size, 0.0)


def between(x: Tensor, block_size: int) -> Tensor:
    """The same with the levels half a step aside, where every border of `by_block` is a level."""
    return _in_blocks(x, block_size, 0.5)


def by_row(x: Tensor, _block_size: int) -> Tensor:
    """Each row rounded to 256 levels from its least to its largest value, 0 among them."""
    low, high = x.amin(-1, keepdim=True).clamp_max(0.0), x.amax(-1, keepdim=True).clamp_min(0.0)
    step = (high - low) / (2 * LEVELS + 1)
    return torch.round(x / torch.where(step == 0, 1.0, step)) * step


def _in_blocks(x: Tensor, block_size: int, shift: float) -> Tensor:
    columns = x.shape[-1]
    padded = nn.functional.pad(x, (0, -columns % block_size)).reshape(*x.shape[:-1], -1, block_size)
    step = padded.abs().amax(-1, keepdim=True) / LEVELS
    rounded = (torch.round(padded / torch.where(step == 0, 1.0, step) - shift) + shift) * step
    flat: Tensor = rounded.flatten(-2)
    return flat[..., :columns]
