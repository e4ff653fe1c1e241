"""Test vectors: what a bundle must compute, as a float64 reference computed it, and how far a healthy machine may be off.

`vectors.json` holds a seed and a length, from which the inputs follow, and at some positions: the values of a few
outputs, sums over all of them, and two measured numbers. `float_error` is how far the same computation in float32 came
out; `rounding_error` how far quantized kernels' rounding of activations moves this model's outputs (null for float32
weights). Both are properties of the model, which depth and random weights make large and training makes small. The
bundle states them; how much of them is allowed, and what is too much whatever it states, stands here.

Sums: output j counts with sign s(j) into sum j mod 256, each divided by the root of its number of outputs. A change of
any one output shows in a sum, and the sums' root mean square is that of the outputs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BundleError
from .layout import VECTORS
from .manifest import Manifest
from .manifest_sections import LARGEST_CHUNK
from .reading import Reader, read_json

FLOAT_FACTOR, LEAST_FLOAT, MOST_FLOAT = 10.0, 1e-5, 1e-2
ROUNDING_FACTOR, LEAST_ROUNDING, MOST_ROUNDING = 2.5, 1e-2, 1.2  # of outputs; unrelated ones differ by 1.41
# Of the range, where a provider computes in 16 bits: more than twice what Qualcomm's simulator shows on the shipped model.
FLOAT16_ALLOWED = 2e-2
FLOAT16_STEPS = 16  # tokens that it is judged on: simulators take a second for each
SUMS, MOST_CHECKS, MOST_VALUES = 256, 16, 64
LONGEST_BASE, SHORTEST_BASE, FEW, ODD = 128, 8, 3, 9
LARGEST_FILE, LARGEST_OUTPUT = 4 << 20, 1e30
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ADVICE = "export the bundle again"


@dataclass(frozen=True, slots=True)
class Expected:
    """Outputs after `position`, float64: those of `ids`, all of them in `sums`, the range from least to largest."""

    position: int
    ids: NDArray[np.int64]
    values: NDArray[np.float64]
    sums: NDArray[np.float64]
    span: float
    float_error: float
    rounding_error: float | None

    @property
    def allowed_float(self) -> float:
        """Allowed `float_difference`."""
        return min(max(FLOAT_FACTOR * self.float_error, LEAST_FLOAT), MOST_FLOAT)

    @property
    def allowed_rounding(self) -> float | None:
        """Allowed `rounding_difference`; None where rounding alone moves the outputs so far that none could be wrong."""
        allowed = max(ROUNDING_FACTOR * (self.rounding_error or 0.0), LEAST_ROUNDING)
        return allowed if allowed <= MOST_ROUNDING else None

    @property
    def likeliest(self) -> int:
        """The id of the largest output, which is always among `ids`."""
        return int(self.ids[self.values.argmax()])

    def float_difference(self, output: ArrayLike) -> float:
        """Largest difference of a value or sum, as a share of the range."""
        got = np.asarray(output, np.float64)
        differences = np.concatenate([got[self.ids] - self.values, output_sums(got) - self.sums])
        return float(np.abs(differences).max()) / self.span

    def rounding_difference(self, output: ArrayLike) -> float:
        """Root mean square of the outputs' difference over that of the outputs."""
        difference = output_sums(np.asarray(output, np.float64)) - self.sums
        return float(np.sqrt(np.square(difference).mean() / max(float(np.square(self.sums).mean()), 1e-300)))


@dataclass(frozen=True, slots=True)
class Vectors:
    """Inputs (T,) ids or (T, D) vectors, and what to expect on the way, by position."""

    inputs: NDArray[Any]
    expected: tuple[Expected, ...]

    def first(self, steps: int) -> "Vectors":
        """As far as the positions within so many tokens go, at least to the first."""
        expected = [e for e in self.expected if e.position < steps] or self.expected[:1]
        return Vectors(self.inputs[: expected[-1].position + 1], tuple(expected))


def base_of(chunk: int) -> int:
    """Tokens of one chunk as far as test vectors reach: they are 2 * base + 9 tokens long."""
    return min(max(chunk, SHORTEST_BASE), LONGEST_BASE)


def positions_of(chunk: int) -> tuple[int, ...]:
    """After one token and a few, in the middle and at the end of a chunk, at the end of the next, after an odd rest."""
    base = base_of(chunk)
    return 0, FEW - 1, base // 2 - 1, base - 1, 2 * base - 1, 2 * base + ODD - 1


def make_inputs(seed: int, length: int, *, vocab_size: int | None, width: int) -> NDArray[Any]:
    """Ids (T,), or vectors (T, D) float32 in 128ths from -2 to 2: input i is splitmix64's output i + 1 after `seed`."""
    count = length if vocab_size is not None else length * width
    with np.errstate(over="ignore"):
        numbers = _mixed(np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)
    if vocab_size is not None:
        return (numbers % np.uint64(vocab_size)).astype(np.int64)
    return ((numbers >> np.uint64(55)).astype(np.float32) / 128 - 2).reshape(length, width)


def output_sums(output: NDArray[np.float64]) -> NDArray[np.float64]:
    """The signed sums; s(j) is -1 where the highest bit of splitmix64's output j + 1 after 0 is set."""
    count = len(output)
    with np.errstate(over="ignore"):
        negative = _mixed(np.arange(1, count + 1, dtype=np.uint64) * GOLDEN) >> np.uint64(63) == 1
    number = min(SUMS, count)
    padded = np.zeros(-(-count // number) * number)
    padded[:count] = np.where(negative, -output, output)
    members = np.bincount(np.arange(count) % number)
    sums: NDArray[np.float64] = padded.reshape(-1, number).sum(0) / np.sqrt(members)
    return sums


def read_vectors(folder: Path, manifest: Manifest) -> Vectors:
    """The bundle's test vectors; BundleError if they are not usable."""
    reader = Reader(read_json(folder / VECTORS, LARGEST_FILE, advice=ADVICE), VECTORS, ["seed", "length", "checks"])
    longest = 2 * LONGEST_BASE + ODD
    length, seed = reader.integer("length", 1, longest), reader.integer("seed", 0)
    keys = ("position", "ids", "values", "sums", "range", "float_error", "rounding_error")
    checks = reader.sections("checks", MOST_CHECKS, keys)
    quantized = bool(manifest.quantization)
    expected = tuple(_expected(check, manifest, length, quantized) for check in checks)
    wanted = positions_of(min(manifest.graph.chunk, LARGEST_CHUNK))
    if tuple(e.position for e in expected) != wanted or length != wanted[-1] + 1:
        raise BundleError(f"expected checks at tokens {wanted} in {VECTORS}, got others; {ADVICE}")
    model = manifest.model
    return Vectors(make_inputs(seed, length, vocab_size=model.vocab_size, width=model.width), expected)


def _expected(check: Reader, manifest: Manifest, length: int, quantized: bool) -> Expected:
    width = manifest.model.vocab_size or manifest.model.width
    ids = check.integers("ids", MOST_VALUES, 0, width - 1)
    values = check.numbers("values", MOST_VALUES, -LARGEST_OUTPUT, LARGEST_OUTPUT)
    sums = check.numbers("sums", SUMS, -LARGEST_OUTPUT, LARGEST_OUTPUT)
    if len(ids) != len(values) or not ids or len(sums) != min(SUMS, width):
        raise BundleError(f"expected one value for each id in {VECTORS} and every sum, got another number; {ADVICE}")
    if check.is_null("rounding_error") == quantized:
        raise check.refuse(f"{check.where} rounding_error", "a number for quantized weights alone", check.value)
    return Expected(
        position=check.integer("position", 0, length - 1),
        ids=np.array(ids, np.int64),
        values=np.array(values),
        sums=np.array(sums),
        span=check.number("range", 1e-30, LARGEST_OUTPUT),
        float_error=check.number("float_error", 0, 1),
        rounding_error=check.number("rounding_error", 0, 2) if quantized else None,
    )


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's output function."""
    with np.errstate(over="ignore"):
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
