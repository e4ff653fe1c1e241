"""The second graph of a static target: the same model for a fixed number of tokens, over the weights of the first."""

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from xlstm_edge_runtime.errors import VerificationError
from xlstm_edge_runtime.layout import PROMPT_GRAPH

from .interface import GraphOptions
from .quantize.activations import QuantizeActivations
from .quantize.rewrite import is_pending
from .spec import ModelSpec
from .trace import trace


def write_prompt_graph(spec: ModelSpec, options: GraphOptions, step: Path, integers: Collection[str]) -> Path:
    """Write the graph for prompts beside the written graph `step`, whose weights it reads where they lie; its file.

    `integers` names the products of integers, as in `step`.
    """
    model = traced_prompts(spec, options, integers)
    held = ir.load(step).graph.initializers
    for name, value in model.graph.initializers.items():
        if is_pending(value):
            value.const_value = held[name].const_value
    ir.save(model, step.with_name(PROMPT_GRAPH))
    return step.with_name(PROMPT_GRAPH)


def traced_prompts(spec: ModelSpec, options: GraphOptions, integers: Collection[str]) -> ir.Model:
    """The graph for prompts, its weights without data."""
    model = trace(spec, options)
    QuantizeActivations(integers)(model)
    return model


def check_shared(step: ir.Model, prompt: ir.Model, weights: Collection[str]) -> None:
    """VerificationError unless both graphs take their weights from one place."""
    held = step.graph.initializers
    for name in prompt.graph.initializers.keys() & weights:
        if name not in held or _place(held[name]) != _place(prompt.graph.initializers[name]):
            raise VerificationError(
                f"expected one {name} for all graphs of the bundle, got another tensor; export the bundle again"
            )


def _place(value: ir.Value) -> object:
    """Where a tensor lies or, of a small one that lies in the graph, what it is."""
    tensor = value.const_value
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.location, tensor.offset, tensor.length
    return None if tensor is None else tensor.tobytes()
