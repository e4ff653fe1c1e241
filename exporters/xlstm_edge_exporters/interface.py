"""What a graph takes and gives: its options, the names of its inputs and outputs, its states as it holds them."""

from dataclasses import dataclass, replace

from xlstm_edge_runtime.state import StateTable

from .spec import ModelSpec
from .targets import TARGETS, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """What the graph is for: a name of `TARGETS`, and `chunk`, the most tokens of one call.

    A static target's graph takes one token; where `chunk` is more, a second graph takes exactly so many.
    """

    target: str = "cpu"
    chunk: int = 64
    all_logits: bool = False

    @property
    def lowering(self) -> Target:
        """How a model becomes a graph for this target."""
        return TARGETS[self.target]

    @property
    def step(self) -> "GraphOptions":
        """Of the graph that a session decodes with."""
        return replace(self, chunk=1) if self.lowering.static else self

    @property
    def has_prompts(self) -> bool:
        """Whether there is a second graph, which these options trace."""
        return self.lowering.static and self.chunk > 1


def input_name(spec: ModelSpec) -> str:
    """`input_ids` (B, T) int64, or `inputs_embeds` (B, T, D) float32 for a bare stack."""
    return "inputs_embeds" if spec.vocab_size is None else "input_ids"


def output_name(spec: ModelSpec) -> str:
    """`logits` or, for a bare stack, `last_hidden_state`."""
    return "last_hidden_state" if spec.vocab_size is None else "logits"


def graph_states(spec: ModelSpec, options: GraphOptions) -> StateTable:
    """The state table as the target's graph of a canonical model holds it."""
    target = options.lowering
    return target.states(target.spec(spec).state_table())
