"""onnxruntime on a CPU: any number of tokens a call, native recurrent operators, blocks of integers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xlstm_edge_runtime.state import StateSpec, StateTable

from .base import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..ops import Ops

SPLIT_WIDTH, NARROWEST_SPLIT, DEEPEST_SPLIT = 32, 128, 256


class CPU(Target):
    """The default."""

    name = "cpu"
    summary = "onnxruntime on any CPU: the fastest, any chunk length, int8 and int4"
    use = "any x86-64 or ARM64 CPU with onnxruntime"

    def states(self, table: StateTable) -> StateTable:
        """Large matrix memories with split heads.

        LinearAttention keeps a row of `SPLIT_WIDTH` values in registers, where a wide row goes through the cache for every
        key; beyond `DEEPEST_SPLIT` keys it takes another path, which gains nothing.
        """
        return StateTable([_with_split_heads(row) for row in table])

    def ops(self, chunk: int) -> "Ops":
        from ..ops.ort import Ort  # noqa: PLC0415  # loads torch

        return Ort(chunk)

    def passes(self) -> "Sequence[ir.passes.InPlacePass]":
        """The sLSTM's loop over time."""
        from ..passes.scan import ExpandSLSTM  # noqa: PLC0415  # loads onnx

        return (ExpandSLSTM(),)


def _with_split_heads(row: StateSpec) -> StateSpec:
    if not row.name.endswith(".C"):
        return row
    _, dk, dv = row.shape
    pays = dk <= DEEPEST_SPLIT and dv >= NARROWEST_SPLIT and dv % SPLIT_WIDTH == 0
    return row.with_head_splits(dv // SPLIT_WIDTH) if pays else row
