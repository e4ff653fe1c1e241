"""Google's LiteRT, formerly TensorFlow Lite: Android phones of any chip, and embedded Linux."""

from collections.abc import Sequence
from pathlib import Path

from xlstm_edge_runtime.manifest_sections import CompiledGraph
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import StateTable

from .accelerator import Accelerator


class LiteRT(Accelerator):
    """Android, and whatever else LiteRT runs on; `model.onnx` itself runs on onnxruntime's CPU."""

    name = "litert"
    summary = "Android, embedded Linux: LiteRT (TensorFlow Lite), float32"
    use = "a phone or board with LiteRT, formerly TensorFlow Lite (--compile writes its file), or onnxruntime on a CPU"
    half = False
    compiles = compiles_prompts = True
    packages, extra = ("litert_torch",), "litert"

    def compile(
        self,
        graph: Path,
        table: StateTable,  # noqa: ARG002  # states go in and out as they do of the graph
        family: str,  # noqa: ARG002  # nothing is described
        quantize: str | None,  # noqa: ARG002  # float32
        chips: Sequence[str],  # noqa: ARG002  # LiteRT's delegates compile on the device
        progress: Progress = no_progress,
        *,
        prompt: Path | None = None,
    ) -> dict[str, CompiledGraph]:
        """LiteRT's file, with the graph as its signature `decode`, and `prefill` where there is one for prompts."""
        from .tflite import TFLITE, write_tflite  # noqa: PLC0415  # loads torch

        progress("compiling", 0, 1)
        graphs = {"decode": graph} if prompt is None else {"decode": graph, "prefill": prompt}
        write_tflite(graphs, graph.with_name(TFLITE))
        return {"litert": CompiledGraph(TFLITE, "litert", "float32")}
