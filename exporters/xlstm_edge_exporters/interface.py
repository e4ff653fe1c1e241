"""What a graph takes and gives: its options, the names of its inputs and outputs, its states as it holds them."""

from dataclasses import dataclass
from typing import Literal

from xlstm_edge_runtime.state import StateSpec, StateTable

from .spec import ModelSpec

Flavour = Literal["ort", "portable"]
SPLIT_WIDTH, NARROWEST_SPLIT, DEEPEST_SPLIT = 32, 128, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """What the graph is for: `chunk` is the most tokens of one call, which `portable` fixes to 1."""

    flavour: Flavour = "ort"
    chunk: int = 64
    all_logits: bool = False

    @property
    def opset(self) -> int:
        """Opset of the finished graph."""
        return 23 if self.flavour == "ort" else 17


def input_name(spec: ModelSpec) -> str:
    """`input_ids` (B, T) int64, or `inputs_embeds` (B, T, D) float32 for a bare stack."""
    return "inputs_embeds" if spec.vocab_size is None else "input_ids"


def output_name(spec: ModelSpec) -> str:
    """`logits` or, for a bare stack, `last_hidden_state`."""
    return "last_hidden_state" if spec.vocab_size is None else "logits"


def graph_states(spec: ModelSpec, options: GraphOptions) -> StateTable:
    """The state table as this graph holds it: for onnxruntime, large matrix memories with split heads.

    Its LinearAttention keeps a row of `SPLIT_WIDTH` values in registers, where a wide row goes through the cache for every
    key; beyond `DEEPEST_SPLIT` keys it takes another path, which gains nothing.
    """
    rows = spec.state_table()
    return rows if options.flavour == "portable" else StateTable([_with_split_heads(row) for row in rows])


def _with_split_heads(row: StateSpec) -> StateSpec:
    if not row.name.endswith(".C"):
        return row
    _, dk, dv = row.shape
    pays = dk <= DEEPEST_SPLIT and dv >= NARROWEST_SPLIT and dv % SPLIT_WIDTH == 0
    return row.with_head_splits(dv // SPLIT_WIDTH) if pays else row
