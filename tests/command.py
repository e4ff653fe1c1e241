"""Run the command line in this process and look at it as a shell would."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from xlstm_edge.cli import run_cli

ROOT = Path(__file__).resolve().parent.parent
# What a process of its own needs to find the packages of this tree.
PATHS = os.pathsep.join(str(ROOT / part) for part in (".", "exporters", "runtime"))


@dataclass(frozen=True)
class Result:
    """Exit code and both streams."""

    code: int
    out: str
    err: str


class Command:
    """Callable with command-line words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["xlstm-edge", *map(str, words)])
        self._capsys.readouterr()
        try:
            run_cli()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = self._capsys.readouterr()
        return Result(code, out, err)


def assert_one_sentence(result: Result, code: int) -> None:
    """One line that says what was expected, what was got, what to do; no traceback."""
    assert result.code == code, result
    line = result.err.strip()
    assert line.startswith("error: expected "), result.err
    assert "got" in line
    assert ";" in line
    assert "\n" not in line
    assert "Traceback" not in result.err + result.out


def assert_nothing_written(folder: Path, before: set[str]) -> None:
    """No bundle, no temporary folder."""
    assert {path.name for path in folder.iterdir()} == before
