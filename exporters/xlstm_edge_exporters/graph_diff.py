"""What a graph computes, whatever its weights are: its operators and how they are joined, line by line.

Two graphs with the same lines differ in the content of their weights at most. `verify --against` traces the checkpoint
again and compares, so that a graph whose operators read something else than the weights of those names is seen.
"""

import hashlib
from collections.abc import Collection, Iterator
from itertools import zip_longest

import numpy as np
import onnx_ir as ir

from xlstm_edge_runtime.errors import VerificationError, shown


def check_structure(wanted: ir.Model, got: ir.Model, weights: Collection[str]) -> int:
    """Number of operators; VerificationError for the first line in which a bundle's graph is not the one that is traced.

    `weights` names the initializers whose content is compared elsewhere.
    """
    for mine, theirs in zip_longest(structure(wanted, weights), structure(got, weights), fillvalue="nothing"):
        if mine != theirs:
            raise VerificationError(
                f"expected the graph that this version traces, with {shown(mine)}, got {shown(theirs)}; export the bundle "
                "again, or verify it with the versions of xlstm-edge and torch that exported it"
            )
    return len(got.graph)


def structure(model: ir.Model, weights: Collection[str]) -> Iterator[str]:
    """The lines: what is imported, then graph by graph inputs, initializers, operators, outputs."""
    yield f"opsets {sorted(model.opset_imports.items())}"
    yield f"functions {len(model.functions)}"
    yield from _graph(model.graph, weights)


def _graph(graph: ir.Graph, weights: Collection[str]) -> Iterator[str]:
    yield from (f"input {_typed(value)}" for value in graph.inputs)
    for name, value in sorted(graph.initializers.items()):
        yield f"initializer {_typed(value)}" + ("" if name in weights else f" = {_content(value.const_value)}")
    for node in graph:
        inputs = [None if value is None else value.name for value in node.inputs]
        outputs = [value.name for value in node.outputs]
        yield f"operator {node.domain}:{node.op_type} {inputs} -> {outputs}"
        for name, attribute in sorted(node.attributes.items()):
            if attribute.type == ir.AttributeType.GRAPH:
                yield f"attribute {name}"
                yield from _graph(attribute.as_graph(), weights)
            else:
                yield f"attribute {name} = {_attribute(attribute)}"
    yield from (f"output {_typed(value)}" for value in graph.outputs)


def _typed(value: ir.Value) -> str:
    sizes = [str(size) for size in value.shape] if value.shape is not None else None
    return f"{value.name} {value.dtype} {sizes}"


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return _content(attribute.as_tensor())
    if attribute.type in (ir.AttributeType.GRAPHS, ir.AttributeType.TENSORS, ir.AttributeType.SPARSE_TENSOR):
        return f"of type {attribute.type}"  # nothing that is traced has one
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):  # as a file holds them
        return str(np.asarray(attribute.value, np.float32).tolist())
    return repr(attribute.value)


def _content(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None:
        return "nothing"
    array = np.ascontiguousarray(tensor.numpy())
    return f"{array.dtype} {list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
