"""Make the standard streams usable before anything looks at them, and leave at once on Ctrl-C; needs nothing but Python."""

import contextlib
import errno
import io
import os
import sys
from types import FrameType

INTERRUPTED = 130
SHOW_CURSOR = "\x1b[?25h"


class ClosedOutput(io.TextIOBase):
    """Stands in for a standard output that was closed before we started."""

    def write(self, _text: str) -> int:
        """Fail as a closed descriptor does."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def prepare_streams() -> None:
    """Make every standard stream usable, and let none of our files get the number of a closed one."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin if sys.stdin is not None else io.TextIOWrapper(io.BytesIO())
    sys.stdout = sys.stdout if sys.stdout is not None else ClosedOutput()
    sys.stderr = sys.stderr if sys.stderr is not None else io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows its code
            stream.reconfigure(errors="backslashreplace")


def keep_output_ours() -> None:
    """From now on, what libraries print to standard output by themselves goes to standard error.

    A document on standard output stays whole. Where Python's output is no file, as in a test, nothing changes.
    """
    if not isinstance(sys.stdout, io.TextIOWrapper) or sys.stdout is not sys.__stdout__:
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        ours = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(ours, "wb")),
            encoding=sys.stdout.encoding,
            errors="backslashreplace",
            line_buffering=os.isatty(ours),
        )


def leave_at_once(_signal: int, _frame: FrameType | None) -> None:
    """Say so and end, without unwinding; a progress bar may have hidden the cursor."""
    text = "error: interrupted\n"
    with contextlib.suppress(OSError, ValueError):
        os.write(2, (SHOW_CURSOR + text if os.isatty(2) else text).encode())
    os._exit(INTERRUPTED)
