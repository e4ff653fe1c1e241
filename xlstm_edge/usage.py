"""Usage errors of the command line in the one form that all errors have: what was expected, what was got, what to do.

Typer carries its parser inside, under names that move between versions, so errors are told apart by the names of their
classes and by what they carry.
"""

import re
from typing import Any

# How the parser's versions say what a value must be, and how we say it.
RULES = (
    (r"valid integer", "an integer"),
    (r"valid (?:number|float)", "a number"),
    (r"(\S+)<=x<=(\S+)", "{0} to {1}"),
    (r"(?:x>=|greater than or equal to )(\S+)", "{0} or more"),
    (r"(?:x<=|less than or equal to )(\S+)", "{0} or less"),
    (r"not one of (.+)", "one of {0}"),
)


def is_usage_error(error: BaseException) -> bool:
    """Whether the parser raised it."""
    return hasattr(error, "format_message")


def usage_sentence(error: Any) -> str:
    """One sentence for a usage error."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "xlstm-edge"
    expected, got = _told(error, path)
    return f"expected {expected}, got {got}; see {path} --help"


def _told(error: Any, path: str) -> tuple[str, str]:
    """(what was expected, what was got)."""
    kind, message = type(error).__name__, " ".join(str(error.format_message()).split()).rstrip(".")
    if kind == "NoSuchOption":
        return f"an option of {path}", f"{error.option_name}{_hint(error.possibilities)}"
    if kind == "MissingParameter":
        return _name(error), "nothing"
    if kind == "BadOptionUsage" and "requires" in message:
        return f"a value after {error.option_name}", "nothing"
    if kind == "BadParameter":
        return _bad_value(error, message)
    return _bad_words(message, path)


def _bad_words(message: str, path: str) -> tuple[str, str]:
    """Of errors that only their sentence tells apart."""
    if found := re.match(r"No such command '(.*?)'", message):
        near = re.findall(r"'([^']*)'", message.partition("Did you mean")[2])
        return f"a command of {path}", f"{found[1]!r}{_hint(near)}"
    if found := re.match(r"Got unexpected extra argument\S* \((.*)\)", message):
        return f"no more words after {path}", f"{found[1]!r}"
    return f"other words after {path}", message


def _bad_value(error: Any, message: str) -> tuple[str, str]:
    reason = message.partition(": ")[2] or message
    got = _given(error, reason)
    for pattern, rule in RULES:
        if found := re.search(pattern, reason):
            return f"{_name(error)} as {rule.format(*found.groups())}", got
    return f"another value of {_name(error)}", f"{got} ({reason})"


def _given(error: Any, reason: str) -> str:
    """Newer parsers keep the value in the error that this one came from, older ones begin the reason with it."""
    cause = getattr(error, "__cause__", None)
    if cause is not None and hasattr(cause, "errors"):
        return repr(cause.errors()[0].get("input"))
    return reason.partition(" is not ")[0]


def _name(error: Any) -> str:
    """How the parameter is written: BUNDLE, or --threads."""
    parameter = getattr(error, "param", None)
    options = [name for name in getattr(parameter, "opts", []) if name.startswith("-")]
    if options:
        return str(max(options, key=len))
    return str(getattr(parameter, "metavar", None) or getattr(parameter, "human_readable_name", "another word"))


def _hint(names: Any) -> str:
    return f" (did you mean {' or '.join(names)}?)" if names else ""
