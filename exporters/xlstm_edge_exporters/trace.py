"""Canonical model -> ONNX graph without weights.

Each distinct part of the model is built of fake tensors (shapes and dtypes, no memory) and traced once by
`torch.onnx.export` (`parts`); the graph is put together out of them (`assembly`) and tidied. Its initializers keep the
canonical parameter names; `bundle` gives them their data later, one at a time, so that a model of any size is traced in
the memory and time of a small one.
"""

import onnx_ir as ir

from .assembly import assemble
from .interface import GraphOptions
from .parts import trace_parts
from .passes.tidy import Tidy
from .spec import ModelSpec


def trace(spec: ModelSpec, options: GraphOptions) -> ir.Model:
    """The graph, its weights named after the canonical parameters and without data.

    Inputs: tokens, then `past.*` in the order of the state table; outputs: logits, then `present.*`. The weights are those of
    the target, which may have others than the canonical model (`Target.weights`).
    """
    target = options.lowering
    graph = assemble(spec, options, trace_parts(target.spec(spec), options))
    model = ir.Model(graph, ir_version=target.ir_version, producer_name="xlstm-edge")
    for step in (Tidy(), *target.passes()):
        step(model)
    return model
