"""The same bundles on this machine and on emulated ARM64 boards: proven, within their allowance, the same seeded ids.

`make test-arm64` makes the boards (see `boards.py`) and runs this; without them it is skipped.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..command import ROOT
from .boards import BOARDS, command

FOLDER = os.environ.get("BOARDS")
SCRIPT = Path(__file__).with_name("on_board.py")
EXPORTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4", "method": "rtn", "block_size": 256},
    "large-int4": {"quantize": "int4", "method": "rtn"},
    "small-float32": {},
}
SOURCES = {"large-int4": "large-plain", "small-float32": "lm-mixed"}  # the others are of the shipped model
# SVE takes twenty times as long to emulate, minutes of the shipped model in float32. The pass with float weights over its
# quantized bundles runs the same kernels on the same shapes.
LEFT_OUT = {"max": "float32", "pi4": "small-float32", "pi5": "small-float32"}
# Of the output's range. Quantized kernels round activations by the row, by the block or not at all, as the CPU has them;
# the large form here has random weights, of which that moves the outputs by a tenth. `verify` on the board knows.
ALLOWED = {"float32": 1e-5, "small-float32": 1e-5, "int8": 2e-2, "int4": 4e-2, "large-int4": 0.2}
pytestmark = pytest.mark.skipif(FOLDER is None, reason="no boards; `make test-arm64` makes them")


@pytest.fixture(scope="module")
def bundles(export_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles."""
    root = tmp_path_factory.mktemp("boards")
    for name, options in EXPORTS.items():
        shutil.copytree(export_of(SOURCES.get(name, "shipped"), **options), root / name)
    return root


def run(line: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What a run of the script says."""
    environment = {
        **environment,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT / "runtime"), environment.get("PYTHONPATH")))),
    }
    result = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture(scope="module")
def here(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The same on this machine, in the same script."""
    place = Path(shutil.copytree(bundles, tmp_path_factory.mktemp("here") / "bundles"))
    return place, run([sys.executable, str(SCRIPT), str(place)], os.environ)


@pytest.mark.parametrize("board", sorted(BOARDS))  # max first: it takes many times as long as the others
def test_a_board_computes_the_same(
    board: str, bundles: Path, here: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    assert FOLDER is not None
    place = Path(shutil.copytree(bundles, tmp_path / "bundles", ignore=shutil.ignore_patterns(LEFT_OUT[board])))
    found = run(*command(Path(FOLDER), board, [str(SCRIPT), str(place)]))
    assert found["machine"] == "aarch64"
    assert found["integers"] is (board != "pi4")
    assert found["bundles"].keys() == ALLOWED.keys() - {LEFT_OUT[board]}
    for name in found["bundles"]:
        assert found["bundles"][name]["checks"] == here[1]["bundles"][name]["checks"]
        print(f"{board} {name} with float weights: {found['bundles'][name]['float']}")
        assert (found["bundles"][name]["float"] is None) == name.endswith("float32")
        got, expected = (np.load(folder / f"{name}.npz") for folder in (place, here[0]))
        for key in ("steps", "chunks"):
            span = float(np.ptp(expected["steps"]))
            difference = float(np.abs(got[key] - expected[key]).max()) / span
            print(f"{board} {name} {key}: {difference:.1e} of the range")
            assert difference <= ALLOWED[name], f"{name} {key}: {difference}"
        if name.endswith("float32"):
            assert found["bundles"][name]["sampled"] == here[1]["bundles"][name]["sampled"]
