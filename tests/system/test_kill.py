"""SIGKILL at every write point of export, tune and save: what stands is nothing, the old or the new, whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..command import PATHS, ROOT

# Fewer would mean that the counting has gone blind.
LEAST = {"export": 30, "tune": 8, "save": 10}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("name", LEAST)
def test_a_death_at_any_point_leaves_all_or_nothing(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.kill", name, tmp_path],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])[name]
    for way, before in (("new", "nothing"), ("over an old one", "old")):
        assert found[way]["points"] >= LEAST[name], found
        assert found[way][before] + found[way].get("new", 0) == found[way]["points"]
