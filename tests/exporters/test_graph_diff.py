"""A graph that joins the weights otherwise is seen."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.graph_diff import check_structure
from xlstm_edge_exporters.interface import GraphOptions
from xlstm_edge_exporters.quantize.read import read_schemes
from xlstm_edge_exporters.quantize.rewrite import QuantizeGraph
from xlstm_edge_exporters.targets import TARGETS
from xlstm_edge_exporters.trace import trace

from ..changed_bundles import rehash
from ..command import Command, assert_one_sentence
from ..conftest import BY_NAME, SHIPPED
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


Change = Callable[[Path], object]


def rewired(change: Callable[[onnx.GraphProto], object]) -> Change:
    """Another graph over the same weights."""

    def write(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model.graph)
        onnx.save(model, folder / "model.onnx")
        rehash(folder)

    return write


def another_table(graph: onnx.GraphProto) -> None:
    """The embedding's operator reads another matrix; the true one stays, unused."""
    gather = next(node for node in graph.node if node.op_type == "Gather" and node.input[0] == "embedding.weight")
    true = next(tensor for tensor in graph.initializer if tensor.name == "embedding.weight")
    other = onnx.TensorProto()
    other.CopyFrom(true)
    other.name = gather.input[0] = "table"
    place = next(entry for entry in other.external_data if entry.key == "offset")
    place.value = str(int(place.value) + 64)
    graph.initializer.append(other)


def other_attribute(name: str, factor: float) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        attribute = next(a for node in graph.node for a in node.attribute if a.name == name)
        attribute.f *= factor

    return change


REWIRED: dict[str, Callable[[onnx.GraphProto], object]] = {
    "another table": another_table,
    "an epsilon a little larger": other_attribute("epsilon", 1.001),
    "an operator twice": lambda g: g.node.insert(0, g.node[0]),
    "an initializer that nothing reads": lambda g: g.initializer.append(
        numpy_helper.from_array(np.zeros(3, np.float32), "more")
    ),
}


@pytest.mark.parametrize("name", REWIRED)
def test_a_graph_that_joins_the_weights_otherwise(
    name: str, shipped_bundle: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(shipped_bundle, tmp_path / "bundle")
    rewired(REWIRED[name])(tmp_path / "bundle")
    result = command("verify", tmp_path / "bundle", "--against", SHIPPED)
    assert_one_sentence(result, 1)


def test_a_tied_matrix_is_one(
    tmp_path: Path, checkpoint_of: CheckpointOf, export_of: Callable[..., Path], command: Command
) -> None:
    """The table that is looked up is right; the one that is multiplied is not."""
    checkpoint = checkpoint_of(BY_NAME["hf-tied"])
    shutil.copytree(export_of("hf-tied", quantize="int8"), tmp_path / "bundle")
    assert command("verify", tmp_path / "bundle", "--against", checkpoint).code == 0

    def apart(graph: onnx.GraphProto) -> None:
        table = next(tensor for tensor in graph.initializer if tensor.name == "embedding.weight.table")
        place = next(entry for entry in table.external_data if entry.key == "offset")
        place.value = str(int(place.value) + 1)

    rewired(apart)(tmp_path / "bundle")
    assert_one_sentence(command("verify", tmp_path / "bundle", "--against", checkpoint), 1)


@pytest.mark.parametrize(
    "options",
    [
        {"target": "cpu"},
        {"target": "cpu", "quantize": "int4", "method": "rtn"},
        {"target": "portable"},
        {"target": "qnn"},
    ],
    ids=str,
)
@pytest.mark.parametrize("case", [BY_NAME[name] for name in ("lm-mixed", "large-wide-heads", "hf-tied")], ids=str)
def test_every_graph_is_the_one_that_is_traced_again(
    case: Case, options: dict[str, Any], checkpoint_of: CheckpointOf, export_of: Callable[..., Path]
) -> None:
    target = options["target"]
    chunk = 1 if TARGETS[target].static else 16
    checkpoint, path = open_checkpoint(checkpoint_of(case)), export_of(case.name, chunk=chunk, **options) / "model.onnx"
    graph, schemes = ir.load(path), read_schemes(path)
    traced = trace(checkpoint.spec, GraphOptions(target=target, chunk=chunk))
    if schemes:
        QuantizeGraph(schemes)(traced)
    names = {
        *TARGETS[target].weights(checkpoint.spec, checkpoint.weights),
        *(name + part for name in schemes for part in (".data", ".scales", ".table")),
    }
    assert check_structure(traced, graph, names) == len(graph.graph)
