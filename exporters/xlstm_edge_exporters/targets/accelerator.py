"""What the targets behind compilers share: the accelerator's lowering, relative gates, one token a call."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xlstm_edge_runtime.errors import CheckpointError
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import SMALL_INITIAL_M, StateTable
from xlstm_edge_runtime.vectors import FLOAT16_ALLOWED

from ..spec import ModelSpec
from .base import Target

if TYPE_CHECKING:
    from ..float16 import Float16Report, Outputs
    from ..ops import Ops
    from ..weights import Weights

# Of the range of an output: what is farther off is another model, in float16 or in float32.
FARTHEST_OFF, FARTHEST_EXACT = 0.1, 1e-3
# Ranges of activations that a text did not show may move an untrained model far; beyond this it is no rounding any more.
FARTHEST_ROUNDED = 0.5
FEW = 16  # tokens, where float32 alone is looked at


class Accelerator(Target):
    """A graph that a compiler takes whole, and whose numbers float16 holds."""

    static, default_chunk, longest_chunk = True, 1, 64
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

    def check(
        self,
        graph: Path,
        table: StateTable,
        parameters: int,
        reference: "Outputs",
        integers: bool,
        progress: Progress = no_progress,
        *,
        prompt: Path | None = None,
    ) -> list[str]:
        """The graph held to the checkpoint, in float32 and, where `half`, in float16; CheckpointError for what is not it."""
        from ..float16 import measure_float16, measure_prompts  # noqa: PLC0415  # loads torch

        tokens = None if self.half else FEW
        reports = [
            measure_float16(graph, table, parameters, reference, tokens=tokens, half=self.half, progress=progress)
        ]
        if prompt is not None:
            reports.append(
                measure_prompts(prompt, table, reports[0].inputs, reference, half=self.half, progress=progress)
            )
        return [line for report in reports for line in self._judge(report, integers)]

    def _judge(self, report: "Float16Report", integers: bool) -> list[str]:
        if not report.exact <= (FARTHEST_ROUNDED if integers else FARTHEST_EXACT):
            raise CheckpointError(
                f"expected the graph for {self.name} to compute the checkpoint's outputs, got {report.exact:.2%} of their "
                "range apart; export it for the target cpu or portable"
            )
        if not self.half:
            return []
        if report.saturated or not report.difference <= (FARTHEST_ROUNDED if integers else FARTHEST_OFF):
            raise CheckpointError(
                f"expected a model that float16 holds, as the target {self.name} computes, got {report}; export it for a "
                "target that computes in float32: cpu or openvino"
            )
        line = str(report)
        if report.difference > FLOAT16_ALLOWED:
            line += f"; that is more than the {FLOAT16_ALLOWED:.0%} which verify allows on the device"
        return [line + ("; what the weights' integers cost besides, eval says" if integers else "")]

    def ops(self, chunk: int) -> "Ops":
        from ..ops.accelerator import Accelerator as Step  # noqa: PLC0415  # loads torch
        from ..ops.accelerator_chunk import AcceleratorChunk  # noqa: PLC0415  # same

        return Step(half=self.half) if chunk == 1 else AcceleratorChunk(chunk, half=self.half)
