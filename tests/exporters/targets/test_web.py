"""The web target's graph on WebGPU: what has no kernel there is known, and it computes what it computes on the CPU.

`make devices-webgpu` brings onnxruntime-webgpu and a GPU in software; elsewhere this is skipped.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xlstm_edge_runtime as xr
from xlstm_edge_runtime import plugins
from xlstm_edge_runtime.providers import CPU, PROVIDERS

from ...command import PATHS

WEBGPU = PROVIDERS["webgpu"]
pytestmark = pytest.mark.skipif(
    plugins.installed(WEBGPU) is None, reason="onnxruntime-webgpu is not installed: make devices-webgpu"
)
IDS, PROMPT = np.arange(20) * 97 % 2048, 5
WITHOUT_KERNEL = {"Max"}  # of onnxruntime 1.27; onnxruntime-web 1.30 has one
# In a process of its own, which ends at once: where it lets go of its sessions, this provider ends with a segmentation fault.
ON_THE_GPU = """
import json, os, sys
import numpy as np
import xlstm_edge_runtime as xr
from xlstm_edge_runtime.placement import operators_of
bundle, out, prompt, ids = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
try:
    xr.load(bundle, provider="webgpu")
    refused = None
except xr.BundleError as error:
    refused = str(error)
model = xr.load(bundle, provider="webgpu", allow_fallback=True)
parts = model.inference.get_provider_graph_assignment_info()
left = operators_of([part for part in parts if part.ep_name == "CPUExecutionProvider"])
session = model.session()
first = session.prefill(ids[:prompt]).copy()
np.save(out, np.stack([first, *(session.step(token).copy() for token in ids[prompt:])]))
print(json.dumps({"refused": refused, "left": left, "placement": model.placement}), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def bundle(export_of: Callable[..., Path]) -> Path:
    return export_of("shipped", target="web")


@pytest.fixture(scope="module")
def there(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """What the GPU's process says, and its outputs: after the prompt and after each further token."""
    out = tmp_path_factory.mktemp("webgpu") / "outputs.npy"
    paths = os.pathsep.join(filter(None, (PATHS, os.environ.get("PYTHONPATH"))))
    words = [sys.executable, "-c", ON_THE_GPU, bundle, out, str(PROMPT), json.dumps(IDS.tolist())]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), np.load(out)


def test_what_is_left_to_the_cpu_is_known(there: tuple[dict[str, Any], NDArray[np.float32]]) -> None:
    """And refused unless it is allowed."""
    facts, _ = there
    left, placement = facts["left"], facts["placement"]
    assert set(left) <= WITHOUT_KERNEL, left
    assert placement[CPU.provider.ort_name] == sum(left.values())
    assert placement[WEBGPU.ort_name] > 200
    assert facts["refused"].startswith(f"expected the whole graph on {WEBGPU.ort_name}, got {sum(left.values())} node")


def test_it_computes_what_the_cpu_computes(bundle: Path, there: tuple[dict[str, Any], NDArray[np.float32]]) -> None:
    """A prompt in one call, then token by token."""
    session = xr.load(bundle).session()
    wanted = [session.prefill(IDS[:PROMPT]), *(session.step(int(token)).copy() for token in IDS[PROMPT:])]
    for output, expected in zip(there[1], wanted, strict=True):
        assert np.abs(output - expected).max() <= 1e-5 * np.ptp(expected)
        assert output.argmax() == expected.argmax()
