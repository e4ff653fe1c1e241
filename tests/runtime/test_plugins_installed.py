"""Every provider that is installed here and finds a device runs the shipped model whole, as near to the CPU as it should.

Nothing here runs where no such package is installed: `pip install onnxruntime-qnn onnxruntime-ep-openvino` brings two that
run on Linux: Qualcomm's simulator on any x86-64 machine, OpenVINO on one of Intel's.
"""

from pathlib import Path

import numpy as np
import pytest

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_runtime import plugins
from xlstm_edge_runtime.providers import FLOAT32, PROVIDERS
from xlstm_edge_runtime.verify import verify_bundle

from ..conftest import SHIPPED

SIMULATED = {"htp_arch": 73, "soc_model": 43}  # a Snapdragon 8 Gen 2


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable") / "bundle"
    xlstm_edge.export(SHIPPED, folder, target="qnn")
    return folder


def options_here(name: str) -> dict[str, int]:
    """What the provider needs on this machine; skips where it is not there."""
    provider = PROVIDERS[name]
    if plugins.installed(provider) is None:
        pytest.skip(f"{name} is not installed")
    plugins.register(provider)
    if (found := plugins.devices(provider)) == []:
        pytest.skip(f"{name} finds no device")
    return SIMULATED if name == "qnn" and {plugins.kind_of(d) for d in found or ()} == {"CPU"} else {}


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "cpu"])
def test_the_shipped_model_runs_whole(name: str, portable: Path) -> None:
    options = options_here(name)
    model = xr.load(portable, provider=name, provider_options=options)
    assert set(model.placement) == {PROVIDERS[name].ort_name}
    assert model.in_place == frozenset()
    got, wanted = model.session(), xr.load(portable).session()
    for token in (5, 17, 300, 42, 7):
        output, expected = got.step(token), wanted.step(token)
        allowed = 1e-5 if model.provider.precision == FLOAT32 else 2e-2
        assert np.abs(output - expected).max() <= allowed * np.ptp(expected)
        assert output.argmax() == expected.argmax()
    names = [check.name for check in verify_bundle(portable, provider=name, provider_options=options)]
    assert names == ["files", "graph", "placement", "step", "snapshot"]
