"""Ranges of what goes into and comes out of each product, and what 16-bit integers make of them.

An accelerator multiplies integers: the weight's of 8 bits with a scale for each output, the activation's of 16 bits with one
scale and one zero point for all, which must be known beforehand. They are measured on a text. Only products with a weight
are quantized: the recurrence does not survive it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlstm_edge_runtime.progress import Progress, no_progress

from ..ops.rounded import Marked
from ..reference import Variant, run_variants
from ..spec import ModelSpec
from ..weights import Weights

LEVELS = 65535
MARGIN = 1.5  # how much farther than what was measured an activation may go
TOKENS, SEQUENCES = 1024, 2  # of one stream, and streams


@dataclass(frozen=True, slots=True)
class Encoding:
    """uint16 integers q that mean scale * (q - zero_point)."""

    scale: float
    zero_point: int

    @staticmethod
    def of_range(low: float, high: float) -> "Encoding":
        """For numbers from `low` to `high`, 0 among them and met exactly."""
        low, high = min(low, 0.0) * MARGIN, max(high, 0.0) * MARGIN
        scale = float(np.float32((high - low) / LEVELS)) or 1.0
        return Encoding(scale, round(-low / scale))

    def rounded(self, x: Tensor) -> Tensor:
        """What is left of numbers that went through these integers."""
        integers = torch.round(x / self.scale) + self.zero_point
        return (integers.clamp(0, LEVELS) - self.zero_point) * self.scale


@dataclass(frozen=True, slots=True)
class ProductEncoding:
    """Of one product: what is multiplied with the weight, and the product before its bias."""

    inputs: Encoding
    outputs: Encoding


@dataclass(slots=True)
class _Range:
    """Least and largest number seen on both sides of a product."""

    inputs: list[float] = field(default_factory=lambda: [0.0, 0.0])
    outputs: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def take(self, x: Tensor, y: Tensor) -> None:
        """Widen both ranges."""
        for known, tensor in ((self.inputs, x), (self.outputs, y)):
            known[:] = min(known[0], float(tensor.min())), max(known[1], float(tensor.max()))

    def encoding(self) -> ProductEncoding:
        """What to round to."""
        return ProductEncoding(Encoding.of_range(*self.inputs), Encoding.of_range(*self.outputs))


class Ranging(Marked[_Range]):
    """The reference, which notes the ranges of marked products."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute, note, add the bias."""
        product = super().linear(x, weight, None)
        if (found := self.mark_of(weight)) is not None:
            found.take(x, product)
        return product if bias is None else product + bias

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """The scale comes after, as in an accelerator's graph."""
        product = super().project(x, weight, 1.0)
        if (found := self.mark_of(weight)) is not None:
            found.take(x, product)
        return product * scale


class Encoded(Marked[ProductEncoding]):
    """The reference with both sides of marked products rounded to their integers."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As the graph's QuantizeLinear and DequantizeLinear do."""
        encoding = self.mark_of(weight)
        if encoding is None:
            return super().linear(x, weight, bias)
        product = encoding.outputs.rounded(super().linear(encoding.inputs.rounded(x), weight, None))
        return product if bias is None else product + bias

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """The head is a product, too."""
        encoding = self.mark_of(weight)
        if encoding is None:
            return super().project(x, weight, scale)
        return encoding.outputs.rounded(super().project(encoding.inputs.rounded(x), weight, 1.0)) * scale


def measure_encodings(
    spec: ModelSpec,
    weights: Weights,
    names: Sequence[str],
    inputs: NDArray[np.generic],
    progress: Progress = no_progress,
) -> dict[str, ProductEncoding]:
    """Canonical name -> its product's encodings, from windows (S, T) of ids or (S, T, D) of vectors of a calibration."""
    flat = inputs.reshape(-1, *inputs.shape[2:])
    length = min(TOKENS, len(flat))
    count = min(SEQUENCES, len(flat) // length)
    ranges = {name: _Range() for name in names}
    for part in np.split(flat[: count * length], count):
        run_variants(spec, weights, part, {"ranges": Variant(torch.float32, Ranging)}, marks=ranges, progress=progress)
    return {name: found.encoding() for name, found in ranges.items()}


def rounded_weight(array: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers of -127 to 127, and the scales, one for each place of `axis`, of a matrix."""
    largest = np.abs(array).max(1 - axis)
    scales = np.where(largest == 0, 1.0, largest / 127).astype(np.float32)
    return np.rint(array / np.expand_dims(scales, 1 - axis)).clip(-127, 127).astype(np.int8), scales


def all_of(encodings: Mapping[str, ProductEncoding], name: str) -> dict[str, NDArray[np.generic]]:
    """Initializer name -> its scalar, of one product."""
    made: dict[str, NDArray[np.generic]] = {}
    for side, encoding in (("input", encodings[name].inputs), ("output", encodings[name].outputs)):
        made[f"{name}.{side}_scale"] = np.array(encoding.scale, np.float32)
        made[f"{name}.{side}_zero_point"] = np.array(encoding.zero_point, np.uint16)
    return made
