"""Quantization: integers and packing, plans, graphs, GPTQ, budgets, recipes; against dense arithmetic, not itself."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import xlstm_edge
from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.ops.parallel import Parallel
from xlstm_edge_exporters.ops.rounded import Rounded, by_group
from xlstm_edge_exporters.quantize.budget import measure_costs, spend_budget
from xlstm_edge_exporters.quantize.calibrate import calibration_batch, quantize_with_gptq, with_packed
from xlstm_edge_exporters.quantize.gptq import corrected, gptq
from xlstm_edge_exporters.quantize.plan import QuantizeOptions, fitting_group, make_plan, planned_bytes
from xlstm_edge_exporters.quantize.read import read_weights
from xlstm_edge_exporters.quantize.scheme import BITS, GROUPS, GROUPS_OF_2_BITS, Scheme
from xlstm_edge_exporters.quantize.sources import round_searched, round_to_nearest
from xlstm_edge_exporters.reference import Way, build, initial_state, run_reference, run_ways
from xlstm_edge_runtime import InputError, load

from .command import Command, assert_nothing_written, assert_one_sentence
from .conftest import BY_NAME, SHIPPED, sequence_for
from .oracles.cases import Case

CheckpointOf = Callable[[Case], Path]
RNG = np.random.default_rng(0)


SCHEMES = [(bits, group) for bits in BITS for group in GROUPS if bits != 2 or group in GROUPS_OF_2_BITS]


@given(st.sampled_from([s for s in SCHEMES if s[1] <= 64]), st.integers(1, 5), st.integers(1, 150), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rounding_error_is_at_most_half_a_step(sizes: tuple[int, int], rows: int, columns: int, seed: int) -> None:
    bits, group = sizes
    scheme, matrix = Scheme(bits, group), np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    packed = scheme.quantize(matrix)
    assert packed.data.shape == (rows, -(-columns // group), group * bits // 8)
    steps = np.repeat(np.abs(packed.scales), group, 1)[:, :columns]
    error = np.abs(scheme.dequantize(packed, columns) - matrix)
    # The end of the range that reaches less far may clip by one whole step.
    assert (error <= steps * 1.0001).all()
    assert (error <= steps * 0.5001).mean() > 0.5
    assert packed.data.nbytes + packed.scales.nbytes == scheme.nbytes(rows, columns)


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_lossless(bits: int) -> None:
    scheme = Scheme(bits, 32)
    integers = RNG.integers(0, 2**bits, (3, 2, 32)).astype(np.uint8)
    assert np.array_equal(scheme.unpack(scheme.pack(integers, np.ones((3, 2), np.float32)).data), integers)


def test_a_zero_matrix_stays_zero() -> None:
    packed = Scheme(4, 32).quantize(np.zeros((2, 40), np.float32))
    assert not Scheme(4, 32).dequantize(packed, 40).any()


@pytest.mark.parametrize(("bits", "group"), SCHEMES)
@pytest.mark.parametrize(("rows", "columns"), [(24, 256), (7, 48), (10, 50), (33, 200)])
def test_onnxruntime_reads_the_layout(bits: int, group: int, rows: int, columns: int) -> None:
    """The operator in full precision mode computes what `dequantize` says, also for a last group that is not full."""
    scheme, matrix = Scheme(bits, group), RNG.normal(size=(rows, columns)).astype(np.float32)
    packed = scheme.quantize(matrix)
    x = RNG.normal(size=(2, columns)).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", K=columns, N=rows, bits=bits, block_size=group
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, rows])],
        [onnx.numpy_helper.from_array(packed.data, "q"), onnx.numpy_helper.from_array(packed.scales, "s")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    came = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(came, x @ scheme.dequantize(packed, columns).T, atol=2e-4, rtol=1e-4)


def test_searched_scales_beat_plain_ones() -> None:
    scheme, matrix = Scheme(4, 32), (RNG.normal(size=(64, 128)) ** 3).astype(np.float32)
    plain, searched = (scheme.dequantize(f("w", matrix, scheme), 128) for f in (round_to_nearest, round_searched))
    assert ((searched - matrix) ** 2).sum() < 0.97 * ((plain - matrix) ** 2).sum()


@pytest.mark.parametrize("bits", [2, 4])
def test_gptq_beats_rounding_on_correlated_inputs(bits: int) -> None:
    columns, scheme = 96, Scheme(bits, 32)
    mix = RNG.normal(size=(columns, columns)) * (RNG.random(columns) ** 3)
    inputs = (RNG.normal(size=(2000, columns)) @ mix.T).astype(np.float32)
    matrix = RNG.normal(size=(40, columns)).astype(np.float32)
    hessian = torch.from_numpy(inputs.T @ inputs)
    exact = inputs @ matrix.T

    def error(packed: Any) -> float:
        return float(((inputs @ scheme.dequantize(packed, columns).T - exact) ** 2).sum())

    assert error(gptq(matrix, hessian, scheme)) < 0.6 * error(round_searched("w", matrix, scheme))


def test_a_correction_makes_up_for_errors_of_the_inputs() -> None:
    """Outputs on disturbed inputs come nearer to those on the undisturbed ones, on samples the fit never saw."""
    wanted = RNG.normal(size=(4000, 24)).astype(np.float32)
    came = (wanted @ (np.eye(24) + 0.2 * RNG.normal(size=(24, 24)))).astype(np.float32)
    matrix = RNG.normal(size=(7, 24)).astype(np.float32)
    moved = corrected(matrix, torch.from_numpy(wanted[:2000]), torch.from_numpy(came[:2000]))

    def error(weight: np.ndarray[Any, Any]) -> float:
        return float(((came[2000:] @ weight.T - wanted[2000:] @ matrix.T) ** 2).sum())

    assert error(moved) < 0.2 * error(matrix)
    same = corrected(matrix, torch.from_numpy(wanted), torch.from_numpy(wanted))
    np.testing.assert_array_equal(same, matrix)


@pytest.mark.parametrize("name", ["a1-mixed", "a1-five-heads", "b-plain", "b-one-head", "b-uncapped", "c-one-head"])
def test_the_parallel_form_is_the_recurrence(name: str, opened: Callable[[Case], Checkpoint]) -> None:
    checkpoint, sequence = opened(BY_NAME[name]), sequence_for(BY_NAME[name], 50)
    expected = run_reference(checkpoint.spec, checkpoint.weights, sequence).outputs
    atonce = run_ways(checkpoint.spec, checkpoint.weights, sequence, {"exact": Way()})["exact"]
    np.testing.assert_allclose(atonce, expected, atol=1e-11 * np.ptp(expected))  # both official: with their epsilon
    model = build(checkpoint.spec, checkpoint.weights, torch.float64, ops=Parallel(), all_logits=True)
    came = model(torch.from_numpy(sequence)[None], initial_state(checkpoint.spec, torch.float64))[0][0].numpy()
    # b-one-head has a large epsilon; a memory that needs no stabilizer does without its small one.
    np.testing.assert_allclose(came, expected, atol=1e-6 * np.ptp(expected))


@pytest.mark.parametrize(
    ("name", "shape", "group", "fits"),
    [
        (
            "blocks.0.ffn.down.weight",
            (2752, 1024),
            256,
            256,
        ),  # a sixteenth of 2,752 is more than the 64 columns missing
        ("blocks.0.ffn.down.weight", (384, 256), 256, 128),
        ("blocks.0.ffn.down.weight", (48, 64), 256, 32),
        ("blocks.0.mixer.up.weight", (64, 512), 32, 32),
        ("head.weight", (500, 1024), 256, 128),
        ("embedding.weight", (500, 96), 128, 32),
        ("embedding.weight", (500, 1000), 256, 128),
    ],
)
def test_groups_fit_their_matrix(name: str, shape: tuple[int, int], group: int, fits: int) -> None:
    assert fitting_group(name, shape, group) == fits


def test_gptq_without_correlation_is_rounding() -> None:
    scheme, matrix = Scheme(8, 32), RNG.normal(size=(5, 50)).astype(np.float32)
    packed = gptq(matrix, torch.eye(50), scheme)
    assert np.abs(scheme.dequantize(packed, 50) - matrix).max() < 0.6 * np.abs(packed.scales).max()


def test_plan_follows_options(opened: Callable[[Case], Checkpoint]) -> None:
    checkpoint = opened(BY_NAME["b-plain"])  # width 64, untied
    weights = checkpoint.weights
    options = QuantizeOptions(bits=4, head_bits=8, embedding_bits=32, keep={"blocks.0.*": 8, "blocks.1.ffn.*": 32})
    plan = make_plan(checkpoint.spec, weights, options)
    assert plan["head.weight"].bits == plan["blocks.0.mixer.qkvo.weight"].bits == 8
    assert plan["blocks.1.mixer.out.weight"].bits == 4
    assert "embedding.weight" not in plan
    assert "blocks.1.ffn.down.weight" not in plan
    assert not [name for name in plan if "gates" in name or "norm" in name]
    with pytest.raises(InputError, match="nothing"):
        make_plan(checkpoint.spec, weights, QuantizeOptions(bits=4, keep={"nothing.*": 8}))


BAD_OPTIONS = [
    {"bits": 3}, {"bits": 2, "group": 16}, {"bits": 2, "group": 256}, {"bits": 4, "group": 48},
    {"bits": 4, "head_bits": 5}, {"bits": 4, "method": "awq"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_OPTIONS, ids=str)
def test_bad_quantize_options(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        QuantizeOptions(**bad)


QUANTIZED = [
    ("a1-mixed", {"quantize": "int8"}),
    ("a1-mixed", {"quantize": "int4", "group_size": 16}),
    ("a1-one-head", {"quantize": "int4", "head_bits": 8, "group_size": 16}),
    ("a1-three-heads", {"quantize": "int8", "keep": {"blocks.0.*": 4}}),
    ("a3-mixed", {"quantize": "int8"}),
    ("b-three-heads", {"quantize": "int4", "embedding_bits": 8}),
    ("b-plain", {"quantize": "int4", "group_size": 64, "all_logits": True}),
    ("c-tied", {"quantize": "int4"}),
    ("b-plain", {"quantize": "int4", "keep": {"blocks.*": 2}}),
    ("a1-mixed", {"quantize": "int4", "group_size": 64, "keep": {"blocks.*": 2}, "head_bits": 2, "embedding_bits": 8}),
    ("c-one-head", {"quantize": "int8", "group_size": 128, "head_bits": 2}),
    ("a2-mlstm", {"quantize": "int8"}),  # tied, and the width is no whole group
]


@pytest.mark.parametrize(("name", "options"), QUANTIZED, ids=str)
def test_a_quantized_bundle_computes_with_the_weights_it_holds(
    name: str, options: dict[str, Any], checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    case, bundle = BY_NAME[name], tmp_path / "bundle"
    exported = xlstm_edge.export(checkpoint_of(case), bundle, chunk=16, **options)
    checks = {check.name for check in xlstm_edge.verify(bundle, against=checkpoint_of(case), threads=1)}
    assert {"weights", "tensors", "reference, step", "reference, chunk", "reference, weights"} <= checks
    checkpoint, stored = open_checkpoint(checkpoint_of(case)), read_weights(bundle / "model.onnx")
    assert {n: w.shape for n, w in stored.items()} == {n: w.shape for n, w in checkpoint.weights.items()}
    sequence = sequence_for(case, 40)
    tensors = exported.manifest.quantization["tensors"]
    groups = {tensor: entry["group"] for tensor, entry in tensors.items()}
    way = {"rounded": Way(ops=partial(Rounded, by_group))}
    expected = run_ways(checkpoint.spec, stored, sequence, way, groups=groups)["rounded"]
    session = load(bundle, threads=1).session()
    errors = [np.abs(session.step(t) - e).max() / np.ptp(e) for t, e in zip(sequence, expected, strict=True)]
    # Exact but for activations on a rounding border, which float32 and float64 may see on different sides.
    assert np.median(errors) <= 1e-4
    assert max(errors) <= 0.02
    for tensor, scheme in tensors.items():
        matrix, original = stored[tensor].load(), checkpoint.weights[tensor].load()
        relative = np.linalg.norm(matrix - original) / np.linalg.norm(original)
        assert relative < {8: 0.01, 4: 0.14, 2: 0.6}[scheme["bits"]]


def test_all_matrix_products_of_large_weights_are_quantized(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    xlstm_edge.export(checkpoint_of(BY_NAME["b-three-heads"]), tmp_path / "bundle", quantize="int4")
    graph = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 2 * 4 + 1
    assert {a.i for node in nodes for a in node.attribute if a.name == "accuracy_level"} == {4}
    assert sum(len(node.input) == 6 for node in nodes) == 2 * 4  # the biases went into the nodes
    left = [node.input[1] for node in graph.node if node.op_type in ("MatMul", "FusedMatMul")]
    assert left
    assert all("gates" in name or name.startswith("constant.") for name in left)  # constants repeat numbers per head


def test_tied_integers_are_stored_once(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    xlstm_edge.export(checkpoint_of(BY_NAME["a2-tied"]), tmp_path / "bundle", quantize="int4")
    graph = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False).graph
    places = {
        i.name: {e.key: e.value for e in i.external_data}
        for i in graph.initializer
        if i.name.startswith("embedding.weight.")
    }
    assert places["embedding.weight.table"] == places["embedding.weight.data"]
    assert len(places) == 3


def test_bundle_is_as_small_as_planned(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(SHIPPED)
    bundle = xlstm_edge.export(SHIPPED, tmp_path / "bundle", quantize="int4")
    plan = make_plan(checkpoint.spec, checkpoint.weights, QuantizeOptions(bits=4))
    wanted = planned_bytes({n: w.shape for n, w in checkpoint.weights.items()}, plan)
    size = bundle.manifest.files["model.onnx.data"].bytes
    assert wanted * 0.98 <= size <= wanted * 1.05


@pytest.fixture(scope="module")
def shipped_ids() -> np.ndarray[Any, Any]:
    from xlstm_edge_exporters.export import read_ids

    return read_ids(open_checkpoint(SHIPPED), SHIPPED / "calibration.txt")


def test_gptq_keeps_quality_better_than_rounding_at_the_same_bytes(shipped_ids: np.ndarray[Any, Any]) -> None:
    from xlstm_edge_exporters.export import read_ids

    checkpoint = open_checkpoint(SHIPPED)
    spec, weights = checkpoint.spec, checkpoint.weights
    held = read_ids(checkpoint, SHIPPED / "heldout.txt")[:600]
    plan = make_plan(spec, weights, QuantizeOptions(bits=4, group=64))

    def log_probabilities(packed: dict[str, Any]) -> np.ndarray[Any, Any]:
        outputs = run_reference(spec, with_packed(weights, packed, plan), held, dtype=torch.float32).outputs
        return outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)

    expected = log_probabilities({})
    batch = calibration_batch(shipped_ids)[::4]
    rounded = {n: round_to_nearest(n, _matrix(n, weights[n].load()), scheme) for n, scheme in plan.items()}
    costs = [
        float((np.exp(expected) * (expected - log_probabilities(packed))).sum(1).mean())
        for packed in (quantize_with_gptq(spec, weights, plan, batch), rounded)
    ]
    assert 0 < costs[0] < 0.9 * costs[1]


def _matrix(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array if name in ("embedding.weight", "head.weight") else np.ascontiguousarray(array.T)


def test_a_budget_is_kept_and_spent_where_it_helps(shipped_ids: np.ndarray[Any, Any]) -> None:
    checkpoint = open_checkpoint(SHIPPED)
    shapes = {n: w.shape for n, w in checkpoint.weights.items()}
    low = make_plan(checkpoint.spec, checkpoint.weights, QuantizeOptions(bits=4))
    least = planned_bytes(shapes, low)
    batch = calibration_batch(shipped_ids)[:2]
    target = least * 1.1 / 1e6
    plan = spend_budget(checkpoint, low, batch, mb=target)
    assert least < planned_bytes(shapes, plan) <= target * 1e6
    raised = {name for name in plan if plan[name].bits == 8}
    costs = measure_costs(checkpoint, low, batch)
    assert all(cost >= 0 for cost in costs.values())
    assert max(costs, key=lambda n: costs[n] / np.prod(shapes[n])) in raised
    chosen = {name for name in low if name.endswith("ffn.down.weight")}
    plan = spend_budget(checkpoint, low, batch[:1], mb=100, fixed=chosen)
    assert {name for name in plan if plan[name].bits == 4} == chosen
    with pytest.raises(InputError, match="target"):
        spend_budget(checkpoint, low, batch, mb=0.1)


@pytest.mark.parametrize("name", ["a2-tied", "b-plain"])
def test_bits_chosen_by_hand_are_known(name: str, opened: Callable[[Case], Checkpoint]) -> None:
    checkpoint = opened(BY_NAME[name])
    options = QuantizeOptions(bits=4, head_bits=4, embedding_bits=8, keep={"blocks.0.*": 4})
    plan = make_plan(checkpoint.spec, checkpoint.weights, options)
    assert plan["embedding.weight"].bits == 8  # tied: the greater of the two
    by_hand = {n for n in plan if options.by_hand(n, tied=checkpoint.spec.tied)}
    assert by_hand == {n for n in plan if n.startswith(("blocks.0.", "embedding.", "head."))}
    options = QuantizeOptions(bits=4, head_bits=8)
    by_hand = {n for n in plan if options.by_hand(n, tied=checkpoint.spec.tied)}
    assert by_hand == {"embedding.weight" if checkpoint.spec.tied else "head.weight"}


def test_a_recipe_reproduces_an_export(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    (tmp_path / "text").write_text(" ".join(map(str, RNG.integers(0, 97, 600))))
    (tmp_path / "recipe.toml").write_text(
        'quantize = "int4"\nmethod = "gptq"\ncalibrate = "text"\ngroup_size = 32\nhead_bits = 8\n[keep]\n"blocks.0.*" = 8\n'
    )
    checkpoint = checkpoint_of(BY_NAME["a1-mixed"])
    first, second = tmp_path / "first", tmp_path / "second"
    assert command("export", checkpoint, "-o", first, "--recipe", tmp_path / "recipe.toml").code == 0
    words = ("--quantize", "int4", "--method", "gptq", "--calibrate", tmp_path / "text", "--group-size", 32)
    assert command("export", checkpoint, "-o", second, *words, "--head-bits", 8, "--keep", "blocks.0.*=8").code == 0
    hashes = [json.loads((p / "manifest.json").read_text())["files"] for p in (first, second)]
    assert hashes[0] == hashes[1]


BAD = {
    "gptq without a text": ("--quantize", "int4", "--method", "gptq"),
    "mixed without a text": ("--quantize", "mixed"),
    "options without quantize": ("--head-bits", "8"),
    "portable": ("--quantize", "int8", "--flavour", "portable"),
    "three bits": ("--quantize", "int4", "--head-bits", "3"),
    "odd group": ("--quantize", "int4", "--group-size", "33"),
    "2 bits in groups of 16": ("--quantize", "int4", "--group-size", "16", "--keep", "blocks.*=2"),
    "pattern": ("--quantize", "int4", "--keep", "blocks.0"),
    "pattern that matches nothing": ("--quantize", "int4", "--keep", "x=8"),
    "target without mixed": ("--quantize", "int4", "--target-mb", "3"),
    "no such text": ("--quantize", "int4", "--method", "gptq", "--calibrate", "nowhere"),
    "no such recipe": ("--recipe", "nowhere.toml"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_quantization_requests(name: str, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    result = command("export", checkpoint_of(BY_NAME["a1-mixed"]), "-o", tmp_path / "bundle", *BAD[name])
    assert_one_sentence(result, 2)
    assert_nothing_written(tmp_path, set())


FLOAT_BITS = 'quantize = "int4"\n[keep]\n"blocks.0.*" = 8.0'


@pytest.mark.parametrize(
    "text", ["quantise = 'int4'", "chunk = 'many'", "chunk = true", "[", "quantize = 'int3'", FLOAT_BITS]
)
def test_bad_recipes(text: str, checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    result = command(
        "export", checkpoint_of(BY_NAME["a1-mixed"]), "-o", tmp_path / "bundle", "--recipe", tmp_path / "recipe.toml"
    )
    assert_one_sentence(result, 2)
    assert_nothing_written(tmp_path, {"recipe.toml"})


def test_a_short_calibration_text_is_refused() -> None:
    with pytest.raises(InputError, match="calibration"):
        calibration_batch(np.arange(100))
