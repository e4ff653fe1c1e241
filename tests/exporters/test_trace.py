"""What the exported graphs are made of."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.interface import GraphOptions, graph_states, input_name, output_name
from xlstm_edge_exporters.model import Model
from xlstm_edge_exporters.parts import distinct_blocks, trace_parts
from xlstm_edge_exporters.passes.opset17 import ToOpset17
from xlstm_edge_exporters.passes.scan import ExpandSLSTM
from xlstm_edge_exporters.passes.tidy import Tidy
from xlstm_edge_exporters.spec import ModelSpec
from xlstm_edge_exporters.targets import TARGETS
from xlstm_edge_exporters.trace import trace
from xlstm_edge_exporters.weights import Weight
from xlstm_edge_runtime import load
from xlstm_edge_runtime.manifest import read_manifest

from ..conftest import BY_NAME, sequence_for
from ..oracles.cases import CASES, Case

BundleOf = Callable[[Case, str], Path]
NOT_PORTABLE = {"Softplus", "Neg", "RMSNormalization", "LayerNormalization", "Scan", "Loop", "If"}


def operators(bundle: Path) -> Counter[str]:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    return Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_portable_graphs_are_standard_static_opset_17(case: Case, bundle_of: BundleOf) -> None:
    model = onnx.load(bundle_of(case, "portable") / "model.onnx", load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert not NOT_PORTABLE & {node.op_type for node in model.graph.node}
    onnx.checker.check_model(str(bundle_of(case, "portable") / "model.onnx"), full_check=True)
    for value in [*model.graph.input, *model.graph.output]:
        assert all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim), value.name


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_inputs_and_outputs_are_the_state_table(case: Case, target: str, bundle_of: BundleOf) -> None:
    manifest, folder = read_manifest(bundle_of(case, target)), bundle_of(case, target)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    assert [i.name for i in model.graph.input] == [manifest.graph.input, *(row.input_name for row in manifest.state)]
    assert [o.name for o in model.graph.output] == [manifest.graph.output, *(row.output_name for row in manifest.state)]


def test_the_recurrence_runs_in_native_operators(bundle_of: BundleOf) -> None:
    count = operators(bundle_of(BY_NAME["lm-mixed"], "cpu"))  # two mLSTM blocks, one sLSTM block
    assert count["com.microsoft::LinearAttention"] == 4
    assert count["com.microsoft::CausalConvWithState"] == 3
    assert count["Scan"] == 1
    assert not {"Shape", "Expand", "Identity", "Cast", "ConstantOfShape"} & set(count)


@pytest.mark.parametrize("name", ["lm-one-head", "lm-hf-tied", "hf-tied"])
@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_tied_weights_are_stored_once(name: str, target: str, bundle_of: BundleOf) -> None:
    folder = bundle_of(BY_NAME[name], target)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    vocab, width = BY_NAME[name].config["vocab_size"], BY_NAME[name].config["embedding_dim"]
    large = [i.name for i in model.graph.initializer if sorted(i.dims) == sorted((vocab, width))]
    assert large == ["embedding.weight"]


def test_weights_are_external(bundle_of: BundleOf) -> None:
    folder = bundle_of(BY_NAME["large-plain"], "cpu")
    parameters = read_manifest(folder).model.parameters
    assert (folder / "model.onnx.data").stat().st_size >= 0.95 * 4 * parameters
    assert (folder / "model.onnx").stat().st_size < 0.5 * 4 * parameters


@pytest.mark.parametrize("name", ["lm-mixed", "lm-five-heads", "stack-slstm", "large-three-heads", "large-wide-heads"])
def test_a_batch_is_its_rows(name: str, bundle_of: BundleOf) -> None:
    case, folder = BY_NAME[name], bundle_of(BY_NAME[name], "cpu")
    model = load(folder, threads=1)
    manifest, rows = model.manifest, [sequence_for(case, 11, seed) for seed in range(3)]
    feeds = {manifest.graph.input: np.stack(rows)}
    feeds |= {
        row.input_name: array for row, array in zip(manifest.state, manifest.state.initial(3).values(), strict=True)
    }
    outputs = model.inference.run(None, feeds)
    for index, row in enumerate(rows):
        session = model.session()
        np.testing.assert_allclose(outputs[0][index], session.prefill(row), atol=1e-4, rtol=1e-4)
        for spec, batch in zip(manifest.state, outputs[1:], strict=True):
            np.testing.assert_allclose(spec.from_graph(batch)[index], session.state[spec.name][0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["lm-one-head", "large-wide-vocab", "stack-mixed", "lm-bare"])
def test_all_logits(name: str, export_of: Callable[..., Path], bundle_of: BundleOf) -> None:
    case, sequence = BY_NAME[name], sequence_for(BY_NAME[name], 12)
    bundle = export_of(name, chunk=16, all_logits=True)
    manifest = read_manifest(bundle)
    session = ort.InferenceSession(bundle / "model.onnx")
    feeds = {manifest.graph.input: sequence[None]}
    feeds |= {
        row.input_name: array for row, array in zip(manifest.state, manifest.state.initial().values(), strict=True)
    }
    every = session.run([manifest.graph.output], feeds)[0][0]
    one = load(bundle_of(case, "cpu")).session()
    for token, got in zip(sequence, every, strict=True):
        expected = one.step(token)
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.ptp(expected))
    np.testing.assert_allclose(load(bundle).session().prefill(sequence), every[-1], atol=1e-5)


def test_onnxruntime_alone_can_run_a_bundle_described_by_its_manifest(bundle_of: BundleOf) -> None:
    folder = bundle_of(BY_NAME["lm-mixed"], "portable")
    manifest = json.loads((folder / "manifest.json").read_text())
    session = ort.InferenceSession(folder / manifest["graph"]["file"])
    feeds = {manifest["graph"]["input"]: np.array([[3]])}
    for row in manifest["state"]["tensors"]:
        feeds[row["input"]] = np.full((1, *row["shape"]), row["initial"], np.float32)
    logits = session.run([manifest["graph"]["output"]], feeds)[0]
    np.testing.assert_allclose(logits[0], load(folder).session().step(3), atol=1e-5)


def test_tracing_needs_no_weights(opened: Callable[[Case], Checkpoint]) -> None:
    model = trace(opened(BY_NAME["lm-mixed"]).spec, GraphOptions(chunk=8))
    parameters = [
        v for n, v in model.graph.initializers.items() if n.startswith(("blocks.", "norm", "head", "embedding"))
    ]
    assert len(parameters) > 20
    assert all(value.const_value is None for value in parameters)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:# The axis name")  # of torch's exporter, about itself
@pytest.mark.parametrize("target", TARGETS)
def test_the_graph_of_parts_is_torch_s_own_trace_of_the_whole(
    target: str, opened: Callable[[Case], Checkpoint]
) -> None:
    spec = opened(BY_NAME["lm-mixed"]).spec
    mlstm, slstm = {type(block.mixer): block for block in spec.blocks}.values()
    spec = replace(spec, blocks=(mlstm, slstm, mlstm, mlstm, slstm, mlstm))
    assert distinct_blocks(spec.blocks) == ((mlstm, slstm, mlstm), (0, 1, 2, 2, 1, 2))
    options = GraphOptions(target=target, chunk=1 if TARGETS[target].static else 8)
    assert formulas(trace(spec, options).graph) == formulas(traced_whole(spec, options).graph)


def traced_whole(spec: ModelSpec, options: GraphOptions) -> ir.Model:
    """All blocks in one call of torch.onnx.export."""
    target, table = options.lowering, graph_states(spec, options)
    static = target.static
    with FakeTensorMode():
        module = Model(target.spec(spec), target.ops(options.chunk)).eval()
        state = {n: torch.zeros(s) for n, s in table.initial_shapes(1 if static else 2).items()}
        examples = {"inputs": torch.zeros((1, 1) if static else (2, 3), dtype=torch.int64), "state": state}
    axes = {"inputs": {0: "batch", 1: "tokens"}, "state": {row.name: {0: "batch"} for row in table}}
    model = torch.onnx.export(
        module,
        (),
        kwargs=examples,
        dynamo=True,
        optimize=False,
        opset_version=target.traced_opset,
        dynamic_shapes=None if static else axes,
        input_names=[input_name(spec), *(row.input_name for row in table)],
        output_names=[output_name(spec), *(row.output_name for row in table)],
        verbose=False,
    ).model
    for name, _ in module.named_parameters():
        model.graph.initializers[name].const_value = None
    for step in (Tidy(), *target.passes()):
        step(model)
    return model


def formulas(graph: ir.Graph) -> dict[str | None, int]:
    """Output -> what it is computed by: operators, attributes, constants, names of inputs and weights, all the way up."""
    known: dict[ir.Value | None, int] = {None: 0}
    known |= {value: hash(value.name) for value in graph.inputs}
    for value in graph.initializers.values():
        known[value] = hash(value.name if value.const_value is None else value.const_value.tobytes())
    for node in graph:
        graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        inner = [[n.op_type for n in graph] for graph in graphs]
        plain = sorted(str(a) for a in node.attributes.values() if a.type != ir.AttributeType.GRAPH)
        for value in node.outputs:
            inputs = [known[i] for i in node.inputs]
            known[value] = hash((node.domain, node.op_type, str(plain), str(inner), value.index(), str(inputs)))
    return {value.name: known[value] for value in graph.outputs}


@pytest.mark.parametrize("chained", [True, False])
def test_ctrl_c_that_torch_took_for_a_failure_is_ctrl_c(
    chained: bool, opened: Callable[[Case], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        if not chained:
            raise RuntimeError("failed to decompose: <class 'KeyboardInterrupt'>")
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("failed to decompose") from error

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(KeyboardInterrupt):
        trace(opened(BY_NAME["large-plain"]).spec, GraphOptions(chunk=61))  # not traced before: traces are kept


def test_tracing_takes_no_longer_for_more_blocks(opened: Callable[[Case], Checkpoint]) -> None:
    spec = opened(BY_NAME["large-plain"]).spec
    deep = replace(spec, blocks=spec.blocks[:1] * 400)
    parts = trace_parts(deep, GraphOptions())
    assert {name.split(".")[2] for name in parts.parameters if ".blocks." in name} == {"0", "1"}
    assert len([name for name in trace(deep, GraphOptions()).graph.initializers if name.endswith("qkvo.weight")]) == 400


def test_export_holds_one_tensor_at_a_time(
    checkpoint_of: Callable[[Case], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    from xlstm_edge_exporters import bundle as writer

    live, peak = 0, 0

    def watched(weight: Weight) -> Weight:
        def load_one() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            nonlocal live, peak
            array, size = np.array(weight.load()), 4 * int(np.prod(weight.shape))
            live += size
            peak = max(peak, live)

            def gone() -> None:
                nonlocal live
                live -= size

            weakref.finalize(array, gone)
            return array

        return Weight(weight.shape, load_one)

    checkpoint = open_checkpoint(checkpoint_of(BY_NAME["large-plain"]))
    weights = {name: watched(weight) for name, weight in checkpoint.weights.items()}
    model = trace(checkpoint.spec, GraphOptions())
    watched_checkpoint = Checkpoint(checkpoint.folder, checkpoint.files, checkpoint.config, checkpoint.spec, weights)
    writer.write_graph(model, watched_checkpoint, tmp_path)
    largest = max(4 * int(np.prod(weight.shape)) for weight in weights.values())
    total = sum(4 * int(np.prod(weight.shape)) for weight in weights.values())
    assert largest <= peak <= 2 * largest < total / 2


def placeholder_model() -> ir.Model:
    shapes = {
        "wx": (2, 1, 1, 1, 12),
        "R": (1, 3, 12),
        "y": (1, 1, 1, 3),
        "c": (1, 1, 1, 3),
        "n": (1, 1, 1, 3),
        "m": (1, 1, 1, 3),
    }
    values = [ir.Value(name=n, shape=ir.Shape(s), type=ir.TensorType(ir.DataType.FLOAT)) for n, s in shapes.items()]
    node = ir.Node("xlstm_edge", "SLSTM", values, num_outputs=5)
    for output, name in zip(node.outputs, ["y2", "c2", "n2", "m2", "ys"], strict=True):
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape(shapes["y"] if name != "ys" else (2, 1, 1, 1, 3))
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 23, "xlstm_edge": 1}, name="g")
    return ir.Model(graph, ir_version=10)


def test_scan_pass_expands_the_placeholder_and_then_has_nothing_to_do() -> None:
    model = placeholder_model()
    assert ExpandSLSTM()(model).modified
    assert [node.op_type for node in model.graph] == ["Scan"]
    assert "xlstm_edge" not in model.opset_imports
    onnx.checker.check_model(ir.to_proto(model))
    assert not ExpandSLSTM()(model).modified


def test_opset17_pass_moves_axes_and_refuses_what_it_does_not_know() -> None:
    x = ir.Value(name="x", shape=ir.Shape([2, 3]), type=ir.TensorType(ir.DataType.FLOAT))
    axes = ir.Value(name="axes", const_value=ir.tensor([-1], name="axes"))
    mean = ir.Node("", "ReduceMean", [x, axes], [ir.AttrInt64("keepdims", 1)])
    graph = ir.Graph([x], mean.outputs, nodes=[mean], initializers=[axes], opset_imports={"": 18}, name="g")
    model = ir.Model(graph, ir_version=10)
    ToOpset17()(model)
    assert mean.attributes["axes"].as_ints() == (-1,)
    assert len(mean.inputs) == 1
    assert model.opset_imports[""] == 17
    graph.append(ir.Node("", "Mish", [x]))
    with pytest.raises(ValueError, match="Mish"):
        ToOpset17()(model)


def test_tidy_pass_shares_constants_and_keeps_weights() -> None:
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    constants = [ir.Value(name=f"c{i}", const_value=ir.tensor([1.0, 2.0], name=f"c{i}")) for i in range(2)]
    weight = ir.Value(name="w", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    first = ir.Node("", "Add", [x, constants[0]])
    second = ir.Node("", "Mul", [first.outputs[0], constants[1]])
    third = ir.Node("", "Add", [second.outputs[0], weight])
    graph = ir.Graph(
        [x],
        third.outputs,
        nodes=[first, second, third],
        initializers=[*constants, weight],
        opset_imports={"": 23},
        name="g",
    )
    model = ir.Model(graph, ir_version=10)
    assert Tidy()(model).modified
    assert sorted(graph.initializers) == ["constant.0", "w"]
    assert first.inputs[1] is second.inputs[1]
    assert not Tidy()(model).modified
