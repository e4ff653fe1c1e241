"""Standard streams as they really are, failures as one sentence each, and nothing a terminal would obey."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import xlstm_edge
from xlstm_edge import cli, facade, terminal
from xlstm_edge.progress import bars
from xlstm_edge.tables import evaluate_table
from xlstm_edge_runtime.errors import printable, shown

from ..command import PATHS, Command, assert_one_sentence
from ..conftest import BY_NAME, SHIPPED
from ..oracles.cases import Case

TORCHLESS = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise RuntimeError("torch was asked for")
sys.meta_path.insert(0, Block())
from xlstm_edge.__main__ import main
sys.argv = ["xlstm-edge", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def bundle(shipped_bundle: Path) -> Path:
    return shipped_bundle


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of shell in which $E is the command."""
    environment = {**os.environ, "PYTHONPATH": PATHS, "E": f"{sys.executable} -m xlstm_edge", **variables}
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment, check=False)


def without_torch(*words: object) -> subprocess.CompletedProcess[str]:
    """The command in a process in which nobody may import torch."""
    environment = {**os.environ, "PYTHONPATH": PATHS}
    line = [sys.executable, "-c", TORCHLESS, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


def one_sentence(text: str) -> bool:
    return text.count("\n") == 1 and text.startswith("error: expected ") and "got" in text and ";" in text


@pytest.mark.parametrize("words", ["run {b} 'To be' -n 5", "inspect {b}", "inspect {b} --json", "verify {b}", "-V"])
@pytest.mark.parametrize("place", ["> /dev/full", ">&-"])
def test_a_full_or_closed_output_is_one_sentence(words: str, place: str, bundle: Path) -> None:
    result = shell(f"$E {words.format(b=bundle)} {place}")
    assert result.returncode == 2, result
    assert one_sentence(result.stderr), result.stderr


@pytest.mark.parametrize("words", ["run {b} 'To be' -n 5", "inspect {b}", "run {b}", "export nowhere -o x"])
def test_a_closed_error_output_harms_nobody(words: str, bundle: Path) -> None:
    result = shell(f"$E {words.format(b=bundle)} 2>&- < /dev/null; echo code $?")
    assert "Traceback" not in result.stdout
    assert f"code {0 if 'To be' in words or 'inspect' in words else 2}" in result.stdout


def test_a_closed_input_is_one_sentence(bundle: Path) -> None:
    result = shell(f"$E run {bundle} <&-")
    assert result.returncode == 2
    assert one_sentence(result.stderr), result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_output_that_lacks_a_character(encoding: str, bundle: Path) -> None:
    """The prompt is echoed in JSON's text only; a table's lines, a title and a path have characters of their own."""
    for words in (
        f"run {bundle} 'To be \u2014 \u65e5' -n 8",
        f"inspect {bundle}",
        f"inspect {bundle} --json",
        "export --help",
    ):
        result = shell(f"$E {words}", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
    result = shell("$E inspect '/tmp/\u65e5\u672c'", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert result.returncode == 2
    assert one_sentence(result.stderr)


def interrupted_after(seconds: float, *words: object) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "xlstm_edge", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PATHS},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509  # no threads here
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize("seconds", [0.2, 0.4, 0.7, 1.0, 1.5, 2.2, 3.0])
def test_ctrl_c_at_any_time(seconds: float, checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    """While packages are imported, while torch is, while tracing: no traceback, nothing left."""
    checkpoint = checkpoint_of(BY_NAME["lm-mixed"])
    code, err = interrupted_after(seconds, "export", checkpoint, "-o", tmp_path / "bundle")
    assert (code, err) in ((130, "error: interrupted\n"), (0, err)), err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} <= ({"bundle"} if code == 0 else set())


def test_ctrl_c_ends_the_process_there_and_then_only_while_told() -> None:
    before = signal.getsignal(signal.SIGINT)
    with terminal.instant_interrupt():
        assert signal.getsignal(signal.SIGINT) is terminal.leave_at_once
    assert signal.getsignal(signal.SIGINT) is before


def test_a_fault_of_ours_is_70_and_says_how_to_report(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def fault(_path: object, **_choice: object) -> None:
        raise ZeroDivisionError("a \x1b[31mred\x1b[0m\nfault")

    monkeypatch.setattr(facade, "inspect", fault)
    result = command("inspect", SHIPPED)
    assert_one_sentence(result, 70)
    assert "ZeroDivisionError" in result.err
    assert "report" in result.err
    assert "\x1b" not in result.err
    document = json.loads(command("inspect", SHIPPED, "--json").out)
    assert document["exit_code"] == 70
    monkeypatch.setenv(terminal.SHOW_TRACEBACK, "1")
    assert "Traceback" in command("inspect", SHIPPED).err


def test_no_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def exhaust(_path: object, **_choice: object) -> None:
        raise MemoryError

    monkeypatch.setattr(facade, "inspect", exhaust)
    assert_one_sentence(command("inspect", SHIPPED), 2)


@pytest.mark.parametrize(
    "words",
    [
        ("--chunk", "0"), ("--quantize", "int3"), ("--quantize", "int4", "--block-size", "33"), ("--head-bits", "8"),
        ("--quantize", "int4", "--keep", "x"), ("--quantize", "int4", "--calibrate", "nowhere.txt"),
        ("--recipe", "nowhere.toml"), ("--target", "tflite"), ("--quantize", "mixed", "--calibrate", "none"), ("--no-such",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_options_are_refused_before_torch_is_loaded(words: tuple[str, ...], tmp_path: Path) -> None:
    result = without_torch("export", SHIPPED, "-o", tmp_path / "b", *words)
    assert result.returncode == 2, result.stderr
    assert one_sentence(result.stderr), result.stderr
    assert "torch" not in result.stderr


EARLY = {
    "no checkpoint": "export {none} -o {new}",
    "no tokenizer": "export {shipped} -o {new} --tokenizer {none}",
    "calibration of bytes": "export {shipped} -o {new} --quantize int4 --calibrate {shipped}/model.safetensors",
    "infinite target": "export {shipped} -o {new} --quantize mixed --calibrate {text} --target-mb inf",
    "inspect nothing": "inspect {none}",
    "verify nothing": "verify {none} --against {shipped}",
    "verify against nothing": "verify {bundle} --against {none}",
    "verify with many threads": "verify {bundle} --against {shipped} --threads 99999",
    "eval nothing": "eval {none} --against {shipped} --text {text}",
    "eval no text": "eval {bundle} --against {shipped} --text {none}",
    "eval with many threads": "eval {bundle} --against {shipped} --text {text} --threads 99999",
    "bench nothing": "bench {none} --compare {shipped}",
    "bench two rivals": "bench {bundle} --compare {shipped} --against {bundle}",
    "bench odd depths": "bench {bundle} --compare {shipped} --depth abc",
    "bench with many threads": "bench {bundle} --compare {shipped} --threads 99999",
}


@pytest.mark.parametrize("name", EARLY)
def test_bad_words_are_refused_before_torch_is_loaded(name: str, bundle: Path, tmp_path: Path) -> None:
    places = {"none": tmp_path / "none", "new": tmp_path / "new", "shipped": SHIPPED, "bundle": bundle}
    words = EARLY[name].format(**places, text=SHIPPED / "heldout.txt").split()
    result = without_torch(*words)
    assert result.returncode == 2, result.stderr
    assert one_sentence(result.stderr), result.stderr
    assert "torch" not in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("words", ["", "--help", "export --help"])
@pytest.mark.parametrize("place", ["> /dev/full", ">&-"])
def test_help_on_an_output_that_takes_nothing(words: str, place: str) -> None:
    result = shell(f"$E {words} {place}")
    assert result.returncode == 2, result.stderr
    assert one_sentence(result.stderr), result.stderr


def test_no_words_show_the_help(command: Command) -> None:
    result = command()
    assert (result.code, result.err) == (2, "")
    assert "export" in result.out


def test_json_has_no_control_characters_of_others(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    odd = "a\x9b31m\u202e\U000e0001\x7f é你"
    monkeypatch.setattr(facade, "inspect", lambda *_words, **_options: {"name": odd})
    result = command("inspect", SHIPPED, "--json")
    assert json.loads(result.out) == {"name": odd}
    assert all(character == "\n" or character.isprintable() for character in result.out)
    assert "é你" in result.out


def test_a_bad_output_path_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "none" / "b"):
        result = without_torch("export", SHIPPED, "-o", place)
        assert result.returncode == 2, result.stderr
        assert one_sentence(result.stderr), result.stderr


def test_every_stage_shows_that_it_runs(bundle: Path, tmp_path: Path) -> None:
    stages: list[tuple[str, int]] = []
    xlstm_edge.export(SHIPPED, tmp_path / "b", progress=lambda stage, done, _total: stages.append((stage, done)))
    names = list(dict.fromkeys(name for name, _ in stages))
    assert names == ["reading text", "tracing", "weights", "reference", "hashing"]
    assert all((name, 0) in stages for name in names)  # said before it begins


def test_a_stage_without_a_length_moves_and_ends() -> None:
    console = terminal.Console(stderr=True, force_terminal=True, width=100)
    with console.capture() as capture, bars(console) as report:
        report("tracing", 0, 0)
        report("weights", 1, 2)
    text = capture.get()
    assert "tracing" in text
    assert "1/2" in text
    assert "0/0" not in text


def test_quiet_says_nothing_but_results_and_errors(bundle: Path, tmp_path: Path, command: Command) -> None:
    loud = command("export", SHIPPED, "-o", tmp_path / "loud")
    assert "parameters" in loud.err
    silent = command("export", SHIPPED, "-o", tmp_path / "silent", "--quiet")
    assert (silent.code, silent.out, silent.err) == (0, "", "")
    assert command("run", bundle, "To be", "-n", "3", "--stats", "-q").err == ""
    assert_one_sentence(command("inspect", tmp_path / "none", "-q"), 2)
    assert "parameters" in command("export", SHIPPED, "-o", tmp_path / "again").err  # quiet is not for ever


def test_export_tells_machines_too(tmp_path: Path, command: Command) -> None:
    document = json.loads(command("export", SHIPPED, "-o", tmp_path / "b", "--json").out)
    assert document["bundle"] == str(tmp_path / "b")
    assert document["parameters"] > 1_000_000


@pytest.mark.parametrize("name", ["export", "verify", "inspect", "run", "bench", "tune", "eval"])
def test_every_command_has_json_and_quiet_and_says_its_defaults(name: str, command: Command) -> None:
    text = command(name, "--help").out
    assert "--json" in text
    assert "--quiet" in text
    assert name in ("inspect", "tune") or "default:" in text  # those two have nothing to set


def test_completion(tmp_path: Path) -> None:
    words = {"_XLSTM_EDGE_COMPLETE": "complete_bash", "COMP_WORDS": "xlstm-edge in", "COMP_CWORD": "1"}
    code = (
        f"{sys.executable} -c 'import sys; sys.argv = [\"xlstm-edge\"]; from xlstm_edge.__main__ import main; main()'"
    )
    result = shell(code, HOME=str(tmp_path), **words)
    assert result.stdout.split() == ["inspect"], result.stderr
    assert "--install-completion" in shell("$E --help").stdout
    assert list(tmp_path.iterdir()) == []


ESCAPE = "\x1b]0;owned\x07\x1b[31m"


def test_foreign_text_cannot_steer_the_terminal(bundle: Path, command: Command, tmp_path: Path) -> None:
    for name in ("b[int4]", "b[red]", f"b{ESCAPE}", "b:smiley:"):
        (tmp_path / name).symlink_to(bundle)
        result = command("inspect", tmp_path / name)
        assert result.code == 0, result.err
        assert "\x1b" not in result.out
        assert printable(name) in "".join(result.out.split("\n"))
    assert "\x1b" not in command("inspect", tmp_path / f"none{ESCAPE}").err


def test_generated_text_cannot_either_where_a_person_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(terminal, "write_out", written.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.write_foreign(f"a\tb\n{ESCAPE}é")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    terminal.write_foreign(ESCAPE)
    assert written == ["a\tb\n\\x1b]0;owned\\x07\\x1b[31mé", ESCAPE]


def test_values_in_messages_are_short_and_escaped() -> None:
    assert [shown(v) for v in ([1, 2], {"a": 1}, (), "a" * 60, "a" * 61)] == [
        "a list", "a dict", "a tuple", repr("a" * 60), f"{'a' * 60!r}...",
    ]  # fmt: skip
    assert [shown(v) for v in (10**60 - 1, -(10**60), 10**60)] == ["9" * 60, *["a number of many digits"] * 2]
    bomb: Any = ["x" * 10]
    for _ in range(30):
        bomb = [bomb] * 10
    for value in (bomb, {"a": bomb}, 10**5000, "x" * 10**6, ESCAPE, "\udcff", 1.5, True, None, float("nan")):
        text = shown(value)
        assert len(text) < 400
        assert text.isprintable()
    assert [shown(v) for v in (True, 1, 1.0, None)] == ["true", "1", "1.0", "nothing"]


def test_the_table_of_eval_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "_width", 80)
    result = {
        "bundle": "/a/folder/with-a-rather-long-name-int4", "bytes": 3_210_000, "tokens": 4095, "reference_perplexity": 25.92,
        "perplexity": 123.456, "perplexity_change": 0.1234, "kl_mean": 0.01234, "kl_p99": 0.1234, "top1_agreement": 0.9512,
        "delta_p_percentiles": {"5": -0.1234, "95": 0.1111},
    }  # fmt: skip
    terminal.show(evaluate_table([result]))
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    for figure in ("perplexity", "123.456", "+12.34%", "0.01234", "0.1234", "95.12%", "-12.34 +11.11", "3.21 MB"):
        assert figure in text, figure
    assert "…" not in text


def test_the_app_has_no_failure_of_its_own() -> None:
    assert terminal.guarded(lambda: cli.app(["--help"], standalone_mode=False)) == 0
