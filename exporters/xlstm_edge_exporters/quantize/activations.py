"""Graph pass: products of integers, written as QuantizeLinear and DequantizeLinear around the product (QDQ).

    x -> Q -> DQ --+
    W (int8) -> DQ -+-> MatMul or Gemm -> Q -> DQ

Compilers of accelerators take such a group as one product of integers; onnxruntime's CPU computes it as it is written, which
makes it the emulation of them.
"""

from collections.abc import Collection, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..weights import Weights
from .encodings import Encoding, ProductEncoding, all_of, rounded_weight
from .orientation import is_table
from .rewrite import DATA, SCALES, pending_initializer
from .sources import Load

PRODUCTS = ("MatMul", "Gemm")
PARTS = (DATA, SCALES, ".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point")


class QuantizeActivations(ir.passes.InPlacePass):
    """Put integers around the products with these weights, whose initializers become `PARTS`, without data yet."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = names

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Modified if there is any such weight."""
        graph = model.graph
        for name in self._names:
            weight = graph.initializers[name]
            for node, _ in list(weight.uses()):
                if node.op_type not in PRODUCTS:
                    raise ValueError(f"expected {name} in a product, got {node.op_type}")
                _rewrite(graph, node, weight)
            del graph.initializers[name]
        return ir.passes.PassResult(model, modified=bool(self._names))


def _rewrite(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    assert weight.name is not None and weight.shape is not None and node.inputs[0] is not None
    name, shape = weight.name, [int(size) for size in weight.shape.numpy()]
    axis = output_axis(name)
    data = pending_initializer(graph, name + DATA, shape, ir.DataType.INT8)
    scales = pending_initializer(graph, name + SCALES, [shape[axis]], ir.DataType.FLOAT)
    restored = ir.node("DequantizeLinear", [data, scales], {"axis": axis}, name=f"{node.name}_weight")
    before = _through(graph, name, "input", node.inputs[0], f"{node.name}_input")
    product = ir.node(node.op_type, [before[-1].outputs[0], restored.outputs[0]], dict(node.attributes), name=node.name)
    after = _through(graph, name, "output", product.outputs[0], f"{node.name}_output")
    news = [restored, *before, product, *after]
    old, last = node.outputs[0], after[-1].outputs[0]
    for new, like in ((before[-1], node.inputs[0]), (product, old), (restored, weight), (after[-1], old)):
        new.outputs[0].shape, new.outputs[0].type = like.shape, ir.TensorType(ir.DataType.FLOAT)
    for new in news[:-1]:
        new.outputs[0].name = f"{new.name}_value"
    last.name = old.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], news, [old], [last])


def _through(graph: ir.Graph, name: str, side: str, value: ir.Value, label: str) -> list[ir.Node]:
    """QuantizeLinear and DequantizeLinear by the same scale and zero point: what goes in and comes out is tied."""
    scale = pending_initializer(graph, f"{name}.{side}_scale", [], ir.DataType.FLOAT)
    zero = pending_initializer(graph, f"{name}.{side}_zero_point", [], ir.DataType.UINT16)
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{label}_quantize")
    quantize.outputs[0].type, quantize.outputs[0].shape = ir.TensorType(ir.DataType.UINT16), value.shape
    return [quantize, ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{label}_dequantize")]


def output_axis(name: str) -> int:
    """Which axis of a canonical weight counts the outputs of its product."""
    return 0 if is_table(name) else 1


def integer_sources(weights: Weights, encodings: Mapping[str, ProductEncoding]) -> dict[str, Load]:
    """Initializer name -> its data, for every product of integers."""
    sources: dict[str, Load] = {}
    for name in encodings:
        sources[name + DATA] = partial(_rounded, weights, name, 0)
        sources[name + SCALES] = partial(_rounded, weights, name, 1)
        sources |= {part: partial(np.asarray, array) for part, array in all_of(encodings, name).items()}
    return sources


def _rounded(weights: Weights, name: str, part: int) -> NDArray[np.generic]:
    return rounded_weight(weights[name].load(), output_axis(name))[part]


def read_encodings(model: ir.Model) -> dict[str, ProductEncoding]:
    """Canonical name -> the encodings that a graph holds."""
    values = {name: value.const_value for name, value in model.graph.initializers.items()}
    names = [name.removesuffix(".input_scale") for name in values if name.endswith(".input_scale")]

    def number(name: str) -> float:
        tensor = values[name]
        assert tensor is not None
        return float(tensor.numpy())

    def side(name: str, which: str) -> Encoding:
        return Encoding(number(f"{name}.{which}_scale"), int(number(f"{name}.{which}_zero_point")))

    return {name: ProductEncoding(side(name, "input"), side(name, "output")) for name in names}
