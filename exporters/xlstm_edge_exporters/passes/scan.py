"""Replace each `xlstm_edge::SLSTM` placeholder with an ONNX Scan over time.

A Scan serves one token and many alike: it costs about 2 microseconds more than its bare nodes for one token and less
than an unrolled chunk for many. The body is the stabilized sLSTM step in some twenty nodes; the recurrent matrix is
read from the outer graph.
"""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir import tape

DOMAIN = "xlstm_edge"


class ExpandSLSTM(ir.passes.InPlacePass):
    """Inputs of the placeholder: wx (T, B, H, 1, 4*DH), R (H, DH, 4*DH), y, c, n, m (B, H, 1, DH)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expand every placeholder of the main graph."""
        nodes = [node for node in model.graph if node.domain == DOMAIN and node.op_type == "SLSTM"]
        for index, node in enumerate(nodes):
            _expand(model.graph, node, f"slstm{index}.")
        model.opset_imports.pop(DOMAIN, None)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _expand(graph: ir.Graph, node: ir.Node, prefix: str) -> None:
    wx, recurrent, *states = node.inputs
    assert wx is not None and recurrent is not None
    body = _body(wx, recurrent, [state for state in states if state is not None], prefix)
    scan = ir.Node(
        "",
        "Scan",
        [*states, wx],
        [ir.AttrGraph("body", body), ir.AttrInt64("num_scan_inputs", 1)],
        num_outputs=5,
        name=f"{prefix}scan",
    )
    for old, new in zip(node.outputs, scan.outputs, strict=True):
        new.shape, new.type, new.name = old.shape, old.type, old.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], [scan], node.outputs, scan.outputs)


def _body(wx: ir.Value, recurrent: ir.Value, states: Sequence[ir.Value], prefix: str) -> ir.Graph:
    """One step: (y, c, n, m, wx_t) -> (y, c, n, m, y)."""
    y, c, n, m = (_like(state, f"{prefix}{name}", 0) for state, name in zip(states, "ycnm", strict=True))
    step = _like(wx, f"{prefix}wx", 1)
    b = tape.Tape()
    raw = b.op("Add", [step, b.op("MatMul", [y, recurrent])])
    i, minus_f, z, o = b.op_multi_out("Split", [raw], {"axis": -1, "num_outputs": 4}, num_outputs=4)
    decayed = b.op("Sub", [m, b.op("Softplus", [minus_f])])
    m_new = b.op("Max", [i, decayed])
    gain = b.op("Exp", [b.op("Sub", [i, m_new])])
    decay = b.op("Exp", [b.op("Sub", [decayed, m_new])])
    c_new = b.op("Add", [b.op("Mul", [decay, c]), b.op("Mul", [gain, b.op("Tanh", [z])])])
    n_new = b.op("Add", [b.op("Mul", [decay, n]), gain])
    y_new = b.op("Div", [b.op("Mul", [b.op("Sigmoid", [o]), c_new]), n_new])
    outputs = [y_new, c_new, n_new, m_new, b.op("Identity", [y_new])]
    for number, node in enumerate(b.nodes):
        node.name = f"{prefix}{number}"
        for output in node.outputs:
            output.name = f"{prefix}{number}.{output.index()}"
    for output in outputs:
        output.dtype, output.shape = ir.DataType.FLOAT, y.shape
    return ir.Graph([y, c, n, m, step], outputs, nodes=b.nodes, name=f"{prefix}step")


def _like(value: ir.Value, name: str, skip: int) -> ir.Value:
    """A body input with the shape of an outer value, less its first `skip` axes."""
    shape = None if value.shape is None else ir.Shape(value.shape[skip:])
    return ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
