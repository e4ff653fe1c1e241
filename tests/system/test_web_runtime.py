"""The runtime in TypeScript computes, samples, saves and refuses what Python's does; snapshots go round to it and to C.

`npm test` in runtime/web runs the same, and WebGPU besides.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xlstm_edge_runtime as xr

from .. import web_fixtures
from ..command import ROOT
from ..shared import Shared
from .test_c_runtime import COMPILERS, DRIVER, LIBRARIES, Driver, build

WEB = ROOT / "runtime" / "web"
NODE, NPM = shutil.which("node"), shutil.which("npm")
OLDEST = (20, 16)
SLOW = {"webgpu.test.mjs"}  # minutes where the GPU is one in software
# Sums in other orders than Python's kernels have, over a few tokens; measured 9e-7 of the range.
TOLERANCE = 3e-6


def why_not() -> str | None:
    """What is missing here."""
    if NODE is None or NPM is None:
        return "Node and npm are not installed"
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    got = tuple(int(part) for part in version.strip().removeprefix("v").split(".")[:2])
    return None if got >= OLDEST else f"Node {version.strip()} is older than {'.'.join(map(str, OLDEST))}"


pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"the runtime in TypeScript is not tested: {why_not()}")


@pytest.fixture(scope="module")
def fixtures(shared: Shared, export_of: Callable[..., Path]) -> Path:
    """The package built, and what Python makes of the cases, once a run."""

    def export(case: str, folder: Path, **options: Any) -> None:
        shutil.copytree(export_of(case, **options), folder)

    def make(folder: Path) -> None:
        _build()
        web_fixtures.main(folder, export)

    return shared.folder("web-fixtures", make)


def _build() -> None:
    if not (WEB / "node_modules").is_dir():
        done = subprocess.run([str(NPM), "ci"], cwd=WEB, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(
                f"the runtime in TypeScript is not tested: npm ci cannot get its packages: {done.stderr[-200:]}"
            )
    if not _is_built():  # others may be reading what is
        done = subprocess.run([str(NPM), "run", "build"], cwd=WEB, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def _is_built() -> bool:
    built = WEB / "dist" / "index.js"
    newest = max(path.stat().st_mtime for path in (WEB / "src").glob("*.ts"))
    return built.exists() and built.stat().st_mtime > newest


def run(fixtures: Path, *words: str | Path) -> str:
    """What a script of Node prints; it must end well."""
    environment = {**os.environ, "XLSTM_EDGE_FIXTURES": str(fixtures)}
    line = [str(NODE), *map(str, words)]
    done = subprocess.run(line, cwd=WEB, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", sorted({path.name for path in (WEB / "test").glob("*.test.mjs")} - SLOW))
def test_as_in_python(name: str, fixtures: Path) -> None:
    out = run(fixtures, "--test", "--test-reporter=tap", f"test/{name}")
    skips = [line for line in out.splitlines() if "# SKIP" in line]
    if skips:
        pytest.skip(f"{len(skips)} tests of {name}: {skips[0].partition('# SKIP')[2].strip()}")
    assert "# fail 0" in out


@pytest.mark.parametrize("name", ["shipped-web", "large-web"])
def test_a_snapshot_goes_round(name: str, fixtures: Path, tmp_path: Path) -> None:
    """Saved by Python, continued and saved in Chromium, continued by Python and by C."""
    model = xr.load(fixtures / "bundles" / name, threads=1)
    session = model.session()
    session.prefill([1, 2, 3])
    session.save(tmp_path / "python")
    run(fixtures, "test/relay.mjs", name, tmp_path / "python", tmp_path / "web")
    session.prefill([6, 7])
    there = model.session()
    there.load(tmp_path / "web")
    assert there.tokens == session.tokens == 5
    expected, got = session.step(9), there.step(9)
    assert np.abs(got - expected).max() <= TOLERANCE * np.ptp(expected)
    if COMPILERS and LIBRARIES:
        driver = Driver(build(COMPILERS[0], tmp_path / "driver", "-O1", DRIVER))
        driver.ok("load", fixtures / "bundles" / name)
        driver.ok("restore", tmp_path / "web")
        driver.ok("prefill", "9")
        np.testing.assert_array_equal(driver.logits(), got)
        driver.close()
