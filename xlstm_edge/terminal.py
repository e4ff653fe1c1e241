"""Standard output and standard error as they really are: full, closed, of another encoding, or a pipe nobody reads.

Everything the commands print goes through here, and so does everything they raise: one sentence on standard error and an
exit code. 0 done; 1 a check failed; 2 bad input or usage; 70 a fault of ours; 130 interrupted.
"""

import contextlib
import io
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from xlstm_edge_runtime import __version__
from xlstm_edge_runtime.errors import InputError, VerificationError, XlstmEdgeError, printable

from .streams import INTERRUPTED, leave_at_once
from .usage import is_usage_error, usage_sentence

FAILED_CHECK, BAD_INPUT, FAULT = 1, 2, 70
LONGEST_MESSAGE = 1000
UNPRINTABLE = re.compile(r"[^ -~]")
DIM, NOT_DIM = "\x1b[2m", "\x1b[22m"
SHOW_TRACEBACK = "XLSTM_EDGE_TRACEBACK"


class ReaderGoneError(Exception):
    """Nobody reads our output any more, as after `| head`: no error, and nothing more to say."""


class StandardOutput(io.TextIOBase):
    """Standard output as it is now, its failures ours: InputError if it takes no more, ReaderGoneError if nobody reads."""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute there, which a subclass may compute
        """That of standard output."""
        return getattr(sys.stdout, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether a person looks."""
        return sys.stdout.isatty()

    def fileno(self) -> int:
        """Its descriptor, by which the width of a terminal is found."""
        return sys.stdout.fileno()

    def write(self, text: str) -> int:
        """Write all of it."""
        with _told():
            sys.stdout.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what is in the buffer."""
        with _told():
            sys.stdout.flush()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        _discard_output()
        raise ReaderGoneError from error
    except (OSError, ValueError) as error:  # ValueError: closed by somebody else in this process
        _discard_output()
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"expected to write to standard output, got {reason}; redirect it to a place with room"
        ) from error


# What files say of themselves is shown as it is: no markup, no highlighting, no emoji names.
standard_output: Any = StandardOutput()
out = Console(file=standard_output, markup=False, highlight=False, emoji=False)
err = Console(stderr=True, markup=False, highlight=False, emoji=False)


def write_out(text: str) -> None:
    """Print to standard output, now."""
    standard_output.write(text)
    standard_output.flush()


def write_foreign(text: str) -> None:
    """Print generated text: as it is into files and pipes, without what a terminal would obey where a person looks."""
    if sys.stdout.isatty():
        text = "".join(c if c in "\n\t" else printable(c) for c in text)
    write_out(text)


def write_prompt(text: str) -> None:
    """Print a prompt before what continues it: dim where a terminal shows colours, so that the two are told apart."""
    styled = out.is_terminal and not out.no_color and not out.is_dumb_terminal
    if styled:
        write_out(DIM)
    write_foreign(text)
    if styled:
        write_out(NOT_DIM)


def show(renderable: Any) -> None:
    """Print a table or a line."""
    out.print(renderable)


def note(text: str) -> None:
    """A line on standard error, beside the results."""
    with contextlib.suppress(OSError):
        err.print(plain(text), soft_wrap=True)


def plain(text: object) -> Text:
    """Foreign text for a table: its lines, each without control characters or markup."""
    return Text("\n".join(printable(line) for line in str(text).split("\n")))


def print_json(value: Any) -> None:
    """JSON, readable where the encoding of standard output allows it."""
    text = UNPRINTABLE.sub(_escaped, json.dumps(value, indent=2, ensure_ascii=False))
    try:
        text.encode(standard_output.encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    write_out(text + "\n")


def _escaped(found: re.Match[str]) -> str:
    """What a terminal might obey, in JSON's own way of writing it."""
    character = found.group()
    return character if character == "\n" or character.isprintable() else json.dumps(character)[1:-1]


@contextlib.contextmanager
def instant_interrupt() -> Iterator[None]:
    """While nothing is open or half-written (as during imports), let Ctrl-C end the process there and then.

    An exception would surface in the middle of somebody's import, which may turn it into another error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, leave_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; its exit code, with every failure told in one sentence."""
    err.quiet = False
    try:
        result = command()
        write_out("")  # what is still in the buffer
    except (ReaderGoneError, BrokenPipeError):  # the latter where help is printed, which does not go through here
        _discard_output()
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:  # the last place that can still say it in one sentence
        if type(error).__name__ == "NoArgsIsHelpError":  # typer printed the help, which says enough
            return BAD_INPUT
        return _failed(error)
    if result == INTERRUPTED:  # typer turns Ctrl-C into this code without a word
        sys.stderr.write("error: interrupted\n")
    return result if isinstance(result, int) else 0


def _failed(error: BaseException) -> int:
    code, message = _explain(error)
    if code == FAULT and os.environ.get(SHOW_TRACEBACK):
        traceback.print_exception(error)
    message = printable(message)[:LONGEST_MESSAGE]
    with contextlib.suppress(ReaderGoneError, InputError):
        if "--json" in sys.argv:
            print_json({"ok": False, "error": message, "exit_code": code})
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
    return code


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence of a failure."""
    if isinstance(error, (XlstmEdgeError, KeyboardInterrupt)):
        codes = {VerificationError: FAILED_CHECK, KeyboardInterrupt: INTERRUPTED}
        return codes.get(type(error), BAD_INPUT), str(error) or "interrupted"
    if isinstance(error, MemoryError):
        return BAD_INPUT, "expected enough memory for this, got none; close other programs or use a smaller model"
    if isinstance(error, OSError) and error.filename is not None:  # a file that no caller expected to fail
        return BAD_INPUT, f"expected to use {error.filename}, got {error.strerror}; check the path and its permissions"
    if isinstance(error, OSError) and error.errno is not None:  # help on an output that takes no more
        _discard_output()
        return BAD_INPUT, f"expected to write all of it, got {error.strerror}; redirect it to a place with room"
    if is_usage_error(error):
        return BAD_INPUT, usage_sentence(error)
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return FAULT, (
        f"expected no such failure, got {reason}; this is a fault of xlstm-edge {__version__}: please report it with what "
        f"the same command prints under {SHOW_TRACEBACK}=1"
    )


def _discard_output() -> None:
    """Let the interpreter's own flush at the end go nowhere, where it can complain to nobody."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        with contextlib.suppress(OSError, ValueError):  # another number, since a library must not print to ours
            os.dup2(devnull, standard_output.fileno())
        os.close(devnull)
