"""Ten thousand mutations of everything untrusted that is read; see `tests/fuzz`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..command import PATHS, ROOT

MUTATIONS = 10_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals and limits")
def test_mutations_end_in_success_or_one_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzz.run", "--mutations", str(MUTATIONS), "--seed", "0"],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    rows = {line[:22].strip(): line[22:] for line in result.stdout.splitlines()}
    assert rows["all"].split()[0] == f"{MUTATIONS:,}"
    assert "0 faults" in rows["all"]
    for target in ("manifest", "vectors", "snapshot", "config", "safetensors", "torch archive", "graph"):
        assert "Error" in rows[target], target  # a target that refuses nothing has gone blind
    for target in ("manifest", "tuning", "snapshot", "config", "safetensors"):
        assert "success" in rows[target], target  # nor one that refuses everything
