"""Choose the next token from logits.

Filters run in llama.cpp's order: penalties and biases, top-k, top-p, min-p, temperature. Truncation therefore judges
the model's own distribution, and temperature only reshapes what survived. Everything is bounded: the penalty window is
a ring of fixed size, and the vocabulary is scanned once (argmax or one partition), never sorted whole.
"""

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, VerificationError

Logits = NDArray[np.float32]
NEGATIVE_INFINITY = np.float32(-np.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How to sample; the default is greedy. InputError for values that make no sense.

    temperature 0 takes the largest logit. top_k 0, top_p 1 and min_p 0 switch a filter off. The penalties look at the
    last `penalty_window` generated tokens: repetition divides (positive) or multiplies (negative) their logits, presence
    subtracts once, frequency once per occurrence. `logit_bias` adds to logits by id; `banned` ids never come.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned: Collection[int] = ()

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, 1e4)
        _number("top_p", self.top_p, 0.0, 1.0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 1e-4, 1e4)
        _number("presence_penalty", self.presence_penalty, -1e4, 1e4)
        _number("frequency_penalty", self.frequency_penalty, -1e4, 1e4)
        _integer("top_k", self.top_k, 2**31)
        _integer("penalty_window", self.penalty_window, 2**20)
        if self.top_p == 0.0:
            raise InputError("expected top_p above 0, came 0; use temperature 0 for greedy decoding")
        if self.seed is not None:
            _integer("seed", self.seed, 2**64)

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any]) -> "SamplingOptions":
        """From keyword options; InputError lists the ones nobody knows."""
        known = {f.name for f in fields(SamplingOptions)}
        if unknown := sorted(mapping.keys() - known):
            raise InputError(
                f"expected options among {', '.join(sorted(known))}, came {', '.join(unknown)}; remove them"
            )
        return SamplingOptions(**mapping)

    @property
    def penalizes(self) -> bool:
        """Whether generated tokens change later logits."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


class Sampler:
    """Stateful only through its random generator and the ring of recent tokens."""

    def __init__(self, options: SamplingOptions, vocab_size: int) -> None:
        self.options = options
        self._rng = np.random.default_rng(options.seed)
        self._recent: deque[int] = deque(maxlen=options.penalty_window)
        self._fixed = _fixed_bias(options, vocab_size)

    def __call__(self, logits: Logits) -> int:
        """The next id for logits (V,) float32, which are not changed; VerificationError for NaN or all -inf."""
        logits = self._adjusted(logits)
        token = self._sample(logits) if self.options.temperature > 0 else int(np.argmax(logits))
        if not math.isfinite(logits[token]):  # argmax and the filters both end on a NaN if there is one
            raise VerificationError(
                f"expected finite logits, came {logits[token]} at id {token}; the model or its input is broken"
            )
        if self.options.penalizes:
            self._recent.append(token)
        return token

    def _adjusted(self, logits: Logits) -> Logits:
        """Penalties and biases; a copy only if there are any."""
        if self._fixed is None and not (self.options.penalizes and self._recent):
            return logits
        logits = logits.copy()
        if self.options.penalizes and self._recent:
            ids, counts = np.unique(np.fromiter(self._recent, np.int64), return_counts=True)
            values = logits[ids]
            rate = np.float32(self.options.repetition_penalty)
            values = np.where(values > 0, values / rate, values * rate)
            logits[ids] = values - self.options.presence_penalty - self.options.frequency_penalty * counts
        if self._fixed is not None:
            ids, bias = self._fixed
            logits[ids] += bias
        return logits

    def _sample(self, logits: Logits) -> int:
        options = self.options
        ids = _top_k(logits, options.top_k)
        kept = logits if ids is None else logits[ids]
        largest = int(np.argmax(kept))
        if not math.isfinite(kept[largest]):
            return int(largest if ids is None else ids[largest])
        weights = np.exp(kept.astype(np.float64) - kept[largest])
        if options.top_p < 1.0 or options.min_p > 0.0:
            mask = _nucleus(weights, options.top_p) & (weights >= options.min_p)
            chosen = np.flatnonzero(mask)
            kept, ids = kept[chosen], chosen if ids is None else ids[chosen]
            weights = weights[chosen]
        if options.temperature != 1.0:
            weights = np.exp((kept.astype(np.float64) - kept.max()) / options.temperature)
        cumulative = np.cumsum(weights)
        index = int(np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right"))
        index = min(index, len(cumulative) - 1)
        return int(index if ids is None else ids[index])


def _top_k(logits: Logits, k: int) -> NDArray[np.int64] | None:
    """Ids of the k largest logits, None for all."""
    if not 0 < k < len(logits):
        return None
    return np.argpartition(logits, len(logits) - k)[len(logits) - k :]


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """The smallest set of largest weights whose share reaches top_p.

    Only the head of the distribution is sorted: it grows until it holds enough.
    """
    if top_p >= 1.0:
        return np.ones(len(weights), bool)
    wanted, size = top_p * weights.sum(), 64
    while True:
        size = min(size, len(weights))
        head = np.argpartition(weights, len(weights) - size)[len(weights) - size :]
        head = head[np.argsort(-weights[head], kind="stable")]
        cumulative = np.cumsum(weights[head])
        if cumulative[-1] >= wanted or size == len(weights):
            break
        size *= 8
    mask = np.zeros(len(weights), bool)
    mask[head[: int(np.searchsorted(cumulative, wanted)) + 1]] = True
    return mask


def _fixed_bias(options: SamplingOptions, vocab_size: int) -> tuple[NDArray[np.int64], Logits] | None:
    """Ids and what to add to their logits, the same at every step."""
    try:
        bias = {int(i): float(b) for i, b in options.logit_bias.items()} | {int(i): -math.inf for i in options.banned}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"expected logit_bias as {{id: number}} and banned as ids, came {options.logit_bias!r:.40} and "
            f"{options.banned!r:.40}; correct them"
        ) from error
    if outside := [i for i in bias if not 0 <= i < vocab_size]:
        raise InputError(
            f"expected ids from 0 to {vocab_size - 1} in logit_bias and banned, came {outside[0]}; remove it"
        )
    if any(math.isnan(value) for value in bias.values()):
        raise InputError("expected numbers in logit_bias, came NaN; remove it")
    return (np.array(list(bias), np.int64), np.array(list(bias.values()), np.float32)) if bias else None


def _number(name: str, value: object, low: float, high: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.floating, np.integer))
        or not low <= value <= high
    ):
        raise InputError(f"expected {name} from {low:g} to {high:g}, came {value!r}; correct it")


def _integer(name: str, value: object, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < limit:
        raise InputError(f"expected {name} as an integer of 0 or more, came {value!r}; correct it")
