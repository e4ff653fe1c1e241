"""Apple's Core ML, through onnxruntime's Core ML provider (ML programs), or as a package without onnxruntime."""

from collections.abc import Sequence
from pathlib import Path

from xlstm_edge_runtime.manifest_sections import CompiledGraph
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import StateTable

from .accelerator import Accelerator


class CoreML(Accelerator):
    """iPhones, iPads and Macs."""

    name = "coreml"
    summary = "iPhone, iPad and Mac: Core ML, float16"
    use = "iPhone, iPad or Mac with onnxruntime's Core ML provider"
    provider = "coreml"
    compiles = True
    packages = ("coremltools",)
    extra = "coreml"

    def compile(
        self,
        graph: Path,
        table: StateTable,
        family: str,
        quantize: str | None,  # noqa: ARG002  # float16
        chips: Sequence[str],  # noqa: ARG002  # Apple compiles for a chip on the device
        progress: Progress = no_progress,
    ) -> dict[str, CompiledGraph]:
        """A stateful package for iOS 18 and macOS 15, by coremltools."""
        from .coreml_package import write_package  # noqa: PLC0415  # loads onnx

        progress("compiling", 0, 1)
        return {"coreml": CompiledGraph(write_package(graph, table, family=family).name, self.provider, "float16")}
