"""Intel's OpenVINO: CPUs, GPUs and NPUs, by its own runtime or as onnxruntime's provider."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from xlstm_edge_runtime.manifest_sections import CompiledGraph
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import StateTable

from .accelerator import Accelerator


class OpenVINO(Accelerator):
    """Intel machines."""

    name = "openvino"
    summary = "Intel laptops and servers: OpenVINO, float32 on its CPU"
    use = "Intel hardware with OpenVINO, or with the package onnxruntime-ep-openvino beside onnxruntime"
    provider = "openvino"
    half = False
    compiles = compiles_integers = True
    quantizations = frozenset({"int8", "int4"})
    packages = ("openvino",)
    integer_packages = ("nncf",)
    extra = "openvino-ir"

    def compile(
        self,
        graph: Path,
        table: StateTable,
        family: str,  # noqa: ARG002  # nothing is described
        quantize: str | None,
        chips: Sequence[str],  # noqa: ARG002  # OpenVINO compiles for a device there
        progress: Progress = no_progress,
    ) -> dict[str, CompiledGraph]:
        """OpenVINO's stateful IR, float32 or with integer weights."""
        from .openvino_ir import write_ir  # noqa: PLC0415  # loads openvino

        progress("compiling", 0, 1)
        weights: Literal["int8", "int4"] | None
        weights = "int8" if quantize == "int8" else "int4" if quantize == "int4" else None
        written = write_ir(graph, graph.parent, table, weights=weights)[0]
        return {"openvino": CompiledGraph(written.name, self.provider, weights or "float32")}
