"""The second graph of accelerators: prompts in calls of a fixed number of tokens, over the weights and states of the first."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.verify import verify_against
from xlstm_edge_runtime.manifest import read_manifest
from xlstm_edge_runtime.tune import tune_bundle

from ..changed_bundles import edit_json, rehash
from ..conftest import BY_NAME, SHIPPED, sequence_for
from ..gates import with_gates
from ..oracles.cases import Case
from .targets.test_targets import every_exp_is_bounded

CHUNK = 5
# Of each family: one head and several, windows and none, biases, an epsilon that counts, no caps.
KINDS = "lm-five-heads lm-bare stack-mixed large-one-head large-fused hf-plain".split()
ExportOf = Callable[..., Path]


def change_prompts(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    graph = onnx.load(folder / "prompt.onnx", load_external_data=False)
    change(graph)
    onnx.save(graph, folder / "prompt.onnx")
    rehash(folder)


@pytest.fixture
def copied(export_of: ExportOf, tmp_path: Path) -> Path:
    return shutil.copytree(export_of("lm-mixed", target="openvino", chunk=CHUNK), tmp_path / "copied")


@pytest.mark.parametrize("case", [BY_NAME[name] for name in KINDS], ids=str)
def test_calls_of_several_tokens_are_single_steps(case: Case, export_of: ExportOf) -> None:
    """Outputs beside the graph for CPUs, states beside single steps: from the start, from a state, and an odd rest."""
    model = xr.load(export_of(case.name, target="openvino", chunk=CHUNK), threads=1)
    plain = xr.load(export_of(case.name, chunk=16), threads=1).session()
    inputs = sequence_for(case, 4 * CHUNK + 3)
    prompts, steps = model.session(), model.session()
    for end in (1, 1 + CHUNK, 1 + 3 * CHUNK, len(inputs)):
        part = inputs[prompts.tokens : end]
        output, wanted = prompts.prefill(part), plain.prefill(part)
        for one in part:
            steps.prefill(one[None])
        assert np.abs(output - wanted).max() <= 2e-5 * np.ptp(wanted)
    for name, array in steps.state.items():
        np.testing.assert_allclose(prompts.state[name], array, rtol=1e-3, atol=1e-4 * (np.abs(array).max() + 1e-3))


@pytest.mark.parametrize(("igate", "fgate"), [(75.0, 0.0), (-75.0, -75.0), (0.0, -75.0)])
def test_gates_at_their_caps(igate: float, fgate: float, checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    """Everything remembered, everything forgotten, and sums of logarithms far from the differences that count."""
    source = with_gates(checkpoint_of(BY_NAME["large-plain"]), tmp_path / "gates", igate=igate, fgate=fgate)
    xlstm_edge.export(source, tmp_path / "b", target="openvino", chunk=32)
    model = xr.load(tmp_path / "b", threads=1)
    inputs, prompts, steps = sequence_for(BY_NAME["large-plain"], 96), model.session(), model.session()
    for start in (0, 32, 64):
        output = prompts.prefill(inputs[start : start + 32])
        wanted = [steps.step(int(token)) for token in inputs[start : start + 32]][-1]
        assert np.abs(output - wanted).max() <= 1e-4 * np.ptp(wanted)


def test_the_graph_is_called_once_for_a_whole_prompt(export_of: ExportOf) -> None:
    model = xr.load(export_of("lm-mixed", target="openvino", chunk=CHUNK), threads=1)
    assert model.prompts is not None
    calls: list[int] = []

    class Counting:
        def __init__(self, session: object, tokens: int) -> None:
            self._session, self._tokens = session, tokens

        def __getattr__(self, name: str) -> object:
            return getattr(self._session, name)

        def run_with_iobinding(self, binding: object) -> None:
            calls.append(self._tokens)
            self._session.run_with_iobinding(binding)

    model.inference, model.prompts = Counting(model.inference, 1), Counting(model.prompts, CHUNK)
    model.session().prefill(list(range(2 * CHUNK + 2)))
    assert calls == [CHUNK, CHUNK, 1, 1]


@pytest.mark.parametrize("name", ["lm-mixed", "stack-slstm"])
def test_the_weights_lie_in_the_bundle_once(name: str, export_of: ExportOf) -> None:
    one, two = export_of(name, target="coreml", chunk=1), export_of(name, target="coreml", chunk=CHUNK)
    assert (one / "model.onnx.data").read_bytes() == (two / "model.onnx.data").read_bytes()
    assert (one / "model.onnx").read_bytes() == (two / "model.onnx").read_bytes()
    assert not (one / "prompt.onnx").exists()
    graph = onnx.load(two / "prompt.onnx", load_external_data=False).graph
    tokens = next(value for value in graph.input if not value.name.startswith("past."))
    assert tokens.type.tensor_type.shape.dim[1].dim_value == CHUNK


def test_it_is_proven_with_the_bundle(export_of: ExportOf) -> None:
    folder = export_of("lm-mixed", target="openvino", chunk=CHUNK)
    names = [check.name for check in xlstm_edge.verify(folder, against=str_of(folder))]
    assert {"chunk", "structure, prompts", "reference, chunk"} <= set(names)


def str_of(folder: Path) -> Path:
    """The checkpoint that `export_of` made a bundle of, beside it."""
    return folder.parent / "lm-mixed"


def test_what_was_found_in_float16_is_said_of_prompts_too(
    checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    bundle = xlstm_edge.export(checkpoint_of(BY_NAME["lm-hf-mlstm"]), tmp_path / "b", target="qnn", chunk=16)
    assert [line for line in bundle.notes if line.startswith("float16 over 8 calls of 16 tokens: ")]


def test_a_graph_that_computes_something_else_fails(copied: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        node = next(node for node in graph.graph.node if node.op_type == "Exp")
        node.op_type = "Tanh"

    change_prompts(copied, change)
    with pytest.raises(xr.VerificationError, match="do not use it"):
        list(xlstm_edge.verify(copied))


def test_a_weight_of_its_own_is_seen(copied: Path, export_of: ExportOf) -> None:
    """Of the same shape, from elsewhere in the file of weights."""
    checkpoint = str_of(export_of("lm-mixed", target="openvino", chunk=CHUNK))

    def change(graph: onnx.ModelProto) -> None:
        tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
        shapes: dict[tuple[int, ...], onnx.TensorProto] = {}
        for tensor in tensors.values():
            other = shapes.setdefault(tuple(tensor.dims), tensor)
            if other is not tensor and tensor.external_data and other.external_data:
                places = other.external_data[1].value, tensor.external_data[1].value
                assert other.external_data[1].key == "offset"
                tensor.external_data[1].value, other.external_data[1].value = places
                return
        raise AssertionError("no two weights of one shape")

    change_prompts(copied, change)
    with pytest.raises(xr.VerificationError, match=r"expected one .* for all graphs of the bundle"):
        list(verify_against(copied, open_checkpoint(checkpoint)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graph: graph.update(chunk=1), "prompts of one token"),
        (lambda graph: graph.update(chunk=CHUNK + 1), f"a chunk of {CHUNK} as in the graph"),
        (lambda graph: graph.update(prompt=None), "as in the graph"),
        (lambda graph: graph.update(prompt="other.onnx"), "other.onnx among the bundle's files"),
        (lambda graph: graph.update(prompt="model.onnx"), f"a chunk of 1 as in the graph, got {CHUNK}"),
        (lambda graph: graph.update(prompt="../prompt.onnx"), "prompt"),
        (lambda graph: graph.pop("prompt"), "prompt"),
        (lambda graph: graph.update(file="prompt.onnx"), "prompt.onnx.data among"),
    ],
)
def test_a_manifest_that_says_otherwise(
    change: Callable[[dict[str, object]], object], words: str, copied: Path
) -> None:
    edit_json(copied / "manifest.json", lambda document: change(document["graph"]))
    with pytest.raises(xr.BundleError, match=words):
        xr.load(copied)


def test_all_logits_are_the_last_token_s_too(export_of: ExportOf) -> None:
    folder = export_of("hf-plain", target="openvino", chunk=CHUNK, all_logits=True)
    one, all_of_them = xr.load(export_of("hf-plain", chunk=16)).session(), xr.load(folder).session()
    ids = list(range(2 * CHUNK + 1))
    wanted = one.prefill(ids)
    assert np.abs(all_of_them.prefill(ids) - wanted).max() <= 1e-4 * np.ptp(wanted)


def test_integers_of_both_graphs_are_the_same(export_of: ExportOf) -> None:
    """Each group of integers has one place, and calls round as single steps do."""
    folder = export_of("shipped", target="qnn", chunk=8, quantize="a16w8", calibration_tokens=256)
    graphs = [onnx.load(folder / name, load_external_data=False).graph for name in ("model.onnx", "prompt.onnx")]
    scales = [{t.name: t.SerializeToString() for t in g.initializer if t.name.endswith("_scale")} for g in graphs]
    assert scales[0]
    assert scales[0] == scales[1]
    assert read_manifest(folder).graph.prompt == "prompt.onnx"
    model = xr.load(folder, threads=1)
    prompts, steps = model.session(), model.session()
    ids = [5, 17, 300, 42, 7, 99, 1000, 4]
    wanted = [steps.step(token) for token in ids][-1]
    assert np.abs(prompts.prefill(ids) - wanted).max() <= 1e-2 * np.ptp(wanted)
    assert len(list(xlstm_edge.verify(folder, against=SHIPPED))) >= 10


def test_tuned_it_is_the_same(copied: Path) -> None:
    before = xr.load(copied, threads=1).session().prefill(list(range(3 * CHUNK)))
    tune_bundle(copied)
    tuned = xr.load(copied)
    assert tuned.chunk == CHUNK
    assert np.abs(tuned.session().prefill(list(range(3 * CHUNK))) - before).max() <= 1e-4 * np.ptp(before)
    list(xlstm_edge.verify(copied))


def test_no_two_slices_are_added(export_of: ExportOf) -> None:
    """Of such Qualcomm's HTP takes other rows: the last token of the residual stream and of what is added to it."""
    graph = onnx.load(
        export_of("lm-mixed", target="coreml", chunk=CHUNK) / "prompt.onnx", load_external_data=False
    ).graph
    made = {output: node for node in graph.node for output in node.output}

    def kind(name: str) -> str:
        while name in made and made[name].op_type == "Reshape":
            name = made[name].input[0]
        return made[name].op_type if name in made else ""

    added = [[kind(name) for name in node.input] for node in graph.node if node.op_type == "Add"]
    assert every_exp_is_bounded(graph)
    assert ["GatherND", "GatherND"] in added
    assert ["Slice", "Slice"] not in added
