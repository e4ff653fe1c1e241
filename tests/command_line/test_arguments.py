"""Arguments that are refused before anything is loaded or measured."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import xlstm_edge_runtime as xr

from ..command import Command, assert_nothing_written, assert_one_sentence
from ..conftest import BY_NAME, SHIPPED
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


@pytest.fixture
def tuned(int4_bundle: Callable[[str], Path], tmp_path: Path, command: Command) -> Path:
    shutil.copytree(int4_bundle("shipped"), tmp_path / "bundle")
    assert command("tune", tmp_path / "bundle").code == 0
    return tmp_path / "bundle"


def test_plots_are_refused_before_measuring(tuned: Path, command: Command, tmp_path: Path) -> None:
    for name in ("nodir/x.png", "x.jpg"):
        assert_one_sentence(command("bench", tuned, "--depth", "0", "--plot", tmp_path / name), 2)
        words = ("--against", tuned, "--text", SHIPPED / "heldout.txt", "--plot", tmp_path / name)
        assert_one_sentence(command("eval", tuned, *words), 2)


def test_prompts_that_are_no_text(tuned: Path, command: Command) -> None:
    assert_one_sentence(command("run", tuned, "a\udcff"), 2)
    with pytest.raises(xr.InputError):
        xr.load(tuned).stream(None)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    "words", [("--method", "gptq"), ("--block-size", "64"), ("--embedding-bits", "8"), ("--head-bits", "0")], ids=str
)
def test_options_without_effect(words: Any, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    model = checkpoint_of(BY_NAME["lm-five-heads"])
    assert_one_sentence(command("export", model, "-o", tmp_path / "bundle", *words), 2)
    stack = checkpoint_of(BY_NAME["stack-mixed"])
    words = ("--quantize", "int8", "--head-bits", "8")
    assert_one_sentence(command("export", stack, "-o", tmp_path / "bundle", *words), 2)
    assert_nothing_written(tmp_path, set())
