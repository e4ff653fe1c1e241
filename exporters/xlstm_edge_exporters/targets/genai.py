"""onnxruntime-genai: apps in C, C++, C#, Java, Objective-C and Python that run language models through Microsoft's API."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_edge_runtime.errors import CheckpointError
from xlstm_edge_runtime.layout import GRAPH, compiled_name
from xlstm_edge_runtime.manifest import Manifest
from xlstm_edge_runtime.manifest_sections import CompiledGraph

from ..spec import ModelSpec
from .base import Remark
from .cpu import CPU

if TYPE_CHECKING:
    from ..ops import Ops

LONGEST = 1 << 30  # tokens of a call and of a stream: what genai counts in 32 bits, less than half of it


class GenAI(CPU):
    """The CPU's graph, exact for calls of any length, and once more over the same weights as genai calls it."""

    name = "genai"
    summary = "apps on onnxruntime-genai: C, C++, C#, Java, Objective-C, Python"
    use = "onnxruntime-genai 0.18 or newer, which opens the folder as it is; onnxruntime on any x86-64 or ARM64 CPU"
    shortest_chunk = 2

    def admit(self, spec: ModelSpec) -> None:
        """CheckpointError for a stack of vectors: genai generates tokens."""
        if spec.vocab_size is None:
            raise CheckpointError(
                "expected a language model for the target genai, which generates tokens, got a stack of float vectors; export "
                "it for the target cpu"
            )

    def ops(self, chunk: int) -> "Ops":  # noqa: ARG002  # genai may call with more: any length is exact
        """That of the CPU, for calls of any length."""
        from ..ops.ort import Ort  # noqa: PLC0415  # loads torch

        return Ort(LONGEST)

    def companions(self, folder: Path, manifest: Manifest, remark: Remark) -> Mapping[str, bytes]:
        """genai's graph, its settings, and what lets it read the tokenizer, where it reads it as it is meant."""
        from .genai_folder import genai_files  # noqa: PLC0415  # loads onnx

        return genai_files(folder, manifest, LONGEST, remark)

    def check_companions(self, folder: Path, manifest: Manifest) -> None:
        """CheckpointError where genai's graph does not compute what the bundle's does."""
        from .genai_folder import check_genai  # noqa: PLC0415  # loads onnx

        check_genai(folder, manifest)

    def forms(self, manifest: Manifest) -> dict[str, CompiledGraph]:
        """The graph that genai opens."""
        bits = {tensor.bits for tensor in manifest.quantization.tensors.values()}
        weights = "float32" if not bits else "int8" if bits == {8} else "int4"
        return {self.name: CompiledGraph(compiled_name(GRAPH, self.name), self.name, weights)}
