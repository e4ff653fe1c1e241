"""Text in, text out: the outermost of the three layers ids -> events -> text.

Memory is constant: the decode stream holds at most one incomplete character, the stop matcher at most one stop string.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from .errors import InputError
from .generate import Event, Finish, Token, TokenSession, generate
from .tokenizer import DecodeStream, Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is certain: whole characters, and no part of a stop string."""

    text: str


TextEvent = Piece | Finish


class TextModel(Protocol):
    """What turns a prompt into ids."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer whose stream turns ids back."""

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt."""


class StopMatcher:
    """Lets text through except what might be the beginning of a stop string; the earliest match wins."""

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise InputError(f"expected stop as a list of non-empty strings, came {stops!r:.60}; correct it")
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that may be shown now; after a stop string (`hit`) nothing any more."""
        if self.hit:
            return ""
        text = self._held + text
        hits = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            self._held, self.hit = "", True
            return text[: min(hits)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


def stream_text(
    session: TokenSession,
    model: TextModel,
    prompt: str,
    *,
    stop: Sequence[str] = (),
    cancel: Callable[[], bool] | None = None,
    **options: Any,
) -> Iterator[TextEvent]:
    """Continue `prompt`: Pieces of text, then one Finish; `stop` strings end it ("stop") and are not shown.

    The other options are those of `generate`. The session has consumed every token whose text was produced.
    """
    matcher = StopMatcher(stop)

    def cancelled() -> bool:
        return matcher.hit or (cancel is not None and cancel())

    events = generate(session, model.encode(prompt), cancel=cancelled, **options)
    return _stream(events, model.tokenizer.stream(), matcher)


def _stream(events: Iterator[Event], decoder: DecodeStream, matcher: StopMatcher) -> Iterator[TextEvent]:
    for event in events:
        if isinstance(event, Token):
            text = matcher.push(decoder.push(event.id))
        else:
            text = matcher.push(decoder.flush()) + matcher.flush()
        if text:
            yield Piece(text)
        if isinstance(event, Finish):  # a stop string cancels the generator below, which knows no text
            yield replace(event, reason="stop") if matcher.hit else event


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
