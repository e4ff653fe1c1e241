"""Any ONNX runtime: one token a call, standard operators of opset 17, float32."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .base import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..ops import Ops


class Portable(Target):
    """Standard operators and static shapes, for runtimes that this project does not know."""

    name = "portable"
    summary = "other runtimes: opset 17, standard operators, one token a call, float32"
    use = "any ONNX runtime with opset 17; ours as well"
    static, default_chunk, longest_chunk = True, 1, 1
    opset, traced_opset, ir_version, onnxruntime = 17, 18, 8, "1.17"
    quantizations = frozenset()

    def ops(self, chunk: int) -> "Ops":  # noqa: ARG002  # one token
        from ..ops.portable import Portable as Lowering  # noqa: PLC0415  # loads torch

        return Lowering()

    def passes(self) -> "Sequence[ir.passes.InPlacePass]":
        from ..passes.opset17 import ToOpset17  # noqa: PLC0415  # loads onnx

        return (ToOpset17(),)
