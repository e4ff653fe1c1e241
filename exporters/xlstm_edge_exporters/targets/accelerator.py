"""What the targets behind compilers share: the accelerator's lowering, relative gates, one token a call."""

from dataclasses import replace
from pathlib import Path

from xlstm_edge_runtime.errors import CheckpointError
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import SMALL_INITIAL_M, StateTable

from ..float16 import measure_float16
from ..ops import Ops
from ..ops.accelerator import Accelerator as Lowering
from ..relative_gates import absolute_weights, relative_spec, relative_weights
from ..spec import ModelSpec
from ..weights import Weights
from .base import Target

FARTHEST_OFF = 0.1  # of the range of an output: what is farther off is another model


class Accelerator(Target):
    """A graph that a compiler takes whole, and whose numbers float16 holds."""

    static, default_chunk = True, 1
    opset, traced_opset, ir_version, onnxruntime = 18, 18, 8, "1.17"
    quantizations = frozenset()
    half = True

    def spec(self, spec: ModelSpec) -> ModelSpec:
        """With relative gates."""
        return relative_spec(spec)

    def weights(self, spec: ModelSpec, weights: Weights) -> Weights:
        return relative_weights(spec, weights)

    def canonical_weights(self, spec: ModelSpec, weights: Weights) -> Weights:
        return absolute_weights(spec, weights)

    def states(self, table: StateTable) -> StateTable:
        """With start values that float16 holds; for a gate they are as far away."""
        return StateTable([replace(r, initial=max(r.initial, SMALL_INITIAL_M)) for r in table])

    def check(self, graph: Path, table: StateTable, parameters: int, progress: Progress = no_progress) -> list[str]:
        """What float16 does to this model, measured; CheckpointError for one that it does not hold."""
        if not self.half:
            return []
        report = measure_float16(graph, table, parameters, progress=progress)
        if report.saturated or not report.difference <= FARTHEST_OFF:
            raise CheckpointError(
                f"expected a model that float16 holds, as the target {self.name} computes, got {report}; export it for a "
                "target that computes in float32: cpu or openvino"
            )
        return [str(report)]

    def ops(self, chunk: int) -> Ops:  # noqa: ARG002  # one token
        return Lowering(half=self.half)
