"""`run`: a prompt from somewhere, streamed text to somewhere, statistics at the end.

A prompt is read whole, up to `LARGEST_PROMPT` bytes, because where a text may be cut without changing its ids depends on
the tokenizer; its ids are fed in pieces, with progress.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from xlstm_edge_runtime import Finish, GenerationOptions, Model, Piece, load
from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.text import start_stream

from .memory import peak_memory

LARGEST_PROMPT = 16 << 20
PART = 1 << 20
LONGEST_ID = 20  # digits


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What to run; `options` go over the bundle's own defaults."""

    bundle: Path
    prompt: str
    options: GenerationOptions = field(default_factory=GenerationOptions)
    stop: Sequence[str] = ()
    threads: int | None = None
    provider: str = "cpu"
    provider_options: Mapping[str, str | int | bool] | None = None
    allow_fallback: bool = False
    echo: bool = False


class IdText:
    """Stands in for the tokenizer of a bundle that has none: the text is token ids, spaced."""

    begins_texts = False

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @property
    def added(self) -> Mapping[str, int]:
        """None."""
        return {}

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids between spaces or commas."""
        del special  # there are none
        parts = re.split(r"[\s,]+", text.strip())
        if not all(part.isascii() and part.isdecimal() and len(part) < LONGEST_ID for part in parts):
            raise InputError(
                f"expected token ids like '5 17 3' (this bundle has no tokenizer), got {text[:40]!a}; pass ids"
            )
        return [int(part) for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids, spaced."""
        return " ".join(map(str, ids))

    def special_text(self, token: int) -> str:
        """Nothing."""
        del token
        return ""

    def stream(self, prompt: Sequence[int] = ()) -> "IdText":
        """Itself: nothing is held back."""
        del prompt
        return self

    def push(self, token: int) -> str:
        """One id."""
        return f"{token} "

    def settle(self) -> str:
        """Nothing."""
        return ""

    def flush(self) -> str:
        """Nothing."""
        return ""


def read_prompt(prompt: str | None, file: str | None) -> str:
    """The prompt from the argument, a file, or standard input; InputError if there is none, or two."""
    if prompt is not None and file is not None:
        raise InputError("expected a prompt or --file, got both; pass one of them")
    if file is not None and file != "-":
        return _not_empty(read_text(Path(file), "a prompt"))
    if prompt is not None and prompt != "-":
        return _not_empty(prompt)
    if prompt is None and file is None and sys.stdin.isatty():
        raise InputError("expected a prompt, got none; pass it as an argument, with --file, or on standard input")
    return _not_empty(_decode(_read(sys.stdin.buffer, "standard input"), "standard input"))


def run_bundle(
    request: RunRequest,
    write: Callable[[str], Any] | None,
    progress: Progress = no_progress,
    *,
    write_prompt: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Stream to `write` if given; returns text, finish reason, usage, speed and memory.

    An echoed prompt goes to `write_prompt`, or where the rest goes.

    `progress("prompt", done, total)` is told of prompts longer than one call of the graph.
    """
    model = _load(request)
    if not model.takes_ids:
        raise InputError(
            "expected a bundle that takes tokens, got a stack of float vectors; use session.prefill from Python"
        )
    if (last := max(request.options.stop_ids or (0,))) >= model.output_width:
        raise InputError(
            f"expected --stop-id below {model.output_width}, got {last}; pass ids of this bundle's vocabulary"
        )
    texts: list[str] = []
    finish: Finish | None = None
    session = model.session()

    def on_prompt(done: int, total: int) -> None:
        if total > model.chunk:
            progress("prompt", done, total)

    tokenizer = IdText(model.output_width) if model.manifest.tokenizer.kind == "none" else None
    events = start_stream(
        session, request.prompt, request.options, stop=request.stop, tokenizer=tokenizer, on_prompt=on_prompt
    )
    if write is not None and request.echo:
        (write_prompt or write)(request.prompt + (" " if isinstance(tokenizer, IdText) else ""))
    for event in events:
        if isinstance(event, Piece):
            if write is None:
                texts.append(event.text)
            else:
                write(event.text)
        else:
            finish = event
    if write is not None:
        write("\n")
    assert finish is not None  # a generation that nobody closes ends with one
    return _summary(finish, "".join(texts), session.nbytes)


def _load(request: RunRequest) -> Model:
    return load(
        request.bundle,
        threads=request.threads,
        provider=request.provider,
        provider_options=request.provider_options,
        allow_fallback=request.allow_fallback,
    )


def _summary(finish: Finish, text: str, state_bytes: int) -> dict[str, Any]:
    return {
        "text": text,
        "finish_reason": finish.reason,
        "usage": {
            "prompt_tokens": finish.usage.prompt_tokens,
            "generated_tokens": finish.usage.generated_tokens,
        },
        "speed": {
            "prompt_seconds": finish.timings.prompt_seconds,
            "generate_seconds": finish.timings.generate_seconds,
            "prompt_tokens_per_second": finish.prompt_rate,
            "generated_tokens_per_second": finish.generate_rate,
        },
        "state_bytes": state_bytes,
        "peak_memory_bytes": peak_memory(),
    }


def read_text(path: Path, what: str = "a text", limit: int | None = None) -> str:
    """A UTF-8 file, whole; InputError for what is no regular file or larger than `limit` bytes (LARGEST_PROMPT)."""
    where = f"{str(path)[:200]!a}"
    try:
        if path.exists() and not path.is_file():  # a pipe that nobody writes to would make `open` wait for ever
            raise InputError(f"expected {what} in a file at {where}, got no regular file; pass another")
        with path.open("rb") as file:
            return _decode(_read(file, str(path), limit), str(path))
    except OSError as error:
        raise InputError(f"expected {what} in a file at {where}, got {error.strerror}; check the path") from error
    except ValueError as error:  # a zero byte
        if isinstance(error, InputError):
            raise
        raise InputError(f"expected {what} in a file, got {where}, which is no path; check the path") from error


def _read(file: BinaryIO, where: str, limit: int | None = None) -> bytes:
    """All of it, bounded: a source may have no end."""
    parts: list[bytes] = []
    size, limit = 0, LARGEST_PROMPT if limit is None else limit
    while part := file.read(PART):
        size += len(part)
        if size > limit:
            raise InputError(
                f"expected at most {limit:,} bytes of text, got more in {where[:200]!a}; shorten it, "
                "or feed it to a session from Python"
            )
        parts.append(part)
    return b"".join(parts)


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 text in {where[:200]!a}, got other bytes; convert it") from error


def _not_empty(prompt: str) -> str:
    if not prompt:
        raise InputError("expected a prompt, got an empty one; write at least one character")
    return prompt
