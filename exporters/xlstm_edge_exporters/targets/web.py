"""onnxruntime-web: WebAssembly and WebGPU in a browser."""

from collections.abc import Sequence

import onnx_ir as ir

from ..ops import Ops
from ..ops.web import Web as Lowering
from ..passes.scan import ExpandSLSTM
from .base import Target


class Web(Target):
    """The CPU's graph without operators that WebGPU lacks."""

    name = "web"
    summary = "browsers: onnxruntime-web, WebAssembly and WebGPU"
    use = "a browser, with onnxruntime-web on WebAssembly or WebGPU"
    opset, traced_opset, onnxruntime = 21, 21, "1.26"

    def ops(self, chunk: int) -> Ops:
        return Lowering(chunk)

    def passes(self) -> Sequence[ir.passes.InPlacePass]:
        return (ExpandSLSTM(),)
