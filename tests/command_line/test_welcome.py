"""What a newcomer sees: without a command, at the end of an export, and before a continuation."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import xlstm_edge
from xlstm_edge import terminal
from xlstm_edge.tables import checks_table, new_table
from xlstm_edge_runtime.verify import Check

from ..command import ROOT, Command
from ..conftest import BY_NAME
from ..oracles.cases import Case


def test_without_a_command_three_are_taught(command: Command) -> None:
    result = command()
    assert result.code == 2
    assert [word for word in ("export", "verify", "run") if f"xlstm-edge {word} " in result.out] == [
        "export",
        "verify",
        "run",
    ]
    assert "xlstm-edge demo" in result.out
    assert "--help" in result.out
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize(("name", "words"), [("large-plain", '"5 17 3"'), ("stack-one-head", "session().step(vector)")])
def test_an_export_ends_with_what_to_do_next(
    name: str, words: str, checkpoint_of: Callable[[Case], Path], command: Command, tmp_path: Path
) -> None:
    source = checkpoint_of(BY_NAME[name])
    result = command("export", source, "-o", tmp_path / "bundle", "--target", "portable")
    assert result.out == ""
    assert f"next: xlstm-edge verify {tmp_path / 'bundle'} --against {source}" in result.err
    assert words in result.err
    quiet = command("export", source, "-o", tmp_path / "bundle", "--target", "portable", "--force", "--quiet")
    assert quiet.err == quiet.out == ""
    done = command("verify", tmp_path / "bundle", "--quiet")
    assert done.out.rstrip().splitlines()[-1].endswith("checks passed")


def test_what_a_reader_types_is_shown_on_one_line(bundle_of: Callable[[Case, str], Path]) -> None:
    bundle = bundle_of(BY_NAME["lm-mixed"], "cpu")
    model = xlstm_edge.load(bundle)
    exported = xlstm_edge.Bundle(bundle, model.manifest)
    for thing in (model, model.session(), model.manifest, exported):
        text = repr(thing)
        assert text.startswith(type(thing).__name__ + "(")
        assert "\n" not in text
        assert len(text) < 200 + len(str(bundle))
    assert "xlstm_lm" in repr(exported)


@pytest.mark.parametrize(("terminal_there", "colours"), [(True, True), (True, False), (False, True)])
def test_an_echoed_prompt_is_dim_on_a_terminal_with_colours_only(
    terminal_there: bool, colours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Output(io.StringIO):
        def isatty(self) -> bool:
            return terminal_there

    output = Output()
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=terminal.standard_output, no_color=not colours, force_terminal=terminal_there)
    monkeypatch.setattr(terminal, "out", console)
    terminal.write_prompt("To be")
    assert output.getvalue() == ("\x1b[2mTo be\x1b[22m" if terminal_there and colours else "To be")


def test_tables_fold_into_eighty_columns() -> None:
    long = "/a/very/long/path/" + "x" * 150
    for table in (checks_table([Check("graph", long)]), new_table("bundle", title=long)):
        output = io.StringIO()
        Console(file=output, width=80).print(table)
        assert max(map(len, output.getvalue().splitlines())) <= 80
        assert "…" not in output.getvalue()
        assert output.getvalue().count("x") >= 150


def test_the_demo_shows_the_commands_that_it_runs(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    result = command("demo", "-o", tmp_path / "demo")
    assert result.code == 0, result.err
    typed = [line.split()[2] for line in result.out.splitlines() if line.startswith("$ xlstm-edge ")]
    assert typed == ["export", "verify", "inspect", "run"]
    assert "$ xlstm-edge export examples/shakespeare -o" in result.out
    assert "ROMEO.\nWhat light" in result.out
    assert result.out.splitlines()[-1].startswith("next: ")
    assert xlstm_edge.inspect(tmp_path / "demo")["family"] == "xlstm_lm"
