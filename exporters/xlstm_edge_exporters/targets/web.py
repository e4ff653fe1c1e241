"""onnxruntime-web: WebAssembly and WebGPU in a browser."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..spec import SLSTM, ModelSpec
from .base import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..ops import Ops


class Web(Target):
    """The CPU's graph without operators that WebGPU lacks."""

    name = "web"
    summary = "browsers: onnxruntime-web, WebAssembly and WebGPU"
    use = "a browser, with onnxruntime-web on WebAssembly or WebGPU"
    opset, traced_opset, onnxruntime = 21, 21, "1.26"

    def chunk_for(self, spec: ModelSpec) -> int:
        """One token where there are sLSTM blocks: their loop over several has no kernel in WebGPU, which waits for a CPU."""
        return 1 if any(isinstance(block.mixer, SLSTM) for block in spec.blocks) else self.default_chunk

    def ops(self, chunk: int) -> "Ops":
        from ..ops.web import Web as Lowering  # noqa: PLC0415  # loads torch

        return Lowering(chunk)

    def passes(self) -> "Sequence[ir.passes.InPlacePass]":
        from ..passes.scan import ExpandSLSTM  # noqa: PLC0415  # loads onnx

        return (ExpandSLSTM(),)
