"""Qualcomm's HTP, through onnxruntime's QNN provider."""

from collections.abc import Sequence
from pathlib import Path

from xlstm_edge_runtime.ahead_of_time import compile_graph
from xlstm_edge_runtime.chips import CHIPS, SOC
from xlstm_edge_runtime.layout import compiled_name
from xlstm_edge_runtime.manifest_sections import CompiledGraph
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.providers import choose_provider
from xlstm_edge_runtime.state import StateTable

from .accelerator import Accelerator


class QNN(Accelerator):
    """Snapdragon phones and laptops."""

    name = "qnn"
    summary = "Snapdragon phones and laptops: Qualcomm's HTP, float16"
    use = "a Snapdragon with Qualcomm's HTP, onnxruntime and the package onnxruntime-qnn"
    provider = "qnn"
    # Integers of 16 bits came with opset 21; the provider's package asks for a newer onnxruntime anyway.
    opset, traced_opset, ir_version, onnxruntime = 21, 21, 10, "1.26"
    quantizations = frozenset({"a16w8"})
    compiles_prompts = True
    chips = CHIPS

    def compile(
        self,
        graph: Path,
        table: StateTable,  # noqa: ARG002  # states go in and out as they do of the graph
        family: str,  # noqa: ARG002  # same
        quantize: str | None,
        chips: Sequence[str],
        progress: Progress = no_progress,
        *,
        prompt: Path | None = None,
    ) -> dict[str, CompiledGraph]:
        """A context binary for each chip, by the compiler in onnxruntime-qnn, which runs on x86-64 as well."""
        made = {}
        for index, chip in enumerate(chips):
            progress("compiling", index, len(chips))
            file = self._compiled(graph, chip)
            prompts = None if prompt is None else self._compiled(prompt, chip)
            made[chip] = CompiledGraph(file, self.provider, quantize or "float16", prompts)
        return made

    def _compiled(self, graph: Path, chip: str) -> str:
        out = graph.with_name(compiled_name(graph.name, chip))
        compile_graph(graph, out, choose_provider(self.provider, {SOC: chip}))
        return out.name
