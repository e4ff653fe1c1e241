"""The runtime in C on emulated ARM64 boards: the ids of Python on this machine, seeded and greedy, and the golden text.

Beside the boards (see `test_boards.py`) it needs a cross compiler: Debian's gcc-aarch64-linux-gnu, or XE_CROSS_COMPILER.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest

import xlstm_edge_runtime as xr

from ..command import ROOT
from ..one_text import read
from ..system.test_c_runtime import DRIVER, Driver
from ..system.test_one_text import c_tells
from .boards import BOARDS, command

FOLDER = os.environ.get("BOARDS")
COMPILER = which(os.environ.get("XE_CROSS_COMPILER", "aarch64-linux-gnu-gcc"))
SOURCE = ROOT / "runtime" / "c"
pytestmark = [
    pytest.mark.skipif(FOLDER is None, reason="no boards; `make test-arm64` makes them"),
    pytest.mark.skipif(COMPILER is None, reason="no cross compiler; apt-get install gcc-aarch64-linux-gnu"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command line for ARM64, built without a warning."""
    return build(tmp_path_factory.mktemp("c") / "xlstm-edge-c", SOURCE / "xlstm_edge.c", SOURCE / "main.c")


def build(out: Path, *sources: Path) -> Path:
    flags = "-std=c99 -Wall -Wextra -Werror -pedantic -O2 -ffp-contract=off".split()
    words = [*flags, "-I", str(SOURCE), *map(str, sources), "-o", str(out), "-ldl", "-lm"]
    subprocess.run([str(COMPILER), *words], check=True)
    return out


def on_board(board: str, program: Path) -> tuple[list[str], dict[str, str]]:
    """What runs a program on a board, and its environment."""
    assert FOLDER is not None
    line, environment = command(Path(FOLDER), board, [])
    library = next((Path(FOLDER).resolve() / "site" / "onnxruntime" / "capi").glob("libonnxruntime.so.*"))
    return [*line[:-1], str(program)], {**environment, "XLSTM_EDGE_ONNXRUNTIME": str(library)}


@pytest.mark.parametrize("board", sorted(BOARDS))
def test_the_same_ids_on_a_board(board: str, program: Path, export_of: Callable[..., Path]) -> None:
    bundle = export_of("shipped")
    line, environment = on_board(board, program)
    for seed, temperature in ((0, 0.0), (7, 0.8)):
        options = ["--max-tokens", "24", "--seed", str(seed), "--temperature", str(temperature)]
        words = [*line, str(bundle), "5", "17", "3", *options]
        result = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr
        chosen = {"temperature": temperature, "seed": seed} if temperature else {}
        events = xr.load(bundle, threads=1).session().generate([5, 17, 3], max_tokens=24, **chosen)  # type: ignore[arg-type]
        assert [int(word) for word in result.stdout.split()] == [e.id for e in events if isinstance(e, xr.Token)]


@pytest.mark.parametrize("board", ["pi4", "pi5"])
def test_the_golden_text_on_a_board(board: str, tmp_path: Path, export_of: Callable[..., Path]) -> None:
    line, environment = on_board(board, build(tmp_path / "driver", DRIVER))
    golden, driver = read(), Driver(*line, **environment)
    assert c_tells(driver, export_of("shipped")) == ([str(token) for token in golden["ids"]], golden["text"])
    driver.close()
