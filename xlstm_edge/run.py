"""`run`: a prompt from somewhere, streamed text to somewhere, statistics at the end."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm_edge_runtime import Finish, Model, Piece, load, stream_text
from xlstm_edge_runtime.errors import InputError

from .report import peak_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What to run; `options` go to `generate` over the bundle's own defaults."""

    bundle: Path
    prompt: str
    options: dict[str, Any]
    stop: Sequence[str] = ()
    threads: int | None = None


class IdText:
    """Stands in for the tokenizer of a bundle that has none: the text is token ids, spaced."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.tokenizer = self

    def encode(self, text: str) -> list[int]:
        """Ids between spaces or commas."""
        parts = re.split(r"[\s,]+", text.strip())
        if not all(part.isdecimal() for part in parts):
            raise InputError(
                f"expected token ids like '5 17 3' (this bundle has no tokenizer), came {text!r:.40}; pass ids"
            )
        return [int(part) for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids, spaced."""
        return " ".join(map(str, ids))

    def stream(self) -> "IdText":
        """Itself: nothing is held back."""
        return self

    def push(self, token: int) -> str:
        """One id."""
        return f"{token} "

    def flush(self) -> str:
        """Nothing."""
        return ""


def read_prompt(prompt: str | None, file: str | None) -> str:
    """The prompt from the argument, a file, or standard input; InputError if there is none, or two."""
    if prompt is not None and file is not None:
        raise InputError("expected a prompt or --file, came both; pass one of them")
    if file is not None and file != "-":
        return _read_file(Path(file))
    if prompt is not None and prompt != "-":
        return _not_empty(prompt)
    if prompt is None and file is None and sys.stdin.isatty():
        raise InputError("expected a prompt, came none; pass it as an argument, with --file, or on standard input")
    return _not_empty(_decode(sys.stdin.buffer.read(), "standard input"))


def run_bundle(request: RunRequest, write: Callable[[str], Any] | None) -> dict[str, Any]:
    """Stream to `write` if given; returns text, finish reason, usage, speed and memory."""
    model = load(request.bundle, threads=request.threads)
    if not model.takes_ids:
        raise InputError(
            "expected a bundle that takes tokens, came a stack of float vectors; use session.prefill from Python"
        )
    texts: list[str] = []
    finish: Finish | None = None
    session = model.session()
    source: Model | IdText = IdText(model.output_width) if model.manifest.tokenizer.kind == "none" else model
    for event in stream_text(
        session, source, request.prompt, stop=request.stop, **model.generation_options(request.options)
    ):
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


def _read_file(path: Path) -> str:
    try:
        return _not_empty(_decode(path.read_bytes(), str(path)))
    except OSError as error:
        raise InputError(f"expected a prompt file at {path}, came {error.strerror}; check the path") from error


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 text in {where}, came other bytes; convert it") from error


def _not_empty(prompt: str) -> str:
    if not prompt:
        raise InputError("expected a prompt, came an empty one; write at least one character")
    return prompt
