"""Other packages while they work: what they say of themselves does not reach a user's terminal; real failures are raised."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """No warnings, and of a package's logger nothing below an error."""
    speaking = logging.getLogger(logger)
    level = speaking.level
    speaking.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        speaking.setLevel(level)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing at all on standard output and error, not even what a library in C++ writes there."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        # streams that stay open, because a library that is loaded here may keep them
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
        for descriptor in (*kept, nowhere):
            os.close(descriptor)
