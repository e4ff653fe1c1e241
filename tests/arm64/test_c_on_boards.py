"""The runtime in C on emulated ARM64 boards: the ids of Python on this machine, seeded and greedy.

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
    out = tmp_path_factory.mktemp("c") / "xlstm-edge-c"
    flags = "-std=c99 -Wall -Wextra -Werror -pedantic -O2 -ffp-contract=off".split()
    sources = [str(SOURCE / name) for name in ("xlstm_edge.c", "main.c")]
    subprocess.run([str(COMPILER), *flags, *sources, "-o", str(out), "-ldl", "-lm"], check=True)
    return out


@pytest.mark.parametrize("board", sorted(BOARDS))
def test_the_same_ids_on_a_board(board: str, program: Path, export_of: Callable[..., Path]) -> None:
    assert FOLDER is not None
    bundle = export_of("shipped")
    line, environment = command(Path(FOLDER), board, [])
    library = next((Path(FOLDER).resolve() / "site" / "onnxruntime" / "capi").glob("libonnxruntime.so.*"))
    environment["XLSTM_EDGE_ONNXRUNTIME"] = str(library)
    for seed, temperature in ((0, 0.0), (7, 0.8)):
        options = ["--max-tokens", "24", "--seed", str(seed), "--temperature", str(temperature)]
        words = [*line[:-1], str(program), str(bundle), "5", "17", "3", *options]
        result = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr
        chosen = {"temperature": temperature, "seed": seed} if temperature else {}
        events = xr.load(bundle, threads=1).session().generate([5, 17, 3], max_tokens=24, **chosen)  # type: ignore[arg-type]
        assert [int(word) for word in result.stdout.split()] == [e.id for e in events if isinstance(e, xr.Token)]
