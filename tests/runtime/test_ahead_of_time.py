"""Graphs compiled for Qualcomm's chips: each written, one opened again on the simulator and held to the graph itself."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_runtime import plugins
from xlstm_edge_runtime.ahead_of_time import compile_graph
from xlstm_edge_runtime.chips import CHIPS
from xlstm_edge_runtime.providers import PROVIDERS, choose_provider
from xlstm_edge_runtime.verify import verify_bundle

from ..changed_bundles import rehash
from ..conftest import BY_NAME, SHIPPED
from ..gates import with_gates
from ..oracles.cases import Case

needs_qnn = pytest.mark.skipif(
    plugins.installed(PROVIDERS["qnn"]) is None, reason="onnxruntime-qnn is not installed: make devices-qnn"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled") / "bundle"
    xlstm_edge.export(SHIPPED, folder, target="qnn", soc=",".join(CHIPS))
    return folder


@needs_qnn
def test_a_binary_for_every_chip(bundle: Path) -> None:
    manifest = xlstm_edge.inspect(bundle)
    for chip in CHIPS:
        assert {f"model.{chip}.onnx", f"model.{chip}_qnn.bin"} <= manifest["files"].keys()


@needs_qnn
def test_one_opens_again_and_is_what_runs(bundle: Path, tmp_path: Path) -> None:
    """Without the graph's own weights, which a compiled graph has in itself."""
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    options = {"soc": "8gen2"}
    names = [check.name for check in verify_bundle(folder, provider="qnn", provider_options=options)]
    assert names == ["files", "compiled", "graph", "placement", "step", "snapshot"]
    wanted = xr.load(bundle, threads=1).session()
    data = folder / "model.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))
    rehash(folder)
    model = xr.load(folder, provider="qnn", provider_options=options)
    assert model.placement == {"QNNExecutionProvider": 1}
    got = model.session()
    for token in (5, 17, 300, 42, 7):
        output, expected = got.step(token), wanted.step(token)
        assert np.abs(output - expected).max() <= 2e-2 * np.ptp(expected)
        assert output.argmax() == expected.argmax()


@needs_qnn
def test_a_damaged_binary_is_a_sentence(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    binary = folder / "model.8gen2_qnn.bin"
    binary.write_bytes(bytes(binary.stat().st_size))
    with pytest.raises(xr.XlstmEdgeError, match="expected"):
        xr.load(folder, provider="qnn", provider_options={"soc": "8gen2"})


def test_without_the_package_it_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugins, "installed", lambda provider: None)
    with pytest.raises(xr.DependencyError, match="pip install onnxruntime-qnn"):
        xlstm_edge.export("nowhere", tmp_path / "b", target="qnn", soc="8gen2")
    with pytest.raises(xr.DependencyError, match="pip install onnxruntime-qnn"):
        compile_graph(tmp_path / "a.onnx", tmp_path / "model.8gen2.onnx", choose_provider("qnn", {"soc": "8gen2"}))


@needs_qnn
@pytest.mark.parametrize(("name", "fgate"), [("hf-plain", None), ("large-uncapped", -95.0)])
def test_what_is_forgotten_at_once_is_nothing(
    name: str, fgate: float | None, checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    """Sums of 32 decays, and single decays of e^-95: an exponential that HTP alone would get wrong."""
    source = with_gates(checkpoint_of(BY_NAME[name]), tmp_path / "gates", igate=0.0 if fgate else None, fgate=fgate)
    xlstm_edge.export(source, tmp_path / "b", target="qnn", chunk=32, tokenizer="none")
    sessions = [
        xr.load(tmp_path / "b", provider="qnn", provider_options={"soc": "8gen2"}).session(),
        xr.load(tmp_path / "b", threads=1).session(),
    ]
    ids = np.arange(67) * 7 % 40
    for begin, end in ((0, 1), (1, 33), (33, 65), (65, 66), (66, 67)):
        got, wanted = (session.prefill(ids[begin:end]) for session in sessions)
        assert np.abs(got - wanted).max() <= 5e-2 * np.ptp(wanted)


@needs_qnn
def test_prompts_run_compiled_ahead_and_as_they_are(tmp_path: Path) -> None:
    """In whole calls on the simulator, near what the CPU computes; nothing of either graph is left to it."""
    xlstm_edge.export(SHIPPED, tmp_path / "b", target="qnn", chunk=8, soc="8gen2")
    assert xlstm_edge.inspect(tmp_path / "b")["compiled"]["8gen2"]["prompt"] == "prompt.8gen2.onnx"
    ids = np.arange(16) * 11 % 2000
    wanted = xr.load(tmp_path / "b", threads=1).session().prefill(ids)
    for options in ({"soc": "8gen2"}, {"htp_arch": 73, "soc_model": 43}):
        model = xr.load(tmp_path / "b", provider="qnn", provider_options=options)
        assert model.prompts is not None
        assert {part.ep_name for part in model.prompts.get_provider_graph_assignment_info()} == {"QNNExecutionProvider"}
        got = model.session().prefill(ids)
        assert np.abs(got - wanted).max() <= 2e-2 * np.ptp(wanted)
        assert got.argmax() == wanted.argmax()
    names = [check.name for check in verify_bundle(tmp_path / "b", provider="qnn", provider_options={"soc": "8gen2"})]
    assert "chunk" in names
