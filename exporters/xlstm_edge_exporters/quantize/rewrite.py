"""Put quantized operators into a traced graph; their data come later, as every weight's does.

MatMul and the head's FusedMatMul or Gemm become MatMulNBits, always with accuracy level 4 (int8 activations inside: 5 to 25
times faster than the default on CPUs); the embedding's Gather becomes GatherBlockQuantized on the same integers, and a
Slice where the last block of a row is padded. A bias that is added right after goes into the node.
"""

import onnx_ir as ir

from .orientation import matrix_shape
from .plan import Plan
from .scheme import Scheme

MS = "com.microsoft"
DATA, SCALES, TABLE = ".data", ".scales", ".table"


class QuantizeGraph(ir.passes.InPlacePass):
    """Rewrite every use of a planned weight; `names` then holds the weights whose float initializer is gone."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Modified if any planned weight is in the graph."""
        graph, modified = model.graph, False
        for name, scheme in self._plan.items():
            if name not in graph.initializers:
                continue
            value = graph.initializers[name]
            for node, _ in list(value.uses()):
                _rewrite(graph, node, value, scheme)
            del graph.initializers[name]
            modified = True
        model.opset_imports[MS] = 1
        return ir.passes.PassResult(model, modified=modified)


def _rewrite(graph: ir.Graph, node: ir.Node, weight: ir.Value, scheme: Scheme) -> None:
    replaced = [node]
    if node.op_type == "Gather":
        news = _gather(graph, node, weight, scheme)
    elif node.op_type in ("MatMul", "FusedMatMul", "Gemm"):
        news = [_matmul(graph, node, weight, scheme)]
        replaced += _absorb_bias(news[0], node)
    else:
        raise ValueError(f"expected {weight.name} in a matrix product, got {node.op_type}")
    last, output = replaced[-1], news[-1].outputs[0]
    old_output = last.outputs[0]
    output.shape, output.type, output.name = old_output.shape, old_output.type, old_output.name
    ir.convenience.replace_nodes_and_values(graph, last, replaced, news, [old_output], [output])


def _matmul(graph: ir.Graph, node: ir.Node, weight: ir.Value, scheme: Scheme) -> ir.Node:
    assert weight.shape is not None and weight.name is not None
    rows, columns = matrix_shape(weight.name, [int(size) for size in weight.shape.numpy()])
    blocks = scheme.blocks_per_row(columns)
    data = pending_initializer(
        graph, weight.name + DATA, [rows, blocks, scheme.block_size * scheme.bits // 8], ir.DataType.UINT8
    )
    scales = pending_initializer(graph, weight.name + SCALES, [rows, blocks], ir.DataType.FLOAT)
    attributes = {"K": columns, "N": rows, "bits": scheme.bits, "block_size": scheme.block_size, "accuracy_level": 4}
    return ir.node("MatMulNBits", [node.inputs[0], data, scales], attributes, domain=MS, name=node.name)


def _absorb_bias(new: ir.Node, node: ir.Node) -> list[ir.Node]:
    """Take a bias that is added to the product and to nothing else; returns the Add that is no longer needed."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0][0].op_type != "Add":
        return []
    add = uses[0][0]
    bias = next(value for value in add.inputs if value is not node.outputs[0])
    if bias is None or not (bias.name or "").endswith(".bias"):
        return []
    new.resize_inputs(6)
    new.replace_input_with(5, bias)
    return [add]


def _gather(graph: ir.Graph, node: ir.Node, weight: ir.Value, scheme: Scheme) -> list[ir.Node]:
    """The operator wants rows of whole blocks, as MatMulNBits stores them; what pads the last block is cut off."""
    assert weight.shape is not None and weight.name is not None
    rows, columns = (int(size) for size in weight.shape.numpy())
    blocks = scheme.blocks_per_row(columns)
    padded = blocks * scheme.block_size
    table = pending_initializer(graph, weight.name + TABLE, [rows, padded * scheme.bits // 8], ir.DataType.UINT8)
    scales = pending_initializer(graph, weight.name + SCALES, [rows, blocks], ir.DataType.FLOAT)
    attributes = {"bits": scheme.bits, "block_size": scheme.block_size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [table, node.inputs[1], scales]
    gather = ir.node("GatherBlockQuantized", inputs, attributes, domain=MS, name=node.name)
    if padded == columns:
        return [gather]
    wide, narrow = gather.outputs[0], node.outputs[0]
    assert narrow.shape is not None
    wide.name, wide.type, wide.shape = f"{narrow.name}_padded", narrow.type, ir.Shape([*narrow.shape[:-1], padded])
    bounds = [_constant(graph, f"constant.{bound}", n) for bound, n in (("begin", 0), ("end", columns), ("axis", -1))]
    return [gather, ir.node("Slice", [wide, *bounds], name=f"{node.name}_cut")]


def _constant(graph: ir.Graph, name: str, number: int) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor([number], ir.DataType.INT64, name=name))
    graph.register_initializer(value)
    return value


def pending_initializer(graph: ir.Graph, name: str, shape: list[int], dtype: ir.DataType) -> ir.Value:
    """The graph's initializer of that name; a new one has no data yet, which the bundle writer gives it."""
    if name not in graph.initializers:
        graph.register_initializer(
            ir.Value(
                name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=_pending(name, shape, dtype)
            )
        )
    return graph.initializers[name]


def is_pending(value: ir.Value) -> bool:
    """Whether an initializer of a traced graph waits for its data."""
    return value.const_value is None or isinstance(value.const_value, ir.LazyTensor)


def _pending(name: str, shape: list[int], dtype: ir.DataType) -> ir.LazyTensor:
    """Stands in until the bundle writer hands out the data."""

    def fail() -> ir.TensorProtocol:
        raise ValueError(f"{name} was never given its data")

    return ir.LazyTensor(fail, dtype, ir.Shape(shape), name=name)
