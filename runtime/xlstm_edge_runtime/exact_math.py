"""Random numbers and weights that are the same on every machine, so that a seed gives the same text everywhere.

Written so that it can be written again in JavaScript or C; everything else about sampling is in `sampling`.

Random numbers: SplitMix64 (Steele, Lea, Flood 2014). All arithmetic is on unsigned 64-bit integers, modulo 2^64:

    state = seed                                    0 <= seed < 2^64
    next():  state = state + 0x9E3779B97F4A7C15
             z = state
             z = (z xor (z >> 30)) * 0xBF58476D1CE4E5B9
             z = (z xor (z >> 27)) * 0x94D049BB133111EB
             return z xor (z >> 31)
    below(n) = floor(next() * n / 2^64)             the high half of the 128-bit product; 0 < n < 2^53

Weights: for x <= 0 (a double, also -inf), weight(x) = floor(e^x * 2^32) as an integer from 0 to 2^32, by these steps on
doubles, each one rounded by itself (IEEE 754, to nearest even; no fused multiply-add: C needs -ffp-contract=off):

    if x < -24: return 0
    k = floor(x * 23.083120654223414 + 0.5)          the nearest multiple of ln(2)/16
    r = x - k * 0.04332169878499658
    p = (((r * (1/24) + 1/6) * r + 0.5) * r + 1) * r + 1      with the doubles nearest to 1/24 and 1/6
    return floor(p * T[k mod 16] * 2^(floor(k / 16) + 32))        from left to right; k mod 16 is from 0 to 15

    T[j] = 2^(j/16) for j = 0..15, the doubles nearest to it:
        1.0, 1.0442737824274138, 1.0905077326652577, 1.1387886347566916,
        1.189207115002721, 1.241857812073484, 1.2968395546510096, 1.3542555469368927,
        1.4142135623730951, 1.4768261459394993, 1.5422108254079407, 1.6104903319492543,
        1.681792830507429, 1.7562521603732995, 1.8340080864093424, 1.9152065613971474

Only additions, multiplications and floor are used, which no CPU, compiler or NumPy version rounds in another way; `exp`
of a library differs in the last bit from one to the next. A sum of up to 2^21 weights is below 2^53, so a double holds
it exactly.
"""

import numpy as np
from numpy.typing import NDArray

ONE = 1 << 32  # the weight of x = 0
LOWEST = -24.0  # here and below the weight is 0: e^-24 * 2^32 < 1
STEPS = 16  # of the table, in one power of two
STEPS_IN_LN2 = 23.083120654223414
STEP = 0.04332169878499658  # ln(2)/16
TABLE = np.array([
    1.0, 1.0442737824274138, 1.0905077326652577, 1.1387886347566916,
    1.189207115002721, 1.241857812073484, 1.2968395546510096, 1.3542555469368927,
    1.4142135623730951, 1.4768261459394993, 1.5422108254079407, 1.6104903319492543,
    1.681792830507429, 1.7562521603732995, 1.8340080864093424, 1.9152065613971474,
]) * ONE  # fmt: skip
MASK = (1 << 64) - 1
MANTISSA = 52  # bits of a double behind its exponent


class SplitMix64:
    """The generator above; `seed` from 0 to 2^64 - 1."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def next(self) -> int:
        """64 random bits."""
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """A random integer from 0 to n - 1."""
        return (self.next() * n) >> 64


def weights(x: NDArray[np.float64]) -> NDArray[np.int64]:
    """weight(x) of each element; x is overwritten."""
    np.maximum(x, LOWEST, out=x)
    k = x * STEPS_IN_LN2
    k += 0.5
    np.floor(k, out=k)
    x -= k * STEP
    p = x * (1 / 24)
    for coefficient in (1 / 6, 0.5, 1.0):
        p += coefficient
        p *= x
    p += 1.0
    whole = k.astype(np.int64)
    p *= TABLE[whole & (STEPS - 1)]
    bits = p.view(np.int64)
    bits += (whole >> 4) << MANTISSA  # times a power of two, by adding to the exponent
    return p.astype(np.int64)  # towards zero, which is floor for what is positive
