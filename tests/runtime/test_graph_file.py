"""The walk over a graph file against the protobuf library: the same files and windows, whatever else is in the message."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from xlstm_edge_runtime import BundleError
from xlstm_edge_runtime.graph_file import check_graph_file, external_files, operators

RNG = np.random.default_rng(11)


def tensor(name: str, location: str) -> TensorProto:
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "4096"), ("length", "12")):
        made.external_data.add(key=key, value=value)
    return made


def node(kind: str = "MaxPool", window: int | None = 65, **more: Any) -> onnx.NodeProto:
    made = helper.make_node(kind, ["x"], ["y"], name="n" * int(RNG.integers(0, 200)), **more)
    if window is not None:
        made.attribute.append(helper.make_attribute("kernel_shape", [window, 1]))
    return made


def message(names: list[str], nodes: list[onnx.NodeProto]) -> bytes:
    graph = onnx.GraphProto(name="g", initializer=[tensor(f"t{i}", n) for i, n in enumerate(names)], node=nodes)
    graph.initializer.append(TensorProto(name="inside", data_type=1, dims=[2], raw_data=bytes(RNG.bytes(300))))
    model = onnx.ModelProto(ir_version=10, producer_name="p" * 130, model_version=1 << 62, graph=graph)
    model.opset_import.add(domain="", version=23)
    return model.SerializeToString()


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "a"], ["x" * 127], [f"f{i}.data" for i in range(50)]])
def test_names_are_those_of_the_library(names: list[str]) -> None:
    data = message(names, [node()])
    entries = [e for t in onnx.load_from_string(data).graph.initializer for e in t.external_data]
    assert list(external_files(data)) == [e.value for e in entries if e.key == "location"] == names


@pytest.mark.parametrize("spoiled", ["x" * 128, "x" * 300])
def test_names_of_other_lengths_are_refused(spoiled: str) -> None:
    with pytest.raises(ValueError, match="form of its own"):
        list(external_files(message([spoiled], [])))


@pytest.mark.parametrize("kind", ["Add", "Constant", "Scan"])
def test_external_data_inside_a_node_is_refused(kind: str) -> None:
    """Where no initializer is, whether the operator is one of the list or not."""
    hidden = node(kind, window=None)
    hidden.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor("w", "other")))
    with pytest.raises(ValueError, match="place of its own"):
        list(external_files(message(["a"], [hidden])))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("window", [2, 65, 128, 129, 4097])
def test_a_window_allows_one_token_less(window: int, packed: bool, tmp_path: Path) -> None:
    """The smallest of several counts; other operators and attributes do not."""
    others = [
        node("NhwcMaxPool", 2),
        node(window=None, kernel_shape_of_another=[1, 1]),
        node(window=None, kernel="kernel_shape"),
    ]
    nodes = [
        *others,
        node("Conv", 2),
        node(window=None, strides=[1, 1]),
        node(window=window + 7),
        node(window=window),
    ]
    data = message(["w"], nodes)
    plain = b"".join(b"\x40" + number(n) for n in (window, 1))  # what protobuf writes: one by one
    assert plain in data
    if packed:
        ints = number(window) + number(1)
        data = data.replace(plain, b"\x42" + bytes([len(ints)]) + ints)
        if len(ints) + 2 != len(plain):
            pytest.skip("the lengths around it differ")
    (tmp_path / "model.onnx").write_bytes(data)
    check_graph_file(tmp_path / "model.onnx", {"w"}, window - 1)
    with pytest.raises(BundleError, match=f"at most {window - 1} tokens"):
        check_graph_file(tmp_path / "model.onnx", {"w"}, window)


def number(value: int) -> bytes:
    """A protobuf variable-length integer."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def test_a_graph_without_windows_takes_any_chunk(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(message(["w"], [node("Conv", 2)]))
    check_graph_file(tmp_path / "model.onnx", ["w"], 4096)


def test_only_listed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(message(["a", "b"], []))
    check_graph_file(tmp_path / "model.onnx", ["b", "a", "c"], 1)
    with pytest.raises(BundleError, match="'b'"):
        check_graph_file(tmp_path / "model.onnx", ["a"], 1)


def test_every_cut_is_refused_or_read_as_it_stands() -> None:
    """A message that ends early is none, unless it ends where a member does; then it names fewer files."""
    data, whole = message(["a", "b"], [node()]), 0
    for end in range(len(data)):
        try:
            names = list(external_files(data[:end]))
        except ValueError:
            continue
        assert names in ([], ["a", "b"])  # the graph is one member: all of it or nothing
        assert data[:end].count(b"location") == len(names)
        whole += 1
    assert 0 < whole < 10


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00",  # field 0
        b"\x0b\x0c",  # a group
        b"\x0a\x05abc",  # longer than the message
        b"\x08" + b"\xff" * 10 + b"\x01",  # an integer of more than ten bytes
        b"\x0d\x00\x00\x00",  # three bytes of four
        b"\x09" + bytes(7),  # seven of eight
        b"\x08",  # a tag without a value
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no ONNX"):
        list(external_files(data))


def test_members_of_every_kind_are_passed_over() -> None:
    """64 and 32 bits, integers of one and of ten bytes, texts: before what is looked for."""
    before = b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4) + b"\xf8\x07" + b"\xff" * 9 + b"\x01" + b"\xfa\x07\x03abc"
    assert list(external_files(before + message(["a"], []))) == ["a"]


def test_a_word_in_another_place_is_refused() -> None:
    model = onnx.load_from_string(message(["a"], []))
    model.doc_string = "the location"
    with pytest.raises(ValueError, match="place of its own"):
        list(external_files(model.SerializeToString()))


def scan(inner: list[onnx.NodeProto]) -> onnx.NodeProto:
    return helper.make_node("Scan", ["x"], ["y"], body=helper.make_graph(inner, "body", [], []), num_scan_inputs=1)


@pytest.mark.parametrize(
    "kind", ["Loop", "If", "ConstantOfShape", "Expand", "Tile", "Range", "RandomNormal", "Sin", "X" * 200]
)
@pytest.mark.parametrize("place", ["top", "inside"])
def test_other_operators_are_refused(kind: str, place: str, tmp_path: Path) -> None:
    odd = helper.make_node(kind, ["x"], ["y"])
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), odd if place == "top" else scan([scan([odd])])]
    (tmp_path / "model.onnx").write_bytes(message([], nodes))
    with pytest.raises(BundleError, match="do not trust"):
        check_graph_file(tmp_path / "model.onnx", [], 4)


def test_operators_are_those_of_the_library() -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), scan([helper.make_node("Mul", ["x", "x"], ["y"])])]
    assert list(operators(message([], nodes))) == ["Add", "Scan", "Mul"]


def test_functions_and_bottomless_graphs_are_refused(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(message([], []))
    model.functions.append(helper.make_function("d", "Add", ["x"], ["y"], [], []))
    deep = helper.make_node("Mul", ["x", "x"], ["y"])
    for _ in range(6):
        deep = scan([deep])
    for data in (model.SerializeToString(), message([], [deep])):
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(BundleError, match="to be an ONNX graph"):
            check_graph_file(tmp_path / "model.onnx", [], 4)
