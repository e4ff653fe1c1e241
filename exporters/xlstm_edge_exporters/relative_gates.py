"""Gates that float16 keeps the digits of: each input gate, and the stabilizer m, less a constant of its head.

An accelerator rounds every number to 11 bits, and a gate near 13 to steps of 0.008, of which exponentials make errors of a
percent. What a gate differs by from its bias is small, has all its digits, and is all that the recurrence needs: only the
lower bound exp(-m) of the normalizer wants the constant back, which is the parameter `offset`.

    plain gates         i = w x + b                    i' = w x                              offset = b
    soft-capped gates   i = cap tanh(w x + b)          i' = scale t / (1 + pivot t),         offset = cap tanh(p)
                        (w, b divided by cap)          t = tanh(w x + b - p), pivot = tanh(p), scale = cap (1 - pivot^2)

The second line is the addition theorem of tanh; p is the bias, but no more than `FARTHEST` from 0, beyond which 1 + pivot t
could lose its digits. Memory and normalizer are held 2**-HEADROOM times as large, with HEADROOM log 2 more in `offset`, so
that sums over thousands of tokens stay far from the largest float16.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .spec import MLSTM, SMALL_EPS, Block, ModelSpec, UpMLSTM
from .weights import FloatArray, Weight, Weights

# More would let longer sums grow; less keeps small numbers out of float16's last digits, which HTP takes for 0.
HEADROOM = 2
FARTHEST = 1.5
OFFSET, SCALE, PIVOT, BIAS = "offset", "gate_scale", "gate_pivot", "gates.bias"


def relative_spec(spec: ModelSpec) -> ModelSpec:
    """The same model with relative gates in every mLSTM."""
    return replace(spec, blocks=tuple(_relative_block(block) for block in spec.blocks))


def relative_weights(spec: ModelSpec, weights: Weights) -> dict[str, Weight]:
    """Weights of `relative_spec(spec)` from those of `spec`."""
    made = dict(weights)
    for prefix, heads, cap, farthest in _mixers(spec):
        bias = weights[prefix + BIAS]
        parts = _plain(heads, farthest) if cap is None else _capped(heads, cap, min(farthest, FARTHEST))
        made |= {prefix + name: _derived(bias, shape, function) for name, shape, function in parts}
    return made


def absolute_weights(spec: ModelSpec, weights: Weights) -> dict[str, Weight]:
    """The inverse of `relative_weights`, to float32's rounding; `spec` is the one without relative gates."""
    made = dict(weights)
    for prefix, heads, cap, _ in _mixers(spec):
        bias, given = made[prefix + BIAS], made.pop(prefix + OFFSET)
        if cap is not None:
            del made[prefix + SCALE]
            given = made.pop(prefix + PIVOT)
        made[prefix + BIAS] = _restored(bias, given, heads, cap)
    return made


def _relative_block(block: Block) -> Block:
    mixer = block.mixer
    return replace(block, mixer=replace(mixer, relative=True)) if isinstance(mixer, (UpMLSTM, MLSTM)) else block


def _mixers(spec: ModelSpec) -> list[tuple[str, int, float | None, float]]:
    """(prefix of the names, heads, soft cap of the gates, how far a constant may be from 0) of every mLSTM.

    An epsilon that counts is added to the normalizer in units of exp(m), so m must be what it is from the start on, 0.
    """
    found = []
    for index, block in enumerate(spec.blocks):
        if isinstance(block.mixer, (UpMLSTM, MLSTM)):
            cap = block.mixer.gate_soft_cap if isinstance(block.mixer, MLSTM) else None
            farthest = 0.0 if block.mixer.eps > SMALL_EPS else math.inf
            found.append((f"blocks.{index}.mixer.", block.mixer.heads, cap, farthest))
    return found


Part = tuple[str, tuple[int, ...], Callable[[FloatArray], FloatArray]]  # name, shape, from the bias [b | bias of -f]


def _plain(heads: int, farthest: float) -> list[Part]:
    extra = np.float32(HEADROOM * math.log(2.0))

    def constants(bias: FloatArray) -> FloatArray:
        return np.clip(bias[:heads], -farthest, farthest)

    return [
        (BIAS, (2 * heads,), lambda bias: np.concatenate([bias[:heads] - constants(bias), bias[heads:]])),
        (OFFSET, (1, heads), lambda bias: constants(bias)[None] + extra),
    ]


def _capped(heads: int, cap: float, farthest: float) -> list[Part]:
    """Forget gates keep their plain form: pivot 0, scale cap."""
    extra, zeros, caps = HEADROOM * math.log(2.0), np.zeros(heads, np.float32), np.full(heads, cap, np.float32)

    def pivots(bias: FloatArray) -> FloatArray:
        return np.clip(bias[:heads], -farthest, farthest).astype(np.float64)

    return [
        (BIAS, (2 * heads,), lambda bias: np.concatenate([bias[:heads] - pivots(bias), bias[heads:]])),
        (OFFSET, (1, heads), lambda bias: cap * np.tanh(pivots(bias))[None] + extra),
        (PIVOT, (2 * heads,), lambda bias: np.concatenate([np.tanh(pivots(bias)), zeros])),
        (SCALE, (2 * heads,), lambda bias: np.concatenate([cap / np.cosh(pivots(bias)) ** 2, caps])),
    ]


def _derived(bias: Weight, shape: tuple[int, ...], function: Callable[[FloatArray], FloatArray]) -> Weight:
    return Weight(shape, lambda: np.ascontiguousarray(function(bias.load()), np.float32))


def _restored(bias: Weight, given: Weight, heads: int, cap: float | None) -> Weight:
    """The bias [b | bias of -f] from the one that is left and the offset, or the pivot of capped gates."""

    def load() -> FloatArray:
        left, shift = bias.load(), given.load().reshape(-1)[:heads].astype(np.float64)
        shift = shift - HEADROOM * math.log(2.0) if cap is None else np.arctanh(shift)
        return np.concatenate([left[:heads] + shift, left[heads:]]).astype(np.float32)

    return Weight(bias.shape, load)
