"""Every error this project raises on purpose, and nothing else.

    XlstmEdgeError
    ├── InputError         an argument is wrong: a token id, a shape, a sampling option, a path
    ├── CheckpointError    a checkpoint cannot be read: missing files, unknown family, missing or odd tensors
    ├── BundleError        a bundle cannot be used: not a bundle, another schema, damaged or missing files
    ├── StateError         a snapshot does not belong to this model, or is damaged
    ├── VerificationError  a check ran and failed: the numbers differ from what they must be
    └── DependencyError    an optional package is needed for this call

A message says what was expected, what was got and what to do, in one sentence. What a file or a caller brought is shown in it
cut and escaped (`shown`), so that no message is endless and none controls a terminal.
"""

LONGEST_SHOWN, LONGEST_PATH_SHOWN, LONGEST_MESSAGE = 60, 240, 1000


class XlstmEdgeError(Exception):
    """Root of the tree: catch this to catch all. Its message is one printable line, whatever it was made of."""

    def __init__(self, message: str = "") -> None:
        text = printable(message)
        super().__init__(text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}...")


class InputError(XlstmEdgeError, ValueError):
    """An argument is wrong."""


class CheckpointError(XlstmEdgeError):
    """A checkpoint cannot be read."""


class BundleError(XlstmEdgeError):
    """A bundle cannot be used."""


class StateError(XlstmEdgeError):
    """A snapshot does not fit this model."""


class VerificationError(XlstmEdgeError):
    """A check ran and failed."""


class DependencyError(XlstmEdgeError, ImportError):
    """An optional package is missing."""


def shown(value: object) -> str:
    """A value for a message: short, on one line, without anything that a terminal obeys.

    Containers are named by their type alone: a few bytes of a document can stand for gigabytes of members.
    """
    if isinstance(value, str):
        return repr(value) if len(value) <= LONGEST_SHOWN else f"{value[:LONGEST_SHOWN]!r}..."
    if value is None:
        return "nothing"
    if isinstance(value, (bool, float)):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if abs(value) < 10**LONGEST_SHOWN else "a number of many digits"
    return f"a {type(value).__name__}"


def escaped(text: str, limit: int = 120) -> str:
    """A foreign name for a message, without quotes: control characters escaped, cut if it is long."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return cut if cut.isprintable() else repr(cut)[1:-1]


def shown_path(path: object) -> str:
    """A path for a message: escaped, and cut in the middle, because its end says more than its beginning."""
    text = repr(str(path))
    return text if len(text) <= LONGEST_PATH_SHOWN else f"{text[:60]}...{text[-120:]}"


def printable(text: str) -> str:
    """`text` with every character that is not printed (escapes, line breaks, halves of pairs) written as its code."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
