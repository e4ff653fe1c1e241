"""Remove what tracing leaves behind, without touching any weight.

Weights have no data yet when this runs, so nothing here may look into an initializer of the model: only the small
constants that tracing itself made are lifted, compared and shared.
"""

import onnx_ir as ir
from onnx_ir.passes import common

PASSES = (
    common.IdentityEliminationPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.CommonSubexpressionEliminationPass(),
    common.RemoveUnusedNodesPass(),
    common.RemoveUnusedOpsetsPass(),
)


class Tidy(ir.passes.InPlacePass):
    """Run `PASSES`, share equal constants, drop metadata."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Modified if any of the passes modified the graph."""
        modified = False
        for step in PASSES:
            modified |= step(model).modified
        modified |= _share_constants(model.graph)
        constants = [value for value in model.graph.initializers.values() if value.const_value is not None]
        for number, value in enumerate(constants):
            value.name = f"constant.{number}"
        common.ClearMetadataAndDocStringPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _share_constants(graph: ir.Graph) -> bool:
    """Let equal constants (weights have const_value None here) be one initializer."""
    seen: dict[tuple[object, ...], ir.Value] = {}
    duplicates = []
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        key = (tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())
        if key in seen:
            ir.convenience.replace_all_uses_with(value, seen[key])
            duplicates.append(value.name)
        seen.setdefault(key, value)
    for name in duplicates:
        assert name is not None
        del graph.initializers[name]
    return bool(duplicates)
