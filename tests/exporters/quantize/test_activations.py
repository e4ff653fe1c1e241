"""Products of integers: the graph, its parts, and what it computes, against the reference that rounds alike."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.quantize.activations import PARTS, read_encodings
from xlstm_edge_exporters.quantize.encodings import MARGIN, Encoded, Encoding, measure_encodings, rounded_weight
from xlstm_edge_exporters.quantize.plan import integer_products
from xlstm_edge_exporters.quantize.read import read_weights
from xlstm_edge_exporters.reference import Variant, run_variants
from xlstm_edge_exporters.targets import TARGETS
from xlstm_edge_exporters.verify import verify_against
from xlstm_edge_runtime.manifest import read_manifest
from xlstm_edge_runtime.verify import verify_bundle

from ...changed_bundles import change_tensor
from ...conftest import BY_NAME, SHIPPED, sequence_for
from ...oracles.cases import Case

OPTIONS = {"target": "qnn", "quantize": "a16w8"}
NAMES = ["lm-mixed", "large-plain", "hf-tied", "large-wide-vocab"]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return BY_NAME[request.param]


@pytest.fixture(scope="module")
def bundles(checkpoint_of: Callable[[Case], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    folder, made = tmp_path_factory.mktemp("a16w8"), dict[str, Path]()

    def make(case: Case) -> Path:
        if case.name not in made:
            text = folder / f"{case.name}.txt"
            text.write_text(" ".join(map(str, sequence_for(case, 600, 1))))
            made[case.name] = folder / case.name
            xlstm_edge.export(
                checkpoint_of(case),
                made[case.name],
                tokenizer="none",
                calibrate=text,
                calibration_tokens=512,
                **OPTIONS,
            )
        return made[case.name]

    return make


def test_integers_around_products_and_nowhere_else(case: Case, bundles: Callable[[Case], Path]) -> None:
    graph = onnx.load(bundles(case) / "model.onnx", load_external_data=False).graph
    made = {output: node for node in graph.node for output in node.output}
    types = {i.name: i.data_type for i in graph.initializer}
    products = [n for n in graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in made]
    products = [n for n in products if made[n.input[1]].op_type == "DequantizeLinear"]
    names = sorted(made[n.input[1]].input[0].removesuffix(".data") for n in products)
    assert names == sorted(read_manifest(bundles(case)).quantization.tensors)
    assert len(names) >= 4
    for node in products:
        name = made[node.input[1]].input[0].removesuffix(".data")
        assert types[f"{name}.data"] == onnx.TensorProto.INT8
        assert types[f"{name}.input_zero_point"] == types[f"{name}.output_zero_point"] == onnx.TensorProto.UINT16
        before = made[node.input[0]]
        assert list(before.input[1:]) == list(made[before.input[0]].input[1:]) == [
            f"{name}.input_scale", f"{name}.input_zero_point",
        ]  # fmt: skip
        after = [n for n in graph.node if node.output[0] in n.input]
        assert [n.op_type for n in after] == ["QuantizeLinear"]
    assert len([n for n in graph.node if n.op_type == "QuantizeLinear"]) == 2 * len(products)


def test_no_state_goes_through_integers(case: Case, bundles: Callable[[Case], Path]) -> None:
    """What comes out as present.X is what goes in as past.X: neither is a result of integers, so none can differ."""
    graph = onnx.load(bundles(case) / "model.onnx", load_external_data=False).graph
    made = {output: node for node in graph.node for output in node.output}
    for output in graph.output[1:]:
        assert made[output.name].op_type != "DequantizeLinear"
    users = [n.op_type for n in graph.node for i in n.input if i.startswith("past.")]
    assert len(graph.output) > 1
    assert users
    assert "QuantizeLinear" not in users


def test_it_computes_what_the_reference_does_that_rounds_alike(
    case: Case, bundles: Callable[[Case], Path], opened: Callable[[Case], Checkpoint]
) -> None:
    folder, checkpoint = bundles(case), opened(case)
    stored = TARGETS["qnn"].canonical_weights(checkpoint.spec, read_weights(folder / "model.onnx"))
    encodings = read_encodings(ir.load(folder / "model.onnx"))
    sequence = sequence_for(case, 20, 1)
    way = {"encoded": Variant(torch.float64, Encoded)}
    wanted = run_variants(checkpoint.spec, stored, sequence, way, marks=encodings)["encoded"]
    session = xr.load(folder, threads=1).session()
    got = np.stack([session.step(token) for token in sequence])
    assert np.abs(got[0] - wanted[0]).max() <= 1e-4 * np.ptp(wanted)
    assert np.abs(got - wanted).max() <= 5e-3 * np.ptp(wanted)  # a step of an activation may fall to either side


def test_it_proves_itself(case: Case, bundles: Callable[[Case], Path], checkpoint_of: Callable[[Case], Path]) -> None:
    assert [check.name for check in verify_bundle(bundles(case))][:3] == ["files", "graph", "step"]
    found = xlstm_edge.verify(bundles(case), against=checkpoint_of(case), tokenizer="none")
    assert any("of 8 bits as they are rounded" in check.detail for check in found)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    ".data": lambda array: -array,
    ".scales": lambda array: array * np.float32(1.1),
    ".input_scale": lambda array: array / np.float32(50),
    ".output_scale": lambda array: array / np.float32(50),
    ".input_zero_point": lambda array: array * np.uint16(0),
    ".output_zero_point": lambda array: array * np.uint16(0),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_part_is_seen(
    part: str, bundles: Callable[[Case], Path], checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    """By the bundle's own vectors and, were they made anew, by the checkpoint; hashes are made right again."""
    case = BY_NAME["large-plain"]
    folder = shutil.copytree(bundles(case), tmp_path / "b")
    change_tensor(folder, f"blocks.0.ffn.down.weight{part}", CHANGES[part])
    with pytest.raises(xr.VerificationError):
        list(verify_bundle(folder))
    with pytest.raises(xr.VerificationError):
        list(verify_against(folder, open_checkpoint(checkpoint_of(case)), tokenizer="none"))


def test_ranges_are_those_of_the_text(opened: Callable[[Case], Checkpoint]) -> None:
    case = BY_NAME["large-plain"]
    checkpoint, names = opened(case), integer_products(opened(case).spec, opened(case).weights)
    short, long = (
        measure_encodings(checkpoint.spec, checkpoint.weights, names, sequence_for(case, n, 1)[None]) for n in (40, 400)
    )
    assert short.keys() == long.keys() == set(names)
    assert all(long[name].inputs.scale >= 0.999 * short[name].inputs.scale for name in names)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 5.0), (-3.0, 0.0), (0.2, 7.0), (0.0, 0.0), (-1e-3, 1e4)])
def test_an_encoding(low: float, high: float) -> None:
    encoding = Encoding.of_range(low, high)
    assert 0 <= encoding.zero_point <= 65535
    assert encoding.rounded(torch.zeros(1)).item() == 0.0
    ends = torch.tensor([min(low, 0.0), max(high, 0.0)])
    assert (encoding.rounded(ends) - ends).abs().max() <= encoding.scale
    if high == low:
        return
    beyond = encoding.rounded(torch.tensor([1e9, -1e9]))
    assert beyond[0] <= max(high, 0.0) * MARGIN + encoding.scale * 1.01
    assert beyond[1] >= min(low, 0.0) * MARGIN - encoding.scale * 1.01


@pytest.mark.parametrize("axis", [0, 1])
def test_eight_bits_with_a_scale_an_output(axis: int) -> None:
    array: NDArray[np.float32] = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)
    array[3], array[:, 4] = 0.0, 0.0
    integers, scales = rounded_weight(array, axis)
    assert scales.shape == (array.shape[axis],)
    assert np.isfinite(scales).all()
    restored = integers * np.expand_dims(scales, 1 - axis)
    assert np.abs(restored - array).max() <= 0.5001 * scales.max()


def test_the_shipped_model_keeps_its_quality(tmp_path: Path) -> None:
    from xlstm_edge.evaluate import evaluate

    text = SHIPPED / "heldout.txt"
    xlstm_edge.export(SHIPPED, tmp_path / "float")
    xlstm_edge.export(
        SHIPPED, tmp_path / "b", calibrate=SHIPPED / "calibration.txt", calibration_tokens=2048, **OPTIONS
    )
    result = evaluate([tmp_path / "b"], against=tmp_path / "float", text=text, tokens=400)[0]
    assert result["kl_mean"] <= 0.002
    assert result["bytes"] < 6e6
