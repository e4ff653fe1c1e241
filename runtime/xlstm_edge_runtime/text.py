"""Text in, text out: the outermost of the three layers ids -> events -> text.

Memory is constant: the decode stream holds a bounded number of tokens, the stop matcher at most one stop string.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from .decode import DecodeStream
from .errors import InputError
from .generate import Event, Finish, OnPrompt, Token, TokenSession, check_functions, generate
from .options import GenerationOptions, ResolvedOptions
from .tokenizer import Tokenizer, encode_text


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is certain: whole characters, and no part of a stop string."""

    text: str


TextEvent = Piece | Finish


class TextModel(Protocol):
    """What turns a prompt into ids, and options into checked ones."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer whose stream turns ids back."""

    def encode(self, prompt: str, *, start: bool = True) -> list[int]:
        """Ids of a prompt at the start of a stream, or in the middle of one."""

    def resolve(self, options: GenerationOptions) -> ResolvedOptions:
        """Given options over the model's own."""


class TextSession(TokenSession, Protocol):
    """A session that knows its model."""

    @property
    def model(self) -> TextModel:
        """The model."""

    @property
    def tokens(self) -> int:
        """Number of tokens read."""


class StopMatcher:
    """Lets text through except what might be the beginning of a stop string; the match that begins first wins.

    The result does not depend on how the text is cut: it goes through character by character. Where a stop string is
    complete but a longer one began before it, the matcher waits until that one is complete or has failed. Text that is
    pushed with `visible` False takes part in matching and is not shown.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not isinstance(stops, Sequence):
            raise InputError(f"expected stop as a list of strings, got {type(stops).__name__}; correct it")
        if wrong := [stop for stop in stops if not isinstance(stop, str) or not stop]:
            got = "an empty string" if wrong[0] == "" else type(wrong[0]).__name__
            raise InputError(f"expected stop as a list of non-empty strings, got {got}; correct it")
        if any("\ud800" <= character <= "\udfff" for stop in stops for character in stop):
            raise InputError("expected stop strings in UTF-8, got bytes that are none: no text has them; correct them")
        self._stops = tuple(_Automaton(stop) for stop in dict.fromkeys(stops))
        self._held: deque[str] = deque()  # one entry a character; empty for an invisible one
        self._first = self._end = 0  # positions in the text: of the first held character, and behind the last one
        self._begin: int | None = None  # where the match that won so far begins
        self.hit = False

    @property
    def waits(self) -> bool:
        """Whether there is anything to match."""
        return bool(self._stops)

    def push(self, text: str, *, visible: bool = True) -> str:
        """The text that may be shown now; after a stop string (`hit`) nothing any more."""
        if not self._stops:
            return text if visible else ""
        shown: list[str] = []
        for character in text:
            if self.hit:
                break
            self._held.append(character if visible else "")
            self._end += 1
            for stop in self._stops:
                if stop.push(character):
                    begin = self._end - stop.length
                    self._begin = begin if self._begin is None else min(begin, self._begin)
            undecided = min((self._end - stop.matched for stop in self._stops if stop.matched), default=self._end)
            if self._begin is not None and self._begin <= undecided:
                shown += self._release(self._begin)
                self._stop()
            else:
                shown += self._release(undecided)
        return "".join(shown)

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        shown = "".join(self._release(self._end if self._begin is None else self._begin))
        if self._begin is not None:
            self._stop()
        return shown

    def _stop(self) -> None:
        self._held.clear()
        self._first, self._begin, self.hit = self._end, None, True

    def _release(self, end: int) -> list[str]:
        """Held characters before this position."""
        count = max(0, end - self._first)
        self._first += count
        return [self._held.popleft() for _ in range(count)]


class _Automaton:
    """How much of a stop string the text ends with (Knuth, Morris, Pratt): constant work a character."""

    def __init__(self, stop: str) -> None:
        self._stop, self.length, self.matched = stop, len(stop), 0
        self._shorter = [0] * len(stop)  # of each beginning: its longest proper end that is a beginning too
        size = 0
        for at in range(1, len(stop)):
            while size and stop[at] != stop[size]:
                size = self._shorter[size - 1]
            size += stop[at] == stop[size]
            self._shorter[at] = size

    def push(self, character: str) -> bool:
        """Whether the stop string is complete with this character; `matched` is then the next beginning's length."""
        while self.matched and self._stop[self.matched] != character:
            self.matched = self._shorter[self.matched - 1]
        self.matched += self._stop[self.matched] == character
        if self.matched < self.length:
            return False
        self.matched = self._shorter[-1]
        return True


def stream_text(
    session: TextSession,
    text: str,
    *,
    stop: Sequence[str] = (),
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    stop_ids: Collection[int] | None = None,
    ignore_eos: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    penalty_window: int | None = None,
    logit_bias: Mapping[int, float] | None = None,
    banned: Collection[int] | None = None,
    cancel: Callable[[], bool] | None = None,
    on_prompt: OnPrompt | None = None,
    tokenizer: Tokenizer | None = None,
) -> Iterator[TextEvent]:
    """Read `text` and continue it: Pieces of text, then one Finish; `stop` strings end it ("stop") and are not shown.

    In a session that has read tokens before, nothing is put in front of the text: no second bos token. A stop string that
    is one token of the tokenizer (as <|im_end|>) is that token's id too; special tokens take part in matching and are never
    shown. Pieces follow the prompt as its ids decode, so that prompt + pieces is the decoded whole. None takes the bundle's
    default; stop_ids come on top of the bundle's own, which `ignore_eos` leaves out. See `generate.generate` for what the
    session has read at every moment. `tokenizer` stands in for the bundle's. Everything is checked before anything is fed.
    """
    options = GenerationOptions(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_ids=stop_ids,
        ignore_eos=ignore_eos,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        penalty_window=penalty_window,
        logit_bias=logit_bias,
        banned=banned,
    )
    return start_stream(session, text, options, stop=stop, cancel=cancel, on_prompt=on_prompt, tokenizer=tokenizer)


def start_stream(
    session: TextSession,
    text: str,
    options: GenerationOptions,
    *,
    stop: Sequence[str] = (),
    cancel: Callable[[], bool] | None = None,
    on_prompt: OnPrompt | None = None,
    tokenizer: Tokenizer | None = None,
) -> Iterator[TextEvent]:
    """`stream_text`, its options as one value."""
    check_functions(cancel=cancel, on_prompt=on_prompt)
    matcher, vocab_size, start = StopMatcher(stop), session.vocab_size, session.tokens == 0
    if tokenizer is None:
        tokenizer, ids = session.model.tokenizer, session.model.encode(text, start=start)
    else:
        ids = encode_text(tokenizer, text, vocab_size, start=start)
    added = {tokenizer.added[word]: word for word in stop if word in tokenizer.added}
    tokens = {token: word for token, word in added.items() if token < vocab_size}  # no others can come
    resolved = session.model.resolve(options)
    resolved = replace(resolved, stop_ids=resolved.stop_ids | tokens.keys())
    events = generate(
        session, ids, resolved, cancel=lambda: matcher.hit or (cancel is not None and cancel()), on_prompt=on_prompt
    )
    return _stream(events, tokenizer, tokenizer.stream(ids), matcher, tokens)


def _stream(
    events: Iterator[Event],
    tokenizer: Tokenizer,
    decoder: DecodeStream,
    matcher: StopMatcher,
    tokens: Mapping[int, str],
) -> Iterator[TextEvent]:
    for event in events:
        if isinstance(event, Token):
            text = matcher.push(decoder.push(event.id))
            if special := tokenizer.special_text(event.id):
                before = decoder.settle() if matcher.waits else ""
                text += matcher.push(before) + matcher.push(special, visible=False)
        else:
            text = matcher.push(decoder.flush())
            if event.stop_id is not None:  # a longer stop string may end with this one
                text += matcher.push(tokens.get(event.stop_id, ""), visible=False)
            text += matcher.flush()
        if text:
            yield Piece(text)
        if isinstance(event, Finish):  # a stop string cancels the generator below, which knows no text
            yield replace(event, reason="stop") if matcher.hit or event.stop_id in tokens else event
