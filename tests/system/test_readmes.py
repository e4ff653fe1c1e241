"""Every command and snippet of every README runs and prints what the page says; every option, target and path exists."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import typer

from xlstm_edge.cli import app

from ..command import ROOT, Command
from ..readmes import INLINE, Block, blocks, commands, documents, links, mentioned, prints

DOCUMENTS = {str(path.relative_to(ROOT)): path for path in documents()}
RUNNABLE = ("console", "python")
# Lists of modules, drawings, samples of text, commands that install or train for an hour (their words are checked), code for
# a Mac, and what runtime/web/test/readme.test.mjs runs.
NOT_RUN = {"", "mermaid", "text", "bash", "swift", "js", "ts", "html"}
PAGES = [name for name, path in DOCUMENTS.items() if any(block.language in RUNNABLE for block in blocks(path))]
MOST_LINES = {"README.md": 120, "tests/README.md": 80}


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where somebody who follows a page stands: a clone's examples, and the bundle that the front page made."""
    for name in ("examples", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def run_command(words: list[str], command: Command) -> str:
    """What it prints, both streams; it must succeed unless it prints an error."""
    if words[0] == "xlstm-edge":
        result = command(*words[1:])
        printed, code = result.err + result.out, result.code
    else:
        assert words[0] == "python", words
        paths = os.pathsep.join(str(ROOT / part) for part in (".", "exporters", "runtime"))
        done = subprocess.run(
            [sys.executable, *words[1:]],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            check=False,
        )
        printed, code = done.stderr + done.stdout, done.returncode
    assert (code != 0) == printed.startswith("error: "), printed
    return printed


def run_python(code: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(code, "README", "exec"), {"__name__": "__main__"})
    return out.getvalue()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, reader: Path, shipped_bundle: Path, command: Command) -> None:
    """Its blocks in order, in one folder, as somebody who reads from top to bottom."""
    parts = blocks(DOCUMENTS[page])
    makes = any("-o bundle" in block.text for block in parts if block.language == "console")
    if not makes:
        shutil.copytree(shipped_bundle, reader / "bundle")
    for block, following in zip(parts, [*parts[1:], Block("", "", 0)], strict=True):
        where = f"{page}:{block.line}"
        if block.language == "console":
            for text, claimed in commands(block.text):
                printed = run_command(shlex.split(text), command)
                assert prints(claimed, printed), f"{where}: {text}\n{printed}"
        elif block.language == "python":
            printed = run_python(block.text)
            if following.language == "output":
                assert prints(following.text, printed), f"{where}\n{printed}"


@pytest.mark.parametrize("page", DOCUMENTS)
def test_every_block_is_of_a_kind_that_is_tested(page: str) -> None:
    assert {block.language for block in blocks(DOCUMENTS[page])} <= {*RUNNABLE, "output", *NOT_RUN}


@pytest.mark.parametrize("page", DOCUMENTS)
def test_every_command_and_option_exists(page: str) -> None:
    known = typer.main.get_command(app)
    for words in mentioned(DOCUMENTS[page]):
        name = words[1]
        if name.startswith("-") or name.isupper():
            continue
        assert name in known.commands, words  # type: ignore[attr-defined]  # a group
        options = {o for parameter in known.commands[name].params for o in (*parameter.opts, *parameter.secondary_opts)}  # type: ignore[attr-defined]
        given = {word.split("=")[0] for word in words[2:] if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        assert given <= options | {"--help", "-h"}, words


@pytest.mark.parametrize("page", DOCUMENTS)
def test_every_target_script_extra_and_link_exists(page: str) -> None:
    path = DOCUMENTS[page]
    text = path.read_text(encoding="utf-8")
    code = [*INLINE.findall(text), *(line for block in blocks(path) for line in block.text.split("\n"))]
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in code:
        for target in re.findall(r"^make ([a-z][a-z0-9-]*)", line):
            assert target in targets, line
        for extra in re.findall(r"xlstm-edge\[(\w+)\]", line):
            assert extra in extras, line
        for script, words in re.findall(r"\bpython ((?:tests|examples)/\S+\.py)([^`]*)", line):
            source = (ROOT / script).read_text()
            assert all(re.search(rf"\b{word}\b", source) for word in re.findall(r"--([a-z][a-z-]+)", words)), line
        if re.fullmatch(r"(runtime|exporters|xlstm_edge|tests|examples)/[\w/.]+\.\w+", line):
            assert (ROOT / line).is_file() or (path.parent / line).is_file(), line
    for target in links(path):
        assert target.exists(), target


@pytest.mark.parametrize("page", MOST_LINES)
def test_pages_stay_short(page: str) -> None:
    assert len(DOCUMENTS[page].read_text(encoding="utf-8").splitlines()) <= MOST_LINES[page]


@pytest.mark.parametrize(
    ("claimed", "got", "same"),
    [
        ("a\n", "a\n", True), ("a\n", "b\n", False), ("a ... c\n", "a b c\n", True), ("...\nend\n", "x\ny\nend\n", True),
        ("...\n", "\n", True), ("a\n...\n", "b\na\n", False), ("1.0\n", "1x0\n", False), ("a\nb\n", "a\n", False),
    ],
)  # fmt: skip
def test_what_a_page_claims_is_compared(claimed: str, got: str, same: bool) -> None:
    assert prints(claimed, got) == same
