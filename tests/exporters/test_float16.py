"""float16 after every operator: what accelerators compute, and that it is seen when a number leaves the range."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import xlstm_edge
from xlstm_edge_exporters import float16
from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.float16 import Float16Graph, Float16Report, measure_float16
from xlstm_edge_exporters.reference import Variant, run_variants
from xlstm_edge_exporters.targets import TARGETS
from xlstm_edge_exporters.targets.accelerator import Accelerator
from xlstm_edge_runtime.manifest import read_manifest

from ..conftest import BY_NAME, SHIPPED, sequence_for
from ..oracles.cases import CASES, Case

BundleOf = Callable[[Case, str], Path]


def measured(folder: Path, checkpoint: Checkpoint, tokens: int, graph: Path | None = None) -> Float16Report:
    """A bundle's graph, or another in its place, beside its checkpoint."""
    manifest, way = read_manifest(folder), {"float32": Variant(torch.float32)}
    return measure_float16(
        graph or folder / "model.onnx",
        manifest.state,
        manifest.model.parameters,
        lambda inputs: run_variants(checkpoint.spec, checkpoint.weights, inputs, way)["float32"],
        tokens=tokens,
    )


def feeds_of(folder: Path, token: object) -> dict[str, np.ndarray]:
    manifest = read_manifest(folder)
    inputs = np.array([[token]]) if manifest.model.vocab_size else np.asarray(token, np.float32)[None, None]
    return {manifest.graph.input: inputs} | {f"past.{n}": a for n, a in manifest.state.initial().items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_rounding_it_is_onnx_s_own_evaluator(case: Case, bundle_of: BundleOf) -> None:
    """Every operator that an accelerator's graph has, in both."""
    folder = bundle_of(case, "coreml")
    feeds = feeds_of(folder, sequence_for(case, 1)[0])
    wanted = ReferenceEvaluator(onnx.load(folder / "model.onnx")).run(None, feeds)
    with torch.no_grad():
        got = Float16Graph(folder / "model.onnx", rounded=False).run({n: torch.from_numpy(a) for n, a in feeds.items()})
    for array, tensor in zip(wanted, got.values(), strict=True):
        np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-4, atol=1e-5 * (np.abs(array).max() + 1e-3))


@pytest.mark.parametrize("name", ["lm-mixed", "large-plain", "stack-slstm"])
def test_every_number_is_a_float16(name: str, bundle_of: BundleOf) -> None:
    folder = bundle_of(BY_NAME[name], "coreml")
    feeds = feeds_of(folder, sequence_for(BY_NAME[name], 1)[0])
    outputs = Float16Graph(folder / "model.onnx").run({n: torch.from_numpy(a) for n, a in feeds.items()})
    assert all(torch.equal(tensor, tensor.half().float()) for tensor in outputs.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_case_leaves_the_range(case: Case, bundle_of: BundleOf, opened: Callable[[Case], Checkpoint]) -> None:
    report = measured(bundle_of(case, "coreml"), opened(case), 40)
    assert not report.saturated, report
    assert report.exact <= 1e-4
    assert report.difference <= 0.1, report  # random models are rougher than trained ones


def test_the_shipped_model(tmp_path: Path) -> None:
    xlstm_edge.export(SHIPPED, tmp_path / "b", target="qnn")
    report = measured(tmp_path / "b", open_checkpoint(SHIPPED), 150)
    assert not report.saturated
    assert report.difference <= 0.02
    assert report.equal == 150


def test_a_number_out_of_range_is_seen(
    bundle_of: BundleOf, opened: Callable[[Case], Checkpoint], tmp_path: Path
) -> None:
    """Also where nothing that comes out shows it: the graph goes on with 1 / infinity."""
    folder = bundle_of(BY_NAME["lm-mixed"], "coreml")
    model = onnx.load(folder / "model.onnx")
    weight = next(i for i in model.graph.initializer if i.name == "blocks.0.mixer.up.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1e6), weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    report = measured(folder, opened(BY_NAME["lm-mixed"]), 2, tmp_path / "model.onnx")
    assert report.saturated
    assert "gave a number out of float16's range" in str(report)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if isinstance(target, Accelerator)])
def test_float16_runs_where_the_target_computes_in_it(
    name: str, checkpoint_of: Callable[[Case], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nowhere else: it takes half of the time."""
    seen = []

    class Seen(Float16Graph):
        def __init__(self, path: Path, *, rounded: bool = True) -> None:
            seen.append(rounded)
            super().__init__(path, rounded=rounded)

    monkeypatch.setattr(float16, "Float16Graph", Seen)
    xlstm_edge.export(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "b", target=name)
    assert sorted(seen) == ([False, True] if TARGETS[name].half else [False])


def test_an_exponential_that_an_accelerator_gets_wrong_is_seen(tmp_path: Path) -> None:
    """0 to float16, and up to 131,008 to Qualcomm's HTP."""
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Exp", ["x"], ["y"])]
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", onnx.TensorProto.FLOAT, [2])], [value("y", onnx.TensorProto.FLOAT, [2])]
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "g.onnx")
    for least, wanted in ((-64.0, 1.0), (-90.0, np.inf)):
        half = Float16Graph(tmp_path / "g.onnx")
        half.run({"x": torch.tensor([0.0, least])})
        assert half.largest == wanted
