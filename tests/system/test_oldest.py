"""The runtime on the oldest versions it claims: bundles of today are proven there and compute the same.

`make test-oldest` makes the environments and runs this; without them it is skipped.
"""

import os
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xlstm_edge_exporters.targets import TARGETS

from ..arm64.test_boards import SCRIPT, run
from ..command import ROOT

OLDEST = os.environ.get("OLDEST")
BUNDLES = {
    "cpu": {"float32": {}, "int8": {"quantize": "int8"}, "int4": {"quantize": "int4", "method": "rtn"}},
    "portable": {"portable": {"target": "portable"}, "coreml": {"target": "coreml"}},
}


def test_what_is_tested_is_what_is_claimed() -> None:
    claimed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*claimed["dependencies"], *claimed["optional-dependencies"]["text"]}
    made = (ROOT / "Makefile").read_text()
    for requirement in wanted:
        name, _, version = requirement.partition(">=")
        assert f"{name}=={version}.0 " in f"{made} ".replace("\n", " "), requirement
    for target in TARGETS.values():
        assert f"onnxruntime=={target.onnxruntime}.0" in made


@pytest.mark.skipif(OLDEST is None, reason="no old environment; `make test-oldest` makes it")
@pytest.mark.parametrize("environment", BUNDLES)
def test_the_oldest_versions_compute_the_same(environment: str, export_of: Callable[..., Path], tmp_path: Path) -> None:
    assert OLDEST is not None
    for name, options in BUNDLES[environment].items():
        shutil.copytree(export_of("shipped", **options), tmp_path / "here" / name)
    place = Path(shutil.copytree(tmp_path / "here", tmp_path / "there"))
    found = run([f"{OLDEST}/{environment}/bin/python", str(SCRIPT), str(place)], os.environ)
    expected = run([sys.executable, str(SCRIPT), str(tmp_path / "here")], os.environ)
    for name in BUNDLES[environment]:
        exact = name in ("float32", "portable", "coreml")  # quantized outputs may differ by a step of an activation
        for key in ("checks", "sampled") if exact else ("checks",):
            assert found["bundles"][name][key] == expected["bundles"][name][key]
        got, wanted = (np.load(folder / f"{name}.npz") for folder in (place, tmp_path / "here"))
        tolerance = 1e-5 if exact else 2e-2
        assert np.abs(got["steps"] - wanted["steps"]).max() <= tolerance * np.ptp(wanted["steps"])
