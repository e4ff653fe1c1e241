"""Read a bundle's weights back in canonical form, whatever they are stored as: what the graph really computes with."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from xlstm_edge_runtime.errors import BundleError

from ..weights import FloatArray, Weight, Weights
from .activations import PARTS, output_axis, read_encodings
from .orientation import as_canonical, canonical_shape
from .rewrite import DATA, SCALES, TABLE
from .scheme import Packed, Scheme

# Operator -> where data, scales and zero points are among its inputs.
OPERANDS = {"MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3)}


def read_weights(graph: Path) -> Weights:
    """Canonical name -> weight, quantized ones multiplied out."""
    model = ir.load(graph)
    values = model.graph.initializers
    weights = {
        name: _float(value) for name, value in values.items() if name.startswith(("blocks.", "norm.", "head.", "emb"))
    }
    weights = {name: w for name, w in weights.items() if not name.endswith((*PARTS, TABLE))}
    for name in read_encodings(model):
        data, scales = values[name + DATA], values[name + SCALES]
        weights[name] = _integers(data, scales, output_axis(name))
    for name, (node, data, scales, scheme) in _quantized_nodes(model).items():
        columns = node.attributes["K"].as_int() if node.op_type == "MatMulNBits" else _gathered_columns(node)
        weights[name] = _quantized(name, data, scales, scheme, columns)
    return weights


def read_schemes(graph: Path) -> dict[str, Scheme]:
    """Canonical name -> how it is quantized, as the graph's operators say."""
    return {name: scheme for name, (_, _, _, scheme) in _quantized_nodes(ir.load(graph)).items()}


def _quantized_nodes(model: ir.Model) -> dict[str, tuple[ir.Node, ir.Value, ir.Value, Scheme]]:
    """Canonical name -> the first operator that holds it, data, scales and scheme; BundleError for zero points."""
    found: dict[str, tuple[ir.Node, ir.Value, ir.Value, Scheme]] = {}
    for node in model.graph:
        if node.op_type not in OPERANDS:
            continue
        first, second, zero = OPERANDS[node.op_type]
        data, scales = node.inputs[first], node.inputs[second]
        if data is None or scales is None or data.name is None or (len(node.inputs) > zero and node.inputs[zero]):
            raise BundleError("expected quantized weights without zero points, got others; export the bundle again")
        scheme = Scheme(node.attributes["bits"].as_int(), node.attributes["block_size"].as_int())
        name = data.name.removesuffix(DATA).removesuffix(TABLE)
        if name in found and not _same_bytes(data, found[name][1]):  # a tied matrix is looked up and multiplied
            raise BundleError(f"expected one content of {name} for all operators, got two; export the bundle again")
        found.setdefault(name, (node, data, scales, scheme))
    return found


def _same_bytes(first: ir.Value, second: ir.Value) -> bool:
    return first is second or np.array_equal(_array(first).reshape(-1), _array(second).reshape(-1))


def _float(value: ir.Value) -> Weight:
    assert value.shape is not None
    return Weight(tuple(int(n) for n in value.shape.numpy()), lambda: np.asarray(_array(value), np.float32))


def _integers(data: ir.Value, scales: ir.Value, axis: int) -> Weight:
    """One scale for each place of `axis`."""
    assert data.shape is not None

    def load() -> FloatArray:
        return np.asarray(_array(data), np.float32) * np.expand_dims(np.asarray(_array(scales), np.float32), 1 - axis)

    return Weight(tuple(int(n) for n in data.shape.numpy()), load)


def _gathered_columns(node: ir.Node) -> int:
    """Numbers in a row of the table, without what pads the last block."""
    user, _ = next(iter(node.outputs[0].uses()))
    shape = (user if user.op_type == "Slice" else node).outputs[0].shape
    assert shape is not None and isinstance(shape[-1], int)
    return shape[-1]


def _quantized(name: str, data: ir.Value, scales: ir.Value, scheme: Scheme, width: int) -> Weight:
    assert data.shape is not None and scales.shape is not None
    rows = int(data.shape.numpy()[0])

    def load() -> FloatArray:
        integers = np.asarray(_array(data), np.uint8).reshape(rows, scheme.blocks_per_row(width), -1)
        packed = Packed(integers, np.asarray(_array(scales), np.float32))
        return as_canonical(name, scheme.dequantize(packed, width))

    return Weight(canonical_shape(name, rows, width), load)


def _array(value: ir.Value) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())
