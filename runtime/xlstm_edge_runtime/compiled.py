"""A graph compiled ahead of time for one chip: a small ONNX file that names a binary, which its provider loads as it is.

Opening a graph on an accelerator compiles it, which takes seconds to minutes on a phone. A compiled one opens at once, on that
chip alone. What the small file may hold is closed: one node of one operator, whose binary lies beside it and is listed in the
manifest.
"""

from collections.abc import Collection
from pathlib import Path

from .errors import BundleError, shown
from .graph_file import (
    ATTRIBUTE_NAME,
    GRAPH_INITIALIZER,
    GRAPH_NODE,
    MODEL_FUNCTION,
    MODEL_GRAPH,
    NODE_ATTRIBUTE,
    NODE_OPERATOR,
    WORD,
)
from .manifest import Manifest, check_hash
from .protobuf import BYTES, VARINT, children, fields, varint
from .providers import Choice
from .reading import read_bytes

LARGEST = 1 << 20  # bytes of the small file
OPERATOR, DOMAIN = b"EPContext", b"com.microsoft"
# Field numbers of onnx.proto that only this file needs
GRAPH_SPARSE, NODE_DOMAIN, ATTRIBUTE_INT, ATTRIBUTE_STRING = 15, 7, 3, 4


def compiled_graph(folder: Path, manifest: Manifest, choice: Choice, *, prompt: bool = False) -> Path | None:
    """The compiled graph of a bundle for the chip that `choice` is for, its files checked; None where there is none.

    With `prompt` that of the graph for prompts.
    """
    name = choice.chip
    entry = manifest.compiled.get(name) if name is not None else None
    if entry is None or entry.provider != choice.provider.name:
        return None
    if (file := entry.prompt if prompt else entry.file) is None:
        return None
    check_compiled(folder / file, manifest.files)
    check_hash(folder, file, manifest.files[file])
    return folder / file


def check_compiled(path: Path, files: Collection[str]) -> None:
    """BundleError unless the file is a compiled graph whose binary is one of `files`."""
    try:
        binary = binary_of(path)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"expected {path.name} to be a compiled graph, got {error}; export the bundle again"
        ) from error
    if binary not in files:
        raise BundleError(
            f"expected {path.name} to read only files that are listed, got {shown(binary)}; do not trust this bundle"
        )


def binary_of(path: Path) -> str:
    """Name of the binary beside a compiled graph; ValueError for a file that is more, or less, than that."""
    data = read_bytes(path, LARGEST)
    if data.count(WORD):
        raise ValueError("external data")
    if any(number == MODEL_FUNCTION for number, *_ in fields(data, 0, len(data))):
        raise ValueError("functions of its own")
    graphs = list(children(data, (0, len(data)), MODEL_GRAPH))
    nodes = [node for graph in graphs for node in children(data, graph, GRAPH_NODE)]
    kinds = (GRAPH_INITIALIZER, GRAPH_SPARSE)
    weights = [tensor for graph in graphs for kind in kinds for tensor in children(data, graph, kind)]
    if len(graphs) != 1 or len(nodes) != 1 or weights:
        raise ValueError(f"{len(nodes)} nodes")
    for kind, wanted in ((NODE_OPERATOR, OPERATOR), (NODE_DOMAIN, DOMAIN)):
        if [data[start:end] for start, end in children(data, nodes[0], kind)] != [wanted]:
            raise ValueError("another operator")
    attributes = dict(_attributes(data, nodes[0]))
    name = attributes.get(b"ep_cache_context")
    if attributes.get(b"embed_mode") != 0 or not isinstance(name, bytes):
        raise ValueError("a binary in a place of its own")
    return name.decode("utf-8")


def _attributes(data: bytes, node: tuple[int, int]) -> list[tuple[bytes, int | bytes]]:
    """Names and values of a node's attributes that are text or an integer; ValueError for a name twice."""
    found: list[tuple[bytes, int | bytes]] = []
    for span in children(data, node, NODE_ATTRIBUTE):
        name, value = b"", 0  # type: bytes, int | bytes
        for number, kind, start, end in fields(data, *span):
            if number == ATTRIBUTE_NAME and kind == BYTES:
                name = data[start:end]
            elif number == ATTRIBUTE_STRING and kind == BYTES:
                value = data[start:end]
            elif number == ATTRIBUTE_INT and kind == VARINT:
                value = varint(data, start, end)[0]
        found.append((name, value))
    if len({name for name, _ in found}) != len(found):
        raise ValueError("an attribute twice")
    return found
