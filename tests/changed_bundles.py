"""Bundles that were changed on purpose: tensors, graphs and documents, with hashes that fit again."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from xlstm_edge_runtime.manifest import file_entry

Array = np.ndarray[Any, Any]


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files again, as a forger would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: asdict(file_entry(folder / name)) for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def change_tensor(folder: Path, name: str, change: Callable[[Array], Array]) -> None:
    """Write another tensor in the place of one of the graph's, and agree on its hash."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(t for t in graph.graph.initializer if t.name == name)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tensor.external_data:
        place = {entry.key: entry.value for entry in tensor.external_data}
        data = np.memmap(folder / "model.onnx.data", dtype, "r+", offset=int(place["offset"]), shape=tuple(tensor.dims))
        changed = change(np.array(data))
        assert not np.array_equal(changed, data)
        data[...] = changed
        data.flush()
    else:
        changed = change(np.array(numpy_helper.to_array(tensor)))
        tensor.CopyFrom(numpy_helper.from_array(changed, name))
        onnx.save(graph, folder / "model.onnx")
    rehash(folder)


def change_graph(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    change(graph)
    onnx.save(graph, folder / "model.onnx")
    rehash(folder)


def swapped(first: Any, second: Any) -> Callable[[Array], Array]:
    """Exchange the entries at two places."""

    def change(array: Array) -> Array:
        array[first], array[second] = array[second].copy(), array[first].copy()
        return array

    return change


Change = Callable[[Path], object]


def tensors(folder: Path, ending: str) -> list[str]:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return [tensor.name for tensor in graph.initializer if tensor.name.endswith(ending)]


def on(ending: str, change: Callable[[Array], Array], index: int = 0) -> Change:
    """Change a tensor whose name ends so, of those the one at `index`."""
    return lambda folder: change_tensor(folder, tensors(folder, ending)[index], change)


def from_another_layer(folder: Path) -> None:
    """One block's matrix in the place of another's, integers and scales."""
    for ending in ("ffn.down.weight.data", "ffn.down.weight.scales"):
        first, second = tensors(folder, ending)[:2]
        graph = onnx.load(folder / "model.onnx")
        other = next(numpy_helper.to_array(t) for t in graph.graph.initializer if t.name == first)
        change_tensor(folder, second, lambda _, other=other: other)  # type: ignore[misc]  # mypy: a lambda's default


def one_step_up(array: Array) -> Array:
    """Integers of one row one step higher, as a wrong zero point has it."""
    low, high = array[2] & 0x0F, array[2] >> 4
    array[2] = np.minimum(low + 1, 15) | (np.minimum(high + 1, 15) << 4)
    return array


def zero_points(folder: Path) -> None:
    """An explicit zero point of 7 where the exporter means 8."""

    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
        scales = next(t for t in model.graph.initializer if t.name == node.input[2])
        rows, groups = scales.dims
        model.graph.initializer.append(
            numpy_helper.from_array(np.full((rows, -(-groups // 2)), 0x77, np.uint8), "zero_points")
        )
        rest = list(node.input[4:])
        del node.input[3:]
        node.input.extend(["zero_points", *rest])

    change_graph(folder, change)


def without_a_bias(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "MatMulNBits" and len(n.input) == 6)
        del node.input[3:]

    change_graph(folder, change)


def reads_late(folder: Path) -> None:
    """Let the graph of the case lm-mixed read its old memory once more, after the new one was written."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        last = (
            graph.node[-1] if "logits" in graph.node[-1].output else next(n for n in graph.node if "logits" in n.output)
        )
        last.output[list(last.output).index("logits")] = "logits_before"
        add = onnx.helper.make_node
        graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "late_axes"))
        graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "late_zero"))
        graph.node.extend(
            [
                # needs the logits, so it cannot run before them, and sums the old memory
                add("Gather", ["logits_before", "late_zero"], ["late_column"], axis=1),
                add("Mul", ["late_column", "late_column"], ["late_square"]),
                add("Reshape", ["late_square", "late_shape"], ["late_gate"]),
                add("Mul", ["past.blocks.0.C", "late_gate"], ["late_memory"]),
                add("ReduceMean", ["late_memory", "late_axes"], ["late_sum"], keepdims=0),
                add("Unsqueeze", ["late_sum", "late_one"], ["late_sums"]),
                add("Add", ["logits_before", "late_sums"], ["logits"]),
            ]
        )
        graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 1, 1], np.int64), "late_shape"))
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "late_one"))

    change_graph(folder, change)
