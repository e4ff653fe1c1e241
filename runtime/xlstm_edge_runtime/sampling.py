"""Choose the next token from logits: the same logits, options and seed give the same id on every machine.

Filters run in llama.cpp's order: penalties and biases, top-k, top-p, min-p, temperature. Truncation therefore judges
the model's own distribution, and temperature only reshapes what survived. In detail, for float32 logits z[0..V-1], so
that it can be written again in another language (`exact` has weight() and the random numbers; "double" is IEEE 754):

1. Penalties, for each id that occurs c > 0 times in the window (the last `penalty_window` ids of prompt and generated
   tokens): y = z > 0 ? z / repetition : z * repetition; z = y - (presence + frequency * c), in doubles, rounded to
   float32 at the end. Then z = z + bias in float32 for each biased id; banned ids become -inf.
2. Greedy (temperature 0): the largest z; of equal ones the lowest id. No random number is drawn.
3. Order of candidates: larger z first, of equal z the lower id first. top-k keeps the first k.
4. w = weight(z - m) where m is the largest z, the difference in doubles.
5. top-p < 1: S = the sum of all w of step 4; of the candidates in order, keep the fewest whose sum of w reaches top_p * S
   (a product of doubles).
6. min-p > 0: keep the candidates with w >= min_p * 2^32.
7. temperature not 1: w = weight((z - m) / temperature), difference and quotient in doubles.
8. r = below(sum of all w), one random number a token; the chosen id is the first, in order of *ids*, for which the running
   sum of w exceeds r.

All sums are of integers and exact. Work is bounded: the vocabulary is scanned a few times, never sorted whole, and the
window costs its distinct ids at most.
"""

import math
import secrets
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, VerificationError
from .exact_math import ONE, SplitMix64, weights
from .reading import length_of

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]
LARGEST_BIAS, LARGEST_WINDOW, MOST_BIASES = 1e6, (1 << 20) - 1, 1 << 20
HEAD = 64  # candidates that are sorted at first for top-p


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How to sample; the default is greedy. InputError for values that make no sense.

    temperature 0 takes the largest logit. top_k 0, top_p 1 and min_p 0 switch a filter off. `seed` None takes fresh
    randomness. The penalties look at the last `penalty_window` tokens of prompt and generated text, as llama.cpp does
    (transformers' repetition penalty sees all of them: set the window as large): repetition divides (positive) or
    multiplies (negative) their logits, presence subtracts once, frequency once per occurrence. `logit_bias` adds to logits
    by id (-inf bans); `banned` ids never come.
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
        _integer("penalty_window", self.penalty_window, LARGEST_WINDOW + 1)
        if self.top_p == 0.0:
            raise InputError("expected top_p above 0, got 0; use temperature 0 for greedy decoding")
        if self.seed is not None:
            _integer("seed", self.seed, 2**64)

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any]) -> "SamplingOptions":
        """From named options, as a manifest holds them; InputError lists the ones nobody knows."""
        known = {f.name for f in fields(SamplingOptions)}
        if unknown := sorted(str(name)[:40] for name in mapping.keys() - known):
            raise InputError(
                f"expected options among {', '.join(sorted(known))}, got {', '.join(unknown)[:200]!r}; remove them"
            )
        return SamplingOptions(**mapping)

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens change later logits."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


class Sampler:
    """Stateful only through its random generator and the window of recent tokens: one a stream, for one thread.

    `prompt` are ids that count as seen; `late` are ids that may be kept away for a while by `hold_late` (stop ids before
    a least number of tokens). InputError for ids outside the vocabulary, or if no id may ever come.
    """

    def __init__(
        self, options: SamplingOptions, vocab_size: int, *, prompt: Iterable[int] = (), late: Collection[int] = ()
    ) -> None:
        self.options = options
        self._random = SplitMix64(secrets.randbits(64) if options.seed is None else int(options.seed))
        self._window = _Window(options.penalty_window) if options.penalizes else None
        for token in prompt if self._window is not None else ():
            self._window.push(int(token))  # type: ignore[union-attr]  # there is none only where nothing is pushed
        self._fixed = _fixed_bias(options, vocab_size)
        self._late = np.array(sorted({int(i) for i in late if 0 <= i < vocab_size}), np.int64)
        banned = set() if self._fixed is None else set(self._fixed[0][np.isneginf(self._fixed[1])].tolist())
        if len(banned.union(self._late.tolist())) >= vocab_size:
            raise InputError(f"expected some of {vocab_size} ids to be allowed, got a ban of all; allow one")

    def __call__(self, logits: Logits, *, hold_late: bool = False) -> int:
        """The next id for logits (V,) float32, which are not changed; VerificationError for NaN, inf or all -inf."""
        self._check(logits)
        adjusted = self._adjusted(logits, hold_late)
        if adjusted is not logits:
            self._check(adjusted)
        token = self._sample(adjusted) if self.options.temperature > 0 else int(np.argmax(adjusted))
        if self._window is not None:
            self._window.push(token)
        return token

    @staticmethod
    def _check(logits: Logits) -> None:
        """numpy's max is NaN where anything is."""
        largest = float(logits.max())
        if not math.isfinite(largest):
            raise VerificationError(
                f"expected finite logits, got {largest} as their largest; the model or its input is broken"
            )

    def _adjusted(self, logits: Logits, hold_late: bool) -> Logits:
        """Step 1; a copy only if anything changes."""
        window = self._window if self._window is not None and self._window.size else None
        if window is None and self._fixed is None and not (hold_late and len(self._late)):
            return logits
        logits = logits.copy()
        if window is not None:
            ids, counts = window.ids, window.counts
            values, rate = logits[ids].astype(np.float64), float(self.options.repetition_penalty)
            values = np.where(values > 0, values / rate, values * rate)
            values -= self.options.presence_penalty + self.options.frequency_penalty * counts
            with np.errstate(over="ignore"):  # beyond float32: what becomes the largest is refused
                logits[ids] = values
        if self._fixed is not None:
            with np.errstate(over="ignore"):  # the same
                logits[self._fixed[0]] += self._fixed[1]
        if hold_late:
            logits[self._late] = -np.inf
        return logits

    def _sample(self, logits: Logits) -> int:
        """Steps 3 to 8. `ids` None means all."""
        options, largest = self.options, float(logits.max())
        ids = _first(logits, options.top_k) if 0 < options.top_k < len(logits) else None
        values = logits if ids is None else logits[ids]
        kept = values.astype(np.float64)
        kept -= largest
        filtered = options.top_p < 1.0 or options.min_p > 0.0
        shares = weights(kept.copy()) if filtered or options.temperature == 1.0 else None
        if shares is not None and filtered:
            index = _nucleus(values, shares, options.top_p) if options.top_p < 1.0 else np.arange(len(kept))
            if options.min_p > 0.0:
                index = index[shares[index] >= options.min_p * ONE]
            ids, kept, shares = index if ids is None else ids[index], kept[index], shares[index]
        if shares is None or options.temperature != 1.0:
            with np.errstate(over="ignore"):  # a tiny temperature makes -inf of all but the largest: weight 0
                shares = weights(kept / float(options.temperature))
        running = np.cumsum(shares)
        at = int(np.searchsorted(running, self._random.below(int(running[-1])), side="right"))
        return at if ids is None else int(ids[at])


class _Window:
    """How often each id occurs among the last `size` tokens; a token costs the same whatever the size."""

    def __init__(self, size: int) -> None:
        self._recent: deque[int] = deque()
        self._limit = size
        self._slots: dict[int, int] = {}
        self._ids, self._counts = np.zeros(64, np.int64), np.zeros(64, np.int64)

    @property
    def size(self) -> int:
        """Number of distinct ids."""
        return len(self._slots)

    @property
    def ids(self) -> Ids:
        """The distinct ids, in no order."""
        return self._ids[: self.size]

    @property
    def counts(self) -> Ids:
        """Occurrences of each of `ids`."""
        return self._counts[: self.size]

    def push(self, token: int) -> None:
        """One token more, and the oldest one out of a full window."""
        if not self._limit:
            return
        if len(self._recent) == self._limit:
            self._forget(self._recent.popleft())
        self._recent.append(token)
        slot = self._slots.get(token)
        if slot is None:
            slot = self._slots[token] = len(self._slots)
            if slot == len(self._ids):
                self._ids, self._counts = (np.resize(a, 2 * slot) for a in (self._ids, self._counts))
            self._ids[slot], self._counts[slot] = token, 0
        self._counts[slot] += 1

    def _forget(self, token: int) -> None:
        slot = self._slots[token]
        self._counts[slot] -= 1
        if self._counts[slot] == 0:  # the last one moves into the gap
            last = len(self._slots) - 1
            moved = int(self._ids[last])
            self._ids[slot], self._counts[slot], self._slots[moved] = moved, self._counts[last], slot
            del self._slots[token]


def _first(values: NDArray[Any], count: int) -> Ids:
    """Indices, ascending, of the first `count`: larger values first, of equal ones the lower index."""
    bound = np.partition(values, len(values) - count)[len(values) - count]
    chosen = np.flatnonzero(values >= bound)
    if len(chosen) == count:
        return chosen
    equal = np.flatnonzero(values[chosen] == bound)  # more of them than there is room for
    return np.delete(chosen, equal[len(equal) - (len(chosen) - count) :])


def _nucleus(values: Logits, shares: Ids, top_p: float) -> Ids:
    """Step 5, as ascending indices; the order is that of the logits themselves, which the difference may make equal.

    Only the head of the distribution is sorted: it grows until it holds enough.
    """
    wanted, size = float(top_p) * float(shares.sum()), HEAD
    while True:
        head = _first(values, size) if size < len(values) else np.arange(len(values))
        head = head[np.argsort(-values[head], kind="stable")]
        running = np.cumsum(shares[head])
        if running[-1] >= wanted or size >= len(values):
            return np.sort(head[: int(np.searchsorted(running, wanted)) + 1])
        size *= 8


def _fixed_bias(options: SamplingOptions, vocab_size: int) -> tuple[Ids, Logits] | None:
    """Ids and what to add to their logits, the same at every step."""
    if max(length_of(options.logit_bias), length_of(options.banned)) > MOST_BIASES:
        raise InputError(f"expected at most {MOST_BIASES:,} ids in logit_bias and banned, got more; remove some")
    try:
        bias = {_id(token): _bias(number) for token, number in options.logit_bias.items()}
        bias |= {_id(token): -math.inf for token in options.banned}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"expected logit_bias as {{id: number}} and banned as ids, got {type(options.logit_bias).__name__} and "
            f"{type(options.banned).__name__} of something else; correct them"
        ) from error
    if outside := [i for i in bias if not 0 <= i < vocab_size]:
        raise InputError(
            f"expected ids from 0 to {vocab_size - 1} in logit_bias and banned, got {shown_number(outside[0])}; remove it"
        )
    if wrong := [value for value in bias.values() if not (abs(value) <= LARGEST_BIAS or value == -math.inf)]:
        raise InputError(f"expected biases of at most {LARGEST_BIAS:g}, or -inf, got {wrong[0]}; correct it")
    if not bias:
        return None
    return np.array(list(bias), np.int64), np.array(list(bias.values()), np.float32)


def _bias(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError("not a number")
    return float(value)


def _id(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError("not an id")
    return int(value)


def _number(name: str, value: object, low: float, high: float) -> None:
    is_number = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # type: ignore[operator]  # a number, as just asked
        raise InputError(f"expected {name} from {low:g} to {high:g}, got {shown_number(value)}; correct it")


def _integer(name: str, value: object, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < limit:
        raise InputError(f"expected {name} as an integer from 0 to {limit - 1}, got {shown_number(value)}; correct it")


def shown_number(value: object) -> str:
    """A number as it is, anything else by its type: a repr may be huge, and so may the digits of an integer."""
    if isinstance(value, (float, np.floating, np.integer)) or (isinstance(value, int) and abs(value) < 1 << 70):
        return repr(value)
    return ascii(value[:40]) if isinstance(value, str) else f"another {type(value).__name__}"
