"""Opset 18 -> 17 for the few nodes that differ: ReduceMean took its axes from an attribute before 18.

torch exports opset 18 at the least; the portable target uses no other operator that changed between the two (Split
always carries explicit sizes). Anything else is refused rather than relabelled.
"""

import onnx_ir as ir

# Operators that mean the same in 17 and 18; from the ONNX operator changelog.
UNCHANGED = frozenset(
    "Abs Add Cast Concat Constant Conv Div Erf Exp Gather Gemm Identity Log MatMul Max Mul Pow Relu Reshape "
    "Selu Sigmoid Slice Split Sqrt Sub Tanh Transpose Unsqueeze".split()
)


class ToOpset17(ir.passes.InPlacePass):
    """Relabel the model as opset 17, IR version 8."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move ReduceMean's axes into an attribute; raise ValueError for an operator not known to be unchanged."""
        for node in model.graph:
            if node.op_type == "ReduceMean":
                _axes_to_attribute(node)
            elif node.domain or node.op_type not in UNCHANGED:
                raise ValueError(f"expected only operators of opset 17, got {node.domain or 'ai.onnx'}::{node.op_type}")
        model.opset_imports[""] = 17
        model.ir_version = 8
        return ir.passes.PassResult(model, modified=True)


def _axes_to_attribute(node: ir.Node) -> None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None:
        return
    value = ir.convenience.get_const_tensor(axes)
    assert value is not None, "ReduceMean over computed axes"
    node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in value.numpy().reshape(-1)])
