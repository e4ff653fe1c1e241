"""Usage errors have the form of all errors, whatever the parser's version says."""

from typing import Any

import pytest

from xlstm_edge.usage import usage_sentence

from ..command import Command, assert_one_sentence

LINES = {
    "run": ("expected BUNDLE, got nothing", "run"),
    "run b --foo": ("expected an option of xlstm-edge run, got --foo", "run"),
    "run b x --max-toke 3": ("(did you mean --max-tokens?)", "run"),
    "expor": ("expected a command of xlstm-edge, got 'expor' (did you mean export?)", ""),
    "run b x --threads many": ("expected --threads as an integer, got 'many'", "run"),
    "run b x --threads 0": ("expected --threads as 1 or more, got '0'", "run"),
    "run b x --temperature hot": ("expected --temperature as a number, got 'hot'", "run"),
    "export a -o b --quantize int5": (
        "expected --quantize as one of 'int8', 'int4', 'mixed', 'a16w8', got 'int5'",
        "export",
    ),
    "export a -o": ("expected a value after -o, got nothing", ""),
    "run a b c d": ("expected no more words after xlstm-edge run, got 'c d'", "run"),
}


@pytest.mark.parametrize("line", LINES)
def test_usage_errors_say_what_was_expected(line: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    result, (sentence, name) = command(*line.split()), LINES[line]
    assert_one_sentence(result, 2)
    assert sentence in result.err
    assert f"see {f'xlstm-edge {name}'.strip()} --help" in result.err


class BadParameterError(Exception):
    """As the parser of older versions raises it, under the name that is set below."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message, self.ctx, self.param = message, None, type("Option", (), {"opts": ["-n", "--number"]})()

    def format_message(self) -> str:
        return f"Invalid value for '--number' / '-n': {self.message}"


BadParameterError.__name__ = "BadParameter"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("'x' is not a valid integer.", "expected --number as an integer, got 'x'"),
        ("0 is not in the range x>=1.", "expected --number as 1 or more, got 0"),
        ("9 is not in the range 1<=x<=5.", "expected --number as 1 to 5, got 9"),
        ("'c' is not one of 'a', 'b'.", "expected --number as one of 'a', 'b', got 'c'"),
        ("something new", "expected another value of --number, got something new"),
    ],
)
def test_messages_of_older_parsers(message: str, sentence: str) -> None:
    error: Any = BadParameterError(message)
    assert usage_sentence(error).startswith(sentence)
