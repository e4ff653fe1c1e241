"""A quantized bundle opened with float weights: the numbers that its integers mean, and only where that is faster."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import xlstm_edge_runtime as xr
from xlstm_edge.roofline import bytes_per_token
from xlstm_edge_runtime import float_graph, hardware, tune
from xlstm_edge_runtime.float_graph import float_bytes, write_float_graph
from xlstm_edge_runtime.graph_file import check_graph_file
from xlstm_edge_runtime.manifest import file_entry, read_manifest
from xlstm_edge_runtime.rates import open_trial
from xlstm_edge_runtime.vectors import read_vectors
from xlstm_edge_runtime.verify import float_pass

from ..arm64.boards import BOARDS
from ..command import Command, assert_one_sentence
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "a bias, padded blocks": ("large-fused", {"quantize": "int4", "method": "rtn"}),
    "sLSTM": ("lm-mixed", {"quantize": "int4", "method": "rtn"}),
    "a tied table": ("lm-five-heads", {"quantize": "int4", "method": "rtn", "block_size": 16}),
    "8 bits": ("large-plain", {"quantize": "int8"}),
    "2 bits": ("large-plain", {"quantize": "int4", "method": "rtn", "keep": {"blocks.*.ffn.*": 2}, "block_size": 64}),
    "some in float": ("large-plain", {"quantize": "int4", "method": "rtn", "keep": {"blocks.0.*": 32}}),
    "vectors": ("stack-mixed", {"quantize": "int8"}),
}


@pytest.fixture
def exported(export_of: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(form: str) -> Path:
        case, options = FORMS[form]
        return Path(shutil.copytree(export_of(case, **options), tmp_path / "bundle"))

    return make


@pytest.mark.parametrize("form", FORMS)
def test_float_products_are_the_stored_weights_with_float_activations(
    form: str, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    """As near to the float64 reference of these weights as float32 comes; int8 activations are far beyond that."""
    bundle = exported(form)
    (place := tmp_path / "float").mkdir()
    write_float_graph(bundle / "model.onnx", place)
    manifest = read_manifest(bundle)
    check_graph_file(place / "model.onnx", {"model.onnx.data"}, manifest.graph.chunk)
    before, after = (onnx.load(folder / "model.onnx") for folder in (bundle, place))
    products = [node for node in before.graph.node if node.op_type == "MatMulNBits"]
    assert products
    assert any(len(node.input) > 3 for node in products) == (form == "a bias, padded blocks")
    assert not [node for node in after.graph.node if node.op_type == "MatMulNBits"]
    sizes = {n.input[1]: {a.name: a.i for a in n.attribute} for n in products}
    assert float_bytes(bundle / "model.onnx") == sum(4 * size["K"] * size["N"] for size in sizes.values())
    read = {name for node in after.graph.node for name in node.input}
    assert {tensor.name for tensor in after.graph.initializer if tensor.data_type == onnx.TensorProto.UINT8} <= read
    vectors = read_vectors(bundle, manifest)
    float_pass(open_trial(bundle, place, 1, 20), vectors)
    if form in ("sLSTM", "8 bits"):
        with pytest.raises(xr.VerificationError):
            float_pass(xr.load(bundle, threads=1), vectors)


def test_a_product_of_another_form_is_refused(exported: Callable[[str], Path], tmp_path: Path) -> None:
    graph = onnx.load(exported("8 bits") / "model.onnx")
    node = next(node for node in graph.graph.node if node.op_type == "MatMulNBits")
    for inputs in ([*node.input[:3], "zero points"], [*node.input[:3], "", "an order"]):
        changed = onnx.ModelProto()
        changed.CopyFrom(graph)
        found = next(node for node in changed.graph.node if node.op_type == "MatMulNBits")
        del found.input[:]
        found.input.extend(inputs)
        onnx.save(changed, tmp_path / "other.onnx")
        with pytest.raises(ValueError, match="form of its own"):
            float_bytes(tmp_path / "other.onnx")
    for spoil in (lambda a: a.ClearField("name"), lambda a: setattr(a, "name", "k")):
        changed.CopyFrom(graph)
        spoil(next(node for node in changed.graph.node if node.op_type == "MatMulNBits").attribute[0])
        onnx.save(changed, tmp_path / "other.onnx")
        with pytest.raises(ValueError, match="form of its own"):
            float_bytes(tmp_path / "other.onnx")
    for key in ("location", "offset", "length"):  # the last two may be left out, says ONNX; an export does not
        changed = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False)
        tensor = next(tensor for tensor in changed.graph.initializer if tensor.external_data)
        kept = [(entry.key, entry.value) for entry in tensor.external_data if entry.key != key]
        del tensor.external_data[:]
        for name, value in kept:
            tensor.external_data.add(key=name, value=value)
        onnx.save(changed, tmp_path / "other.onnx")
        (tmp_path / key).mkdir()
        with pytest.raises(ValueError, match="form of its own"):
            write_float_graph(tmp_path / "other.onnx", tmp_path / key)
    scales = next(tensor for tensor in graph.graph.initializer if tensor.name == node.input[2])
    scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales)[:-1], scales.name))
    onnx.save(graph, tmp_path / "other.onnx")
    (tmp_path / "place").mkdir()
    with pytest.raises(ValueError, match="other sizes"):
        write_float_graph(tmp_path / "other.onnx", tmp_path / "place")


@pytest.fixture
def slow_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which products of integers are slow, as far as the clock is concerned."""
    measure = tune.decode_rate

    def slower(model: xr.Model) -> float:
        return measure(model) * (1 if is_float(model) else 0.01)

    for module in ("tune", "rates"):
        monkeypatch.setattr(f"xlstm_edge_runtime.{module}.decode_rate", slower)


def is_float(model: xr.Model) -> bool:
    """Whether it was opened from the folder in which float weights are tried."""
    return tune.IN_FLOAT in Path(model.inference._model_path).parts


@pytest.mark.usefixtures("slow_integers")
def test_where_floats_are_faster_a_tuned_bundle_has_float_weights(
    exported: Callable[[str], Path], command: Command
) -> None:
    bundle = exported("sLSTM")
    facts = json.loads(command("tune", bundle, "--json").out)
    assert facts["weights"] == "float32"
    assert sorted(path.name for path in (bundle / "tuned").iterdir()) == ["model.onnx", "model.onnx.data", "tuned.json"]
    model = xr.load(bundle)
    assert model.tuning is not None
    assert model.chunk == facts["chunk"]
    assert bool(model.in_place) == facts["in_place"]
    assert bytes_per_token(model) > 2 * bytes_per_token(xr.load(bundle, tuned=False))  # what bench counts
    float_pass(model, read_vectors(bundle, model.manifest))
    result = command("verify", bundle)
    assert result.code == 0
    assert "as float32" in result.out
    # Another graph in its place, its hashes in the record: the reference is what shows it.
    record = json.loads((bundle / "tuned" / "tuned.json").read_text())
    graph = onnx.load(bundle / "tuned" / "model.onnx")
    weight = next(t for t in graph.graph.initializer if t.name.endswith(".float"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(graph, bundle / "tuned" / "model.onnx")
    (bundle / "tuned" / "model.onnx.data").write_bytes(b"x")
    record["files"] = {name: asdict(file_entry(bundle / "tuned" / name)) for name in record["files"]}
    (bundle / "tuned" / "tuned.json").write_text(json.dumps(record))
    assert xr.load(bundle).tuning is not None
    assert_one_sentence(command("verify", bundle), 1)


@pytest.mark.usefixtures("slow_integers")
@pytest.mark.parametrize("fault", ["other numbers", "a full disk", "a form of its own"])
def test_float_weights_that_do_not_hold_are_not_kept(
    fault: str, exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, to_float = exported("8 bits"), float_graph.to_float

    def fail(*given: Any) -> Any:
        if fault == "a full disk":
            raise OSError(28, "No space left on device")
        if fault == "a form of its own":
            raise ValueError("another form")
        return to_float(*given) * np.float32(1.001)

    monkeypatch.setattr(float_graph, "to_float", fail)
    assert tune.tune_bundle(bundle).weights == "prepacked"
    assert xr.load(bundle).tuning is not None
    assert sorted(path.name for path in (bundle / "tuned").iterdir()) == ["model.onnx", "model.onnx.data", "tuned.json"]


def test_where_integers_are_faster_they_stay(exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, measure, tried = exported("8 bits"), tune.decode_rate, []

    def faster(model: xr.Model) -> float:
        tried.append(is_float(model))
        return measure(model) * (0.01 if is_float(model) else 1)

    for module in ("tune", "rates"):
        monkeypatch.setattr(f"xlstm_edge_runtime.{module}.decode_rate", faster)
    assert tune.tune_bundle(bundle).weights == "prepacked"
    assert sum(tried) == 1  # one look is enough


@pytest.mark.parametrize(
    ("small", "memory", "disk", "integers", "expected"),
    [
        (1 << 28, 1 << 34, 1 << 34, True, True),
        (1, 1 << 34, 1 << 34, True, False),  # large, on a chip with products of integers
        (1, 1 << 34, 1 << 34, False, True),
        (1 << 28, 1 << 10, 1 << 34, False, False),  # no memory
        (1 << 28, 0, 1 << 34, False, False),  # nobody knows
        (1 << 28, 1 << 34, 1 << 10, False, False),  # no disk
    ],
)
def test_float_weights_are_tried_where_they_may_pay_and_have_room(
    small: int,
    memory: int,
    disk: int,
    integers: bool,
    expected: bool,
    exported: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = exported("8 bits")
    usage = shutil.disk_usage(bundle)._replace(free=disk)
    monkeypatch.setattr(tune, "SMALL", small)
    monkeypatch.setattr(tune, "physical_memory", lambda: memory)
    monkeypatch.setattr(tune, "multiplies_integers", lambda: integers)
    monkeypatch.setattr(tune.shutil, "disk_usage", lambda _path: usage)
    assert tune._worth_trying(bundle / "model.onnx", bundle) is expected


@pytest.mark.parametrize("board", BOARDS)
def test_boards_without_dot_products_are_known(board: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nBogoMIPS\t: 100\nFeatures\t: {BOARDS[board][4]}\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "aarch64")
    assert hardware.multiplies_integers() is (board != "pi4")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "armv7l")
    assert not hardware.multiplies_integers()
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "none")
    for machine in ("arm64", "AMD64", "x86_64"):  # macOS and Windows have no such file
        monkeypatch.setattr(hardware.platform, "machine", lambda name=machine: name)
        assert hardware.multiplies_integers()
