"""Lowering for onnxruntime-web: that of onnxruntime, in operators that WebGPU has kernels for."""

from torch import Tensor

from ..spec import Norm
from .emit import emit
from .ort import MS, Ort


class Web(Ort):
    """Emits opset 21 and com.microsoft nodes."""

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, spec: Norm) -> Tensor:
        """RMSNormalization came with opset 23; onnxruntime has had it under another name."""
        if spec.kind == "layer":
            return super().norm(x, weight, bias, spec)
        y = emit("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=spec.eps)
        return y if bias is None else y + bias

    def project(self, x: Tensor, weight: Tensor, scale: float) -> Tensor:
        """Gemm, which reads the (V, D) matrix as it lies; FusedMatMul has no kernel there."""
        x = x if scale == 1.0 else x * scale
        if x.ndim == 2:
            return emit("Gemm", x, weight, shape=[x.shape[0], weight.shape[0]], transB=1)
        return emit(MS + "FusedMatMul", x, weight, shape=[*x.shape[:-1], weight.shape[0]], transB=1)
