"""What the targets behind compilers share: the accelerator's lowering, relative gates, one token a call."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_edge_runtime.errors import CheckpointError
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import SMALL_INITIAL_M, StateTable

from ..spec import ModelSpec
from .base import Target

if TYPE_CHECKING:
    from ..ops import Ops
    from ..weights import Weights

FARTHEST_OFF = 0.1  # of the range of an output: what is farther off is another model


class Accelerator(Target):
    """A graph that a compiler takes whole, and whose numbers float16 holds."""

    static, default_chunk = True, 1
    opset, traced_opset, ir_version, onnxruntime = 18, 18, 8, "1.17"
    quantizations = frozenset()
    half = True

    def spec(self, spec: ModelSpec) -> ModelSpec:
        """With relative gates."""
        from ..relative_gates import relative_spec  # noqa: PLC0415  # loads torch

        return relative_spec(spec)

    def weights(self, spec: ModelSpec, weights: "Weights") -> "Weights":
        from ..relative_gates import relative_weights  # noqa: PLC0415  # loads torch

        return relative_weights(spec, weights)

    def canonical_weights(self, spec: ModelSpec, weights: "Weights") -> "Weights":
        from ..relative_gates import absolute_weights  # noqa: PLC0415  # loads torch

        return absolute_weights(spec, weights)

    def states(self, table: StateTable) -> StateTable:
        """With start values that float16 holds; for a gate they are as far away."""
        return StateTable([replace(r, initial=max(r.initial, SMALL_INITIAL_M)) for r in table])

    def check(self, graph: Path, table: StateTable, parameters: int, progress: Progress = no_progress) -> list[str]:
        """What float16 does to this model, measured; CheckpointError for one that it does not hold."""
        if not self.half:
            return []
        from ..float16 import measure_float16  # noqa: PLC0415  # loads torch

        report = measure_float16(graph, table, parameters, progress=progress)
        if report.saturated or not report.difference <= FARTHEST_OFF:
            raise CheckpointError(
                f"expected a model that float16 holds, as the target {self.name} computes, got {report}; export it for a "
                "target that computes in float32: cpu or openvino"
            )
        return [str(report)]

    def ops(self, chunk: int) -> "Ops":  # noqa: ARG002  # one token
        from ..ops.accelerator import Accelerator as Lowering  # noqa: PLC0415  # loads torch

        return Lowering(half=self.half)
