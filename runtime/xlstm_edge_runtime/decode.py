"""Ids -> text as they stream: the pieces put together are what decoding all ids at once gives.

A stream returns text only once it is certain: half of a UTF-8 character waits for the other half, a token whose space
depends on its neighbour for the neighbour. It never raises, whatever the ids, holds a bounded number of tokens and takes
the same time for each. Two ways:

* `ByteStream`, where tokens are bytes (byte tokenizers, ByteLevel decoders): an incremental UTF-8 decoder, exact for all
  ids; invalid bytes are U+FFFD.
* `WindowStream`, for every other decoder: the last tokens are decoded by the library together with the new one, and what
  is new at the end is the piece. Decoders look at most at a token's neighbours, and at the first token of a text; so
  the window begins with tokens whose text was already given. In byte-fallback vocabularies one wrong byte makes U+FFFD of
  each byte of its run, so a run is held back until it ends, or has `LONGEST_RUN` tokens: a longer one is cut at a whole
  character and its parts are decoded each for itself.
"""

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from .tokenizer_limits import replaced_string, steps

CONTEXT = 16  # tokens of known text in front of what is new
LONGEST_RUN = 1024
PRIMED = 4 * LONGEST_RUN  # ids of a prompt that are looked at
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
LONGEST_MATCH = 64  # characters that a regular expression is taken to match at most
UNFINISHED = 3  # most bytes of a character that is not complete
UNKNOWN = "\ufffd"


class DecodeStream(Protocol):
    """Ids in, text out; made by `Tokenizer.stream`."""

    def push(self, token: int) -> str:
        """The text that this token makes certain, possibly none."""

    def settle(self) -> str:
        """What is held back and whole: for text whose order matters now, as before a special token that may stop it."""

    def flush(self) -> str:
        """What is still held back; call once, at the end."""


def reach(decoder: Mapping[str, Any]) -> int:
    """How many characters at a text's end a decoder of a tokenizer.json may change when more tokens come.

    `Replace` does so where it works on the whole text: behind a Fuse, or a ByteLevel in a sequence.
    """
    whole, most = False, 0
    for part in steps(decoder):
        if part.get("type") == "Replace" and whole:
            string = replaced_string(part)
            most += len(string) - 1 if string else LONGEST_MATCH
        whole = whole or part.get("type") in ("Fuse", "ByteLevel")
    return min(most, LONGEST_MATCH)


class ByteStream:
    """Each token is some bytes of UTF-8; `prompt` ids are read first, and their text is not given again."""

    def __init__(self, bytes_of: Callable[[int], bytes], prompt: Sequence[int] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._bytes_of = bytes_of
        for token in prompt[-PRIMED:]:
            self.push(token)

    def push(self, token: int) -> str:
        """Text of the characters that are complete now."""
        return self._decoder.decode(self._bytes_of(token))

    def settle(self) -> str:
        """Nothing: what is whole was given."""
        return ""

    def flush(self) -> str:
        """An incomplete character as U+FFFD."""
        return self._decoder.decode(b"", final=True)


class WindowStream:
    """The library's decode, over a window of the last tokens.

    `text_of` gives a token's own text, None for one that is left out (special, or unknown to the tokenizer); `decode` is
    the library's, and must not raise.
    """

    def __init__(
        self,
        text_of: Callable[[int], str | None],
        decode: Callable[[Sequence[int]], str],
        prompt: Sequence[int] = (),
        *,
        byte_fallback: bool = False,
        reach: int = 0,
    ) -> None:
        self._text_of, self._decode, self._byte_fallback = text_of, decode, byte_fallback
        self._reach = reach  # characters at the end that later tokens may change
        self._window: list[int] = []
        self._shown = 0  # characters of the window's text that were given
        self._run: list[int] = []  # tokens of an unfinished run of bytes, behind the window
        self._cut = False  # the window ends in bytes that are not of this run
        self._close([token for token in prompt[-PRIMED:] if text_of(token) is not None])

    def push(self, token: int) -> str:
        """Text up to what the next token may change."""
        text = self._text_of(token)
        if text is None:
            return ""
        if self._byte_fallback and BYTE.fullmatch(text):
            self._run.append(token)
            return self._cut_run() if len(self._run) >= LONGEST_RUN else ""
        piece = self._end_run()
        self._window.append(token)
        return piece + self._show(final=False)

    def settle(self) -> str:
        """What is held and whole; wrong bytes, or text to merge with, that come later are then for themselves."""
        text = self._cut_run(right=True) if self._run else ""
        return text + self._show(final=True) if self._reach else text

    def flush(self) -> str:
        """All that is left."""
        return self._end_run() + self._show(final=True)

    def _show(self, *, final: bool) -> str:
        text = self._decode(self._window)
        certain = max(self._shown, len(text) - (0 if final else max(self._reach, text.endswith(UNKNOWN))))
        piece = text[self._shown : certain]
        self._shown = certain
        return piece + self._shorten(text)

    def _shorten(self, text: str) -> str:
        """Keep the window's last tokens; what is held is given if tokens without text have pushed it out."""
        keep = CONTEXT + self._reach
        if len(self._window) <= 2 * keep:
            return ""
        held = text[self._shown :]
        del self._window[:-keep]
        rest = len(self._decode(self._window))
        self._shown = max(0, rest - len(held))
        return held if len(held) > rest else ""

    def _end_run(self) -> str:
        """The run behind the window becomes part of it; where it was cut, its text is given here."""
        run, self._run = self._run, []
        if not self._cut:
            self._window += run
            return ""
        self._cut = False
        return self._text_of_run(run)

    def _cut_run(self, *, right: bool = False) -> str:
        """Whole characters of a run that is too long, or of one that must be `right`; an unfinished one stays."""
        run = self._run
        for left in range(min(UNFINISHED, len(run)) + 1):
            text = self._text_of_run(run[: len(run) - left])
            if UNKNOWN not in text:
                break
        else:
            if right:
                return ""
            left, text = 0, self._text_of_run(run)
        held = "" if self._cut else self._show(final=True)
        self._close(run[: len(run) - left])
        self._run = run[len(run) - left :]
        return held + text

    def _close(self, tokens: Sequence[int]) -> None:
        """Tokens whose text has been given; what comes next is not one run with them."""
        if tokens:
            self._window = [*self._window, *tokens][-CONTEXT:]
            self._shown = len(self._decode(self._window))
            self._cut = self._byte_fallback and BYTE.fullmatch(self._text_of(tokens[-1]) or "") is not None

    def _text_of_run(self, run: Sequence[int]) -> str:
        """As the library's ByteFallback: UTF-8, or U+FFFD for each byte if any is wrong."""
        data = bytes(int((self._text_of(token) or "")[3:5], 16) for token in run)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return UNKNOWN * len(data)
