"""Token ids in, events out. Knows sessions and samplers, nothing of text.

The invariant that makes sessions reusable: whatever ends a generation (its length, a stop id, cancellation, a consumer
that walks away), every token that was emitted has been fed to the session exactly once, and nothing else has.
"""

import operator
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from .errors import InputError
from .sampling import Logits, Sampler, SamplingOptions

FinishReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token; `index` counts from 0."""

    id: int
    index: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent in the prompt, and from its end to the finish (the consumer's own time included)."""

    prompt_seconds: float
    generate_seconds: float


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a generation that ran to its end."""

    reason: FinishReason
    usage: Usage
    timings: Timings

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens a second."""
        return self.usage.prompt_tokens / max(self.timings.prompt_seconds, 1e-9)

    @property
    def generate_rate(self) -> float:
        """Generated tokens a second."""
        return self.usage.generated_tokens / max(self.timings.generate_seconds, 1e-9)


Event = Token | Finish


class TokenSession(Protocol):
    """What a generator needs of a session."""

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Consume ids, return logits (V,)."""

    def step(self, token: int) -> Logits:
        """Consume one id, return logits (V,)."""


def generate(
    session: TokenSession,
    prompt: Sequence[int],
    *,
    max_tokens: int = 256,
    min_tokens: int = 0,
    stop_ids: Collection[int] = (),
    cancel: Callable[[], bool] | None = None,
    **sampling: Any,
) -> Iterator[Event]:
    """Feed `prompt`, then yield a Token for each sampled id and a Finish at the end.

    `stop_ids` end the generation ("eos") and are neither emitted nor fed; before `min_tokens` they are not sampled.
    `cancel` is asked at each token border. `sampling`: the fields of SamplingOptions. Bad options raise InputError here,
    before anything is fed.
    """
    for name, value in (("max_tokens", max_tokens), ("min_tokens", min_tokens)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise InputError(f"expected {name} as an integer of 0 or more, came {value!r}; correct it")
    try:
        ids = frozenset(operator.index(token) for token in stop_ids)
    except TypeError as error:
        raise InputError(f"expected stop_ids as a collection of ids, came {stop_ids!r:.60}; correct it") from error
    options = SamplingOptions.from_mapping(sampling)
    return _generate(session, prompt, int(max_tokens), int(min_tokens), ids, cancel or _never, options)


def _generate(
    session: TokenSession,
    prompt: Sequence[int],
    max_tokens: int,
    min_tokens: int,
    stop_ids: frozenset[int],
    cancel: Callable[[], bool],
    options: SamplingOptions,
) -> Iterator[Event]:
    begin = time.perf_counter()
    logits = session.prefill(prompt)
    start = time.perf_counter()
    sampler = Sampler(options, len(logits))
    count, reason = 0, "length"
    while count < max_tokens:
        if cancel():
            reason = "cancelled"
            break
        token = sampler(_without(logits, stop_ids) if count < min_tokens else logits)
        if token in stop_ids:
            reason = "eos"
            break
        try:
            yield Token(token, count)
        finally:  # also when the consumer closes the generator: the token has been seen, so it is fed
            logits = session.step(token)
        count += 1
    timings = Timings(start - begin, time.perf_counter() - start)
    yield Finish(reason, Usage(len(prompt), count), timings)  # type: ignore[arg-type]  # one of the literals above


def _without(logits: Logits, ids: frozenset[int]) -> Logits:
    """Logits with some ids impossible."""
    logits = logits.copy()
    logits[[token for token in ids if 0 <= token < len(logits)]] = -float("inf")
    return logits


def _never() -> bool:
    return False
