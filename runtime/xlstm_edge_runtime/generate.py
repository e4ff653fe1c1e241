"""Token ids in, events out. Knows sessions and samplers, nothing of text.

The invariant that makes sessions reusable: a token is fed to the session *before* it is yielded. Whatever ends a
generation (its length, a stop id, cancellation, a consumer that walks away or takes a snapshot), the session has read the
prompt and every token that was seen, each exactly once, and nothing else.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .options import ResolvedOptions
from .sampling import Logits, Sampler

FinishReason = Literal["eos", "stop", "length", "cancelled"]
OnPrompt = Callable[[int, int], object]


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
    """The last event of a generation that ran to its end; `stop_id` is the id that ended it, which was not fed."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_id: int | None = None

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

    @property
    def vocab_size(self) -> int:
        """Number of ids; InputError if the model takes no ids."""

    @property
    def chunk(self) -> int:
        """Most ids of one `advance`."""

    def check_ids(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """One id or more as (T,), all inside the vocabulary; InputError otherwise."""

    def advance(self, tokens: NDArray[np.int64] | int) -> Logits:
        """Consume 1 to `chunk` checked ids; the logits (V,) after the last hold until the next call but one."""


def check_functions(**functions: object) -> None:
    """InputError for what is neither None nor a function, by the option's name."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise InputError(f"expected {name} as a function, got {type(function).__name__}; correct it")


def generate(
    session: TokenSession,
    prompt: Sequence[int],
    options: ResolvedOptions,
    *,
    cancel: Callable[[], bool] | None = None,
    on_prompt: OnPrompt | None = None,
) -> Iterator[Event]:
    """Feed `prompt`, then yield a Token for each sampled id and a Finish at the end.

    Stop ids end the generation ("eos") and are neither emitted nor fed; before min_tokens they are not sampled. `cancel`
    is asked before each chunk of the prompt and each token. `on_prompt(done, total)` is told at the start and after each chunk.
    Everything is checked here, at the call: a bad prompt or option raises InputError and nothing has been fed. A prompt
    that is cut short (cancel, an exception out of on_prompt, Ctrl-C) leaves the session after a whole number of chunks:
    `Finish.usage.prompt_tokens` and `session.tokens` say how many ids it has read.
    """
    check_functions(cancel=cancel, on_prompt=on_prompt)
    vocab_size, ids = session.vocab_size, session.check_ids(prompt)
    late = options.stop_ids if options.min_tokens else ()
    sampler = Sampler(options.sampling, vocab_size, prompt=ids[-options.sampling.penalty_window :].tolist(), late=late)
    return _generate(session, ids, options, sampler, cancel or _never, on_prompt or _silent)


def _generate(
    session: TokenSession,
    prompt: NDArray[np.int64],
    options: ResolvedOptions,
    sampler: Sampler,
    cancel: Callable[[], bool],
    on_prompt: OnPrompt,
) -> Iterator[Event]:
    begin = time.perf_counter()
    count, stop_id, logits, done = 0, None, None, 0
    on_prompt(0, len(prompt))
    while done < len(prompt) and not cancel():
        part = prompt[done : done + session.chunk]
        logits = session.advance(part)
        done += len(part)
        on_prompt(done, len(prompt))
    start = time.perf_counter()
    reason: FinishReason = "length"
    if done < len(prompt) or logits is None:
        reason = "cancelled"
    while reason == "length" and count < options.max_tokens:
        if cancel():
            reason = "cancelled"
            break
        assert logits is not None  # a prompt has one id or more
        token = sampler(logits, hold_late=count < options.min_tokens)
        if token in options.stop_ids:
            reason, stop_id = "eos", token
            break
        logits = session.advance(token)
        count += 1
        yield Token(token, count - 1)
    timings = Timings(start - begin, time.perf_counter() - start)
    yield Finish(reason, Usage(done, count), timings, stop_id)


def _never() -> bool:
    return False


def _silent(_done: int, _total: int) -> None:
    """Nobody asked."""
