"""What a graph file reads besides itself, what it computes with, and how many tokens of one call it is exact for.

ONNX keeps large tensors in other files, named by `external_data` entries with the key `location`. onnxruntime opens what
they name, so every name must be a file of the manifest, or its content is nobody's. This module walks the message as far
as the initializers, where the exporter and onnxruntime's optimizer put such entries, and then counts: the word `location`
may stand in the file nowhere else. An entry that another reader would understand otherwise has no place to hide.

Operators come from a closed list: what an export writes, and what onnxruntime's optimizer makes of it. None of them makes
much out of nothing or repeats itself, so a small file asks for little.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from .errors import BundleError, shown
from .protobuf import BYTES, Span, children, fields, integers
from .reading import read_bytes
from .state import StateTable

LARGEST_GRAPH = 64 << 20
WORD = b"location"
ENTRY = b"\x0a\x08location\x12"  # key = "location", then the tag of the value
LONGEST_NAME = 127  # of which the length is one byte
# Field numbers of onnx.proto
OFFSET = b".mixer.offset"
TENSOR_NAME, TENSOR_RAW = 8, 9
MODEL_GRAPH, MODEL_FUNCTION, GRAPH_NODE, GRAPH_INITIALIZER, TENSOR_EXTERNAL = 7, 25, 1, 5, 13
NODE_OPERATOR, NODE_ATTRIBUTE, ATTRIBUTE_NAME, ATTRIBUTE_INTS = 4, 5, 1, 8
ATTRIBUTE_GRAPHS, DEEPEST = (6, 11), 4
OPERATORS = frozenset(
    "Abs Add CausalConvWithState Concat Conv CumSum DequantizeLinear Div Erf Exp FusedMatMul Gather GatherBlockQuantized "
    "GatherND Gelu Gemm Identity LayerNormalization LinearAttention Log MatMul MatMulNBits Max MaxPool Mul Neg Pow "
    "QuantizeLinear QuickGelu RMSNormalization ReduceMax ReduceMean Relu Reshape Scan Selu Sigmoid SkipLayerNormalization "
    "SkipSimplifiedLayerNormalization Slice Softplus Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze".split()
)
REWRITTEN = frozenset(  # by an optimizer, here or on another processor
    "BiasGelu Cast Clip FastGelu FusedConv FusedGemm HardSigmoid LeakyRelu NhwcFusedConv NhwcMaxPool ReorderInput "
    "ReorderOutput SimplifiedLayerNormalization Softmax".split()
)


def check_graph_file(path: Path, files: Collection[str], chunk: int) -> None:
    """BundleError unless the graph reads only `files` beside it and takes calls of `chunk` tokens."""
    try:
        data = read_bytes(path, LARGEST_GRAPH)
        names, windows = list(external_files(data)), list(_windows(data))
        unknown = sorted(set(operators(data)) - OPERATORS - REWRITTEN)
    except (OSError, ValueError) as error:
        raise BundleError(f"expected {path.name} to be an ONNX graph, got {error}; export the bundle again") from error
    if unlisted := sorted(name for name in names if name not in files):
        raise BundleError(
            f"expected {path.name} to read only files that are listed, got {shown(unlisted[0])}; do not trust this bundle"
        )
    if unknown:
        raise BundleError(
            f"expected {path.name} to compute with an xLSTM's operators, got {shown(unknown[0])}; do not trust this bundle"
        )
    if windows and min(windows) - 1 < chunk:
        raise BundleError(
            f"expected a chunk of at most {min(windows) - 1} tokens, which the graph is exact for, got {chunk}; "
            "export the bundle again"
        )


def check_offsets(path: Path, table: StateTable) -> None:
    """BundleError where the table has other constants of stabilizers than the graph adds: snapshots would be wrong.

    The graph holds those of up to 63 heads in itself; of more, `verify --against` speaks.
    """
    try:
        held = dict(_offsets(read_bytes(path, LARGEST_GRAPH)))
    except (OSError, ValueError) as error:
        raise BundleError(f"expected {path.name} to be an ONNX graph, got {error}; export the bundle again") from error
    for row in table:
        wanted = np.array(row.offset, "<f4").tobytes()
        if held.get(row.name, wanted) != wanted:
            raise BundleError(
                f"expected the offset of {row.name} as in the graph, got another in the manifest; export the bundle again"
            )


def _offsets(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(name of a stabilizer, the float32 numbers that the graph adds to it) of those that lie in the graph itself."""
    for graph in children(data, (0, len(data)), MODEL_GRAPH):
        for tensor in children(data, graph, GRAPH_INITIALIZER, OFFSET):
            names = [data[start:end] for start, end in children(data, tensor, TENSOR_NAME)]
            raw = [data[start:end] for start, end in children(data, tensor, TENSOR_RAW)]
            if len(names) == len(raw) == 1 and names[0].endswith(OFFSET):
                yield f"{names[0].removesuffix(OFFSET).decode('utf-8')}.m", raw[0]


def external_files(data: bytes) -> Iterator[str]:
    """Names of the files that an ONNX model's tensors lie in; ValueError if that cannot be said for certain."""
    found = 0
    for graph in children(data, (0, len(data)), MODEL_GRAPH):
        for tensor in children(data, graph, GRAPH_INITIALIZER, WORD):
            for start, end in children(data, tensor, TENSOR_EXTERNAL, WORD):
                yield _location(data[start:end])
                found += 1
    if data.count(WORD) != found:
        raise ValueError("external data in a place of its own")


def operators(data: bytes) -> Iterator[str]:
    """The operators of an ONNX model, those of graphs inside its attributes too; ValueError for functions of its own."""
    if any(number == MODEL_FUNCTION for number, *_ in fields(data, 0, len(data))):
        raise ValueError("functions of its own")
    for graph in children(data, (0, len(data)), MODEL_GRAPH):
        yield from _operators(data, graph, DEEPEST)


def _operators(data: bytes, graph: Span, depth: int) -> Iterator[str]:
    if not depth:
        raise ValueError("graphs in graphs in graphs")
    for node in children(data, graph, GRAPH_NODE):
        for number, kind, start, end in fields(data, *node):
            if number == NODE_OPERATOR and kind == BYTES:
                yield data[start : min(end, start + LONGEST_NAME)].decode("utf-8", "replace")
            elif number == NODE_ATTRIBUTE and kind == BYTES:
                for inner, form, *span in fields(data, start, end):
                    if inner in ATTRIBUTE_GRAPHS and form == BYTES:
                        yield from _operators(data, (span[0], span[1]), depth - 1)


def _location(entry: bytes) -> str:
    """The value of an entry that holds the key, the value and nothing else."""
    value = entry[len(ENTRY) + 1 :]
    if not entry.startswith(ENTRY) or len(value) > LONGEST_NAME or entry[len(ENTRY)] != len(value):
        raise ValueError("external data in a form of its own")
    return value.decode("utf-8")


def _windows(data: bytes) -> Iterator[int]:
    """How many tokens back each MaxPool, which is a running maximum here, reaches, itself included."""
    for graph in children(data, (0, len(data)), MODEL_GRAPH):
        for node in children(data, graph, GRAPH_NODE, b"MaxPool"):
            operators = [data[start:end] for start, end in children(data, node, NODE_OPERATOR)]
            for attribute in children(data, node, NODE_ATTRIBUTE, b"kernel_shape"):
                names = [data[start:end] for start, end in children(data, attribute, ATTRIBUTE_NAME)]
                if operators == [b"MaxPool"] and names == [b"kernel_shape"]:
                    yield from list(integers(data, attribute, ATTRIBUTE_INTS))[:1]
