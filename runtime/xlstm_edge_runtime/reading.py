"""Read untrusted input: bytes of bounded regular files, and JSON with closed sets of keys, types and ranges.

Every reader of a bundle's documents stands on this one, so that a hostile file ends in one sentence, in bounded time and
memory: never in a traceback, a hang on a pipe, or a key that nobody looked at. Knows nothing of what the documents mean.
"""

import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import BundleError, InputError, XlstmEdgeError, shown, shown_path

LONGEST_TEXT = 4096
LARGEST_TEXT = 64 << 20  # bytes of a text to calibrate or evaluate on
LARGEST_INTEGER = 1 << 53  # what every JSON reader holds exactly, JavaScript's too
NOT_BLOCKING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
Value = TypeVar("Value")


def open_regular(path: str | Path) -> int:
    """A file descriptor for reading, to be closed by the caller; OSError for what is no regular file.

    A pipe without a writer would block for ever and a device never end; both are refused before a byte is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | NOT_BLOCKING)
    except ValueError as error:  # a NUL in the path
        raise OSError(f"{shown_path(path)} is no path") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no regular file")
    return descriptor


def check_path(value: object, what: str) -> Path:
    """A path; InputError for what is neither text nor a path object."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise InputError(f"expected {what}, got {shown(value)}; pass its path")
    return Path(value)


def length_of(value: Any) -> int:
    """Number of members, before they are looked at; 0 for what has none, the most for a range beyond 64 bits."""
    try:
        return len(value)
    except OverflowError:
        return 1 << 63
    except TypeError:  # no collection, or an array without dimensions
        return 0


def read_bytes(path: str | Path, most: int) -> bytes:
    """The whole content of a regular file of at most `most` bytes; OSError says what else it is."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(f"more than {most:,} bytes")
        content = file.read(size + 1)  # a buffer of what is there, not of what may be
    if len(content) > size:
        raise OSError("a file that grows")
    return content


def read_json(path: str | Path, most: int, *, error: type[XlstmEdgeError] = BundleError, advice: str) -> object:
    """A JSON document from a regular file of at most `most` bytes; `error` in one sentence for anything else."""
    name = Path(path).name
    try:
        content = read_bytes(path, most)
    except OSError as problem:
        raise error(
            f"expected {shown(name)} as a file of at most {most:,} bytes, got {problem.strerror or problem}; {advice}"
        ) from problem
    return parse_json(content, name, error=error, advice=advice)


def parse_json(content: bytes | str, name: str, *, error: type[XlstmEdgeError] = BundleError, advice: str) -> object:
    """JSON as the standard has it: UTF-8, no NaN, no key twice."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError) as problem:
        raise error(f"expected {shown(name)} to be JSON, got something else; {advice}") from problem


class Reader:
    """One JSON object whose keys are exactly those a reader knows, with typed access that names what is wrong.

    `where` is the path of the object inside its document, for messages.
    """

    def __init__(
        self,
        value: object,
        where: str,
        keys: Collection[str] | None,
        *,
        optional: Collection[str] = (),
        error: type[XlstmEdgeError] = BundleError,
        advice: str = "export the bundle again",
    ) -> None:
        """`keys` None leaves the set open: for objects whose keys are data, as file names are."""
        self.where, self._error, self._advice = where, error, advice
        if not isinstance(value, dict):
            raise self.refuse(where, "an object", value)
        self.value: dict[str, Any] = value
        if keys is None:
            return
        if unknown := [key for key in value if key not in keys and key not in optional]:
            raise self._error(
                f"expected {where} with the keys {', '.join(sorted({*keys, *optional}))}, got {shown(unknown[0])} as well; "
                f"{advice}"
            )
        if missing := [key for key in keys if key not in value]:
            raise self._error(f"expected {where} with the key {missing[0]}, got an object without it; {advice}")

    def refuse(self, what: str, wanted: str, got: object) -> XlstmEdgeError:
        """The error for a member that is not as wanted."""
        return self._error(f"expected {what} as {wanted}, got {shown(got)}; {self._advice}")

    def section(self, key: str, keys: Collection[str] | None, *, optional: Collection[str] = ()) -> "Reader":
        """A nested object with its own closed set of keys."""
        return self._nested(self.value.get(key), f"{self.where} {key}", keys, optional)

    def sections(self, key: str, most: int, keys: Collection[str], *, optional: Collection[str] = ()) -> "list[Reader]":
        """A list of at most `most` nested objects."""
        values = self._list(key, most)
        return [self._nested(v, f"{self.where} {key} {i}", keys, optional) for i, v in enumerate(values)]

    def text(self, key: str, *, pattern: str | None = None, among: Sequence[str] | None = None) -> str:
        """A string: whole characters, not absurdly long, matched by `pattern` as a whole, or one of `among`."""
        return self._text(self.value.get(key), f"{self.where} {key}", pattern, among)

    def texts(self, key: str, most: int, *, pattern: str | None = None) -> tuple[str, ...]:
        """A list of such strings."""
        return tuple(self._text(v, f"{self.where} {key}", pattern, None) for v in self._list(key, most))

    def integer(self, key: str, low: int, high: int = LARGEST_INTEGER) -> int:
        """An integer from `low` to `high`; true is none, nor is 2.0."""
        return self._integer(self.value.get(key), f"{self.where} {key}", low, high)

    def integers(self, key: str, most: int, low: int, high: int = LARGEST_INTEGER) -> tuple[int, ...]:
        """A list of such integers."""
        return tuple(self._integer(v, f"{self.where} {key}", low, high) for v in self._list(key, most))

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number from `low` to `high`."""
        return self._number(self.value.get(key), f"{self.where} {key}", low, high)

    def numbers(self, key: str, most: int, low: float, high: float) -> tuple[float, ...]:
        """A list of such numbers."""
        return tuple(self._number(v, f"{self.where} {key}", low, high) for v in self._list(key, most))

    def flag(self, key: str) -> bool:
        """true or false."""
        value = self.value.get(key)
        if not isinstance(value, bool):
            raise self.refuse(f"{self.where} {key}", "true or false", value)
        return value

    def is_null(self, key: str) -> bool:
        """Whether the member is null (or an optional one that is absent)."""
        return self.value.get(key) is None

    def _nested(self, value: object, where: str, keys: Collection[str] | None, optional: Iterable[str]) -> "Reader":
        return Reader(value, where, keys, optional=tuple(optional), error=self._error, advice=self._advice)

    def _list(self, key: str, most: int) -> list[Any]:
        values = self.value.get(key)
        if not isinstance(values, list) or len(values) > most:
            got = f"{len(values)} members" if isinstance(values, list) else values
            raise self.refuse(f"{self.where} {key}", f"a list of at most {most} members", got)
        return values

    def _text(self, value: object, where: str, pattern: str | None, among: Sequence[str] | None) -> str:
        if not isinstance(value, str) or len(value) > LONGEST_TEXT or any("\ud800" <= c <= "\udfff" for c in value):
            raise self.refuse(where, "a text", value)
        if among is not None and value not in among:
            raise self.refuse(where, f"one of {', '.join(among)}", value)
        if pattern is not None and not re.fullmatch(pattern, value):
            raise self.refuse(where, f"a text like {pattern}", value)
        return value

    def _integer(self, value: object, where: str, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(where, f"an integer from {low} to {high}", value)
        return value

    def _number(self, value: object, where: str, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.refuse(where, f"a number from {low:g} to {high:g}", value)
        return float(value)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without repeated keys: two readers could take different ones."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key twice")
    return members


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
