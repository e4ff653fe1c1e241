"""Each target's graph: the operators that its compilers have, static where it must be, and the table of targets."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import onnx
import pytest
from safetensors.torch import load_file, save_file

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge import options
from xlstm_edge_exporters.targets import TARGETS
from xlstm_edge_exporters.targets.accelerator import Accelerator
from xlstm_edge_runtime.manifest import read_manifest

from ...conftest import BY_NAME, SHIPPED
from ...oracles.cases import Case

BundleOf = Callable[[Case, str], Path]
ACCELERATORS = [name for name, target in TARGETS.items() if isinstance(target, Accelerator)]


def graph_of(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "model.onnx", load_external_data=False).graph


def test_the_command_line_offers_every_target() -> None:
    choices = next(iter(get_args(get_args(options.Target)[0])))
    assert sorted(get_args(choices)) == sorted(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_says_what_it_is(name: str) -> None:
    target = TARGETS[name]
    assert target.name == name
    assert target.summary
    assert target.use
    assert target.default_chunk == (1 if target.static else 64)


def test_web_takes_one_token_where_a_loop_would_have_no_kernel(export_of: Callable[..., Path]) -> None:
    """WebGPU has no Scan, which an sLSTM's steps over several tokens are."""
    for case, chunk in (("lm-mixed", 1), ("large-plain", 64)):
        bundle = export_of(case, target="web")
        assert read_manifest(bundle).graph.chunk == chunk
        nodes = onnx.load(bundle / "model.onnx", load_external_data=False).graph.node
        assert "Scan" not in {node.op_type for node in nodes}


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_web_has_integers_in_every_product(quantize: str, export_of: Callable[..., Path]) -> None:
    """Its head is another operator than the CPU's."""
    bundle = export_of("shipped", target="web", quantize=quantize, method="rtn")
    nodes = Counter(node.op_type for node in onnx.load(bundle / "model.onnx", load_external_data=False).graph.node)
    cpu = export_of("shipped", quantize=quantize, method="rtn")
    wanted = Counter(node.op_type for node in onnx.load(cpu / "model.onnx", load_external_data=False).graph.node)
    assert nodes["MatMulNBits"] == wanted["MatMulNBits"] > 10
    assert nodes["Gemm"] == 0
    checks = [check.name for check in xlstm_edge.verify(bundle, against=SHIPPED)]
    assert "reference, weights" in checks


@pytest.mark.parametrize("name", TARGETS)
def test_the_manifest_says_the_target(name: str, bundle_of: BundleOf) -> None:
    manifest = read_manifest(bundle_of(BY_NAME["lm-mixed"], name))
    assert manifest.graph.target == name
    assert manifest.onnxruntime == TARGETS[name].onnxruntime
    model = onnx.load(bundle_of(BY_NAME["lm-mixed"], name) / "model.onnx", load_external_data=False)
    assert next(entry.version for entry in model.opset_import if not entry.domain) == TARGETS[name].opset


@pytest.mark.parametrize("name", ACCELERATORS)
def test_accelerators_know_nothing_of_gates_before_an_offset(name: str, bundle_of: BundleOf) -> None:
    """Every matrix memory has a stabilizer, which the manifest says the offset of; an sLSTM's starts in float16's range."""
    for case in ("lm-mixed", "large-plain"):
        table = read_manifest(bundle_of(BY_NAME[case], name)).state
        rows = {row.name: row for row in table}
        for row in table:
            if row.name.endswith(".C"):
                stabilizer = rows[row.name.removesuffix("C") + "m"]
                assert len(stabilizer.offset) == row.shape[0]
            assert row.initial >= -65504


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.static])
@pytest.mark.parametrize("above", [False, True])
def test_a_chunk_that_a_static_target_does_not_have(name: str, above: bool, tmp_path: Path) -> None:
    longest = TARGETS[name].longest_chunk
    assert longest == (1 if name == "portable" else 64)
    chunk = longest + 1 if above else 0
    with pytest.raises(xr.InputError, match=rf"(1 token|1 to {longest} tokens) for {name}, got {chunk}; leave it out"):
        xlstm_edge.export("nowhere", tmp_path / "b", target=name, chunk=chunk)


@pytest.mark.parametrize("quantize", ["int8", "int4", "mixed"])
@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if not target.quantizations])
def test_targets_without_block_wise_integers(name: str, quantize: str, tmp_path: Path) -> None:
    with pytest.raises(xr.InputError, match=f"for the target {name}, got --quantize"):
        xlstm_edge.export("nowhere", tmp_path / "b", target=name, quantize=quantize)


@pytest.mark.parametrize("name", ["cpu", "web"])
@pytest.mark.parametrize("case", ["lm-mixed", "large-uncapped"])
def test_one_token_needs_no_pool_and_no_loop(
    name: str, case: str, checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    xlstm_edge.export(checkpoint_of(BY_NAME[case]), tmp_path / "one", target=name, chunk=1)
    xlstm_edge.export(checkpoint_of(BY_NAME[case]), tmp_path / "many", target=name)
    count = Counter(node.op_type for node in graph_of(tmp_path / "one").node)
    assert not {"MaxPool", "Scan", "CumSum"} & count.keys()
    one, many = (xr.load(tmp_path / folder, threads=1).session() for folder in ("one", "many"))
    for token in (3, 1, 4, 1, 5):
        assert abs(one.step(token) - many.step(token)).max() <= 1e-5
    text = (tmp_path / "one" / "manifest.json").read_text().replace('"chunk": 1,', '"chunk": 2,', 1)
    (tmp_path / "one" / "manifest.json").write_text(text)
    with pytest.raises(xr.BundleError, match="chunk"):
        xr.load(tmp_path / "one")


@pytest.mark.parametrize("case", ["lm-mixed", "large-plain", "stack-slstm"])
def test_web_graphs_have_kernels_in_a_browser(case: str, bundle_of: BundleOf) -> None:
    count = Counter(node.op_type for node in graph_of(bundle_of(BY_NAME[case], "web")).node)
    assert not {"FusedMatMul", "RMSNormalization"} & count.keys()


def test_a_model_that_float16_does_not_hold_is_refused(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    """Silent on a device; here it is one sentence, and no bundle."""
    shutil.copytree(checkpoint_of(BY_NAME["large-plain"]), tmp_path / "checkpoint")
    tensors = load_file(tmp_path / "checkpoint" / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("ffn.proj_up.weight"):
            tensor.mul_(1e6)
    save_file(tensors, tmp_path / "checkpoint" / "model.safetensors")
    for target in ("qnn", "coreml"):
        with pytest.raises(xr.CheckpointError, match="gave a number out of float16's range; export it for"):
            xlstm_edge.export(tmp_path / "checkpoint", tmp_path / "b", target=target)
        assert not (tmp_path / "b").exists()
    xlstm_edge.export(tmp_path / "checkpoint", tmp_path / "b", target="openvino")


def test_what_was_found_in_float16_is_said(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    bundle = xlstm_edge.export(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "b", target="qnn")
    assert [line for line in bundle.notes if line.startswith("float16 over 128 tokens: ")]
    assert bundle.provider == "qnn"
    assert "Snapdragon" in bundle.use


def every_exp_is_bounded(graph: onnx.GraphProto) -> bool:
    """Whether each takes what a constant bounds from below: for numbers below -87 Qualcomm's gives up to 131,008."""
    made = {output: node for node in graph.node for output in node.output}
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if not tensor.external_data
    }
    taken = [made[node.input[0]] for node in graph.node if node.op_type == "Exp"]
    return bool(taken) and all(
        node.op_type == "Max" and [constants[name] for name in node.input if name in constants] == [-64.0]
        for node in taken
    )


@pytest.mark.parametrize("name", [name for name in ACCELERATORS if TARGETS[name].half])
@pytest.mark.parametrize("case", ["lm-mixed", "large-plain", "large-fused"])
def test_what_qualcomm_computes_badly_is_not_there(case: str, name: str, bundle_of: BundleOf) -> None:
    """Its Softplus, its Gemm with a bias (which onnxruntime makes of a bias of one axis), and a Gemm right before a Tanh."""
    graph = graph_of(bundle_of(BY_NAME[case], name))
    made = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    assert every_exp_is_bounded(graph)
    products = {output for node in graph.node if node.op_type in ("MatMul", "Gemm") for output in node.output}
    assert products
    for node in graph.node:
        assert node.op_type != "Softplus"
        assert node.op_type != "Tanh" or made[node.input[0]].op_type != "Gemm"
        if node.op_type == "Add" and products & set(node.input):
            assert not {name for name in node.input if name in weights and name.endswith(".bias")}


@pytest.mark.parametrize(
    ("name", "package", "extra", "quantize"),
    [
        ("coreml", "coremltools", "coreml", None),
        ("openvino", "openvino", "openvino-ir", None),
        ("openvino", "nncf", "openvino-ir", "int8"),
        ("litert", "litert_torch", "litert", None),
    ],
)
def test_a_missing_compiler_is_told_before_any_work(
    name: str, package: str, extra: str, quantize: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the one extra that brings it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(xr.DependencyError) as caught:
        xlstm_edge.export("nowhere", tmp_path / "b", target=name, ahead_of_time=True, quantize=quantize)
    wanted = f"expected the package {package} for --compile, got none; pip install 'xlstm-edge[{extra}]'"
    assert str(caught.value) == wanted


def test_a_form_without_prompts_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for prompts and for a form that has no room for them is told where they are."""
    monkeypatch.setattr(type(TARGETS["openvino"]), "packages", ())
    monkeypatch.setattr(type(TARGETS["openvino"]), "compile", lambda *_args, **_options: {})
    for chunk, told in ((8, True), (1, False)):
        bundle = xlstm_edge.export(SHIPPED, tmp_path / f"b{chunk}", target="openvino", chunk=chunk, ahead_of_time=True)
        assert any("takes single tokens; prompt.onnx is for onnxruntime" in note for note in bundle.notes) == told
