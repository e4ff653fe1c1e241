"""A bundle's graph once more, its quantized products made float: for processors that have no fast kernel for integers.

Every MatMulNBits becomes a MatMul with the float32 numbers that its integers mean, and an Add of its bias, so the outputs
are those of the stored weights with float activations. Rows that are only looked up stay as they are stored.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .graph_file import (
    ATTRIBUTE_NAME,
    GRAPH_INITIALIZER,
    GRAPH_NODE,
    LARGEST_GRAPH,
    MODEL_GRAPH,
    NODE_ATTRIBUTE,
    NODE_OPERATOR,
    TENSOR_EXTERNAL,
)
from .integers import to_float
from .layout import GRAPH, weights_of
from .protobuf import BYTES, Span, children, copied, fields, integer, integers, member, strings
from .reading import read_bytes

# Field numbers of onnx.proto beside those of `graph_file`
NODE_INPUT, NODE_OUTPUT, NODE_NAME, ATTRIBUTE_INTEGER = 1, 2, 3, 3
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW, TENSOR_PLACE = 1, 2, 8, 9, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
FLOAT, EXTERNAL = 1, 1
DTYPES: dict[int, type[np.generic]] = {1: np.float32, 2: np.uint8}
PRODUCT = "MatMulNBits"
PAGE, PIECE = 4096, 1 << 20  # bytes that tensors start at; numbers made float at once


def float_bytes(source: Path) -> int:
    """Bytes of the products' weights when they are float32; ValueError for a graph that is not as an export writes it."""
    data, sizes = read_bytes(source, LARGEST_GRAPH), dict[str, int]()
    with _as_exported():
        for graph in children(data, (0, len(data)), MODEL_GRAPH):
            sizes |= {product.data: 4 * product.rows * product.columns for product in _products(data, graph).values()}
    return sum(sizes.values())


def write_float_graph(source: Path, folder: Path) -> None:
    """The graph and its weights, new in `folder`; ValueError for a graph that is not as an export writes it."""
    data = read_bytes(source, LARGEST_GRAPH)
    with _as_exported(), (folder / weights_of(GRAPH)).open("x+b") as file:
        writer, parts = _Writer(data, source.parent, file), list[bytes]()
        for number, kind, start, end in fields(data, 0, len(data)):
            is_graph = number == MODEL_GRAPH and kind == BYTES
            content = member(number, writer.graph((start, end))) if is_graph else copied(data, number, kind, start, end)
            parts.append(content)
    (folder / GRAPH).write_bytes(b"".join(parts))


@contextlib.contextmanager
def _as_exported() -> Iterator[None]:
    """ValueError where a name, a tensor, a size or an attribute is not there, or nothing."""
    try:
        yield
    except (LookupError, ArithmeticError) as error:
        raise ValueError("a graph in a form of its own") from error


@dataclass(frozen=True, slots=True)
class _Product:
    """A MatMulNBits: names of its inputs, and the matrix (rows, columns) of so many bits that it multiplies by."""

    name: str
    x: str
    data: str
    scales: str
    bias: str
    output: str
    rows: int
    columns: int
    bits: int

    @property
    def weight(self) -> str:
        """Name of the float matrix (columns, rows)."""
        return f"{self.data}.float"

    def nodes(self) -> bytes:
        """The same in float."""
        output = f"{self.output}.product" if self.bias else self.output
        product = _node("MatMul", self.name, (self.x, self.weight), output)
        return product + (_node("Add", f"{self.name}.bias", (output, self.bias), self.output) if self.bias else b"")


def _products(data: bytes, graph: Span) -> dict[Span, _Product]:
    """Every quantized product of a graph, by its node."""
    found = {}
    for node in children(data, graph, GRAPH_NODE):
        if strings(data, node, NODE_OPERATOR) != [PRODUCT]:
            continue
        x, packed, scales, *more = strings(data, node, NODE_INPUT)
        numbers = dict(_attributes(data, node))
        if any(more[:2]) or len(more) > 3:  # zero points, an order of columns
            raise ValueError(f"a {PRODUCT} in a form of its own")
        (name,), (output,) = strings(data, node, NODE_NAME), strings(data, node, NODE_OUTPUT)
        bias = more[2] if len(more) > 2 else ""
        sizes = (numbers["N"], numbers["K"], numbers["bits"])
        found[node] = _Product(name, x, packed, scales, bias, output, *sizes)
    return found


def _attributes(data: bytes, node: Span) -> Iterator[tuple[str, int]]:
    """Name and value of a node's attributes that are integers."""
    for attribute in children(data, node, NODE_ATTRIBUTE):
        for value in integers(data, attribute, ATTRIBUTE_INTEGER):
            yield strings(data, attribute, ATTRIBUTE_NAME)[0], value


class _Writer:
    """Writes a graph with float products, and its tensors' data into `file`, one tensor after the other."""

    def __init__(self, data: bytes, source: Path, file: BinaryIO) -> None:
        self._data, self._source, self._file = data, source, file
        self._tensors: dict[str, Span] = {}

    def graph(self, span: Span) -> bytes:
        """The message of the new graph."""
        data, products = self._data, _products(self._data, span)
        self._tensors = {strings(data, t, TENSOR_NAME)[0]: t for t in children(data, span, GRAPH_INITIALIZER)}
        others = (node for node in children(data, span, GRAPH_NODE) if node not in products)
        used = {name for node in others for name in strings(data, node, NODE_INPUT)}
        spent = {name for p in products.values() for name in (p.data, p.scales)} - used
        parts = []
        for number, kind, start, end in fields(data, *span):
            if number == GRAPH_NODE and (start, end) in products:
                parts.append(products[start, end].nodes())
            elif number != GRAPH_INITIALIZER:
                parts.append(copied(data, number, kind, start, end))
        parts += [self._moved(tensor) for name, tensor in self._tensors.items() if name not in spent]
        parts += [self._made_float(product) for product in {p.weight: p for p in products.values()}.values()]
        return b"".join(parts)

    def _moved(self, tensor: Span) -> bytes:
        """A tensor that stays, with its data in the new file where they lay in a file."""
        if not any(children(self._data, tensor, TENSOR_EXTERNAL)):
            return member(GRAPH_INITIALIZER, self._data[slice(*tensor)])
        array, begin = self._array(tensor), self._begin()
        self._file.write(array.data)
        members = fields(self._data, *tensor)
        kept = b"".join(copied(self._data, *found) for found in members if found[0] != TENSOR_EXTERNAL)
        return member(GRAPH_INITIALIZER, kept + _place(begin, array.nbytes))

    def _made_float(self, product: _Product) -> bytes:
        """The matrix (columns, rows) of a product, made float some of its rows at a time."""
        data, scales = (self._array(self._tensors[name]) for name in (product.data, product.scales))
        rows, columns, begin = product.rows, product.columns, self._begin()
        held = 8 * data.shape[1] * data.shape[2] // product.bits
        if data.shape[:2] != scales.shape or len(data) != rows or columns > held:
            raise ValueError(f"a {PRODUCT} of other sizes than its weights")
        size = 4 * rows * columns
        self._file.truncate(begin + size)  # and nothing unwritten
        made = np.memmap(self._file, np.float32, "r+", begin, (columns, rows))
        step = max(1, PIECE // columns)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            made[:, part] = to_float(data[part], scales[part], product.bits)[:, :columns].T
        made.flush()
        self._file.seek(begin + size)
        dims = b"".join(integer(TENSOR_DIMS, count) for count in (columns, rows))
        kind = integer(TENSOR_TYPE, FLOAT) + member(TENSOR_NAME, product.weight)
        return member(GRAPH_INITIALIZER, dims + kind + integer(TENSOR_PLACE, EXTERNAL) + _place(begin, size))

    def _begin(self) -> int:
        """Where the next tensor begins."""
        begin = -(-self._file.tell() // PAGE) * PAGE
        self._file.seek(begin)
        return begin

    def _array(self, tensor: Span) -> NDArray[Any]:
        """A tensor's numbers, mapped where they lie in a file."""
        data = self._data
        shape, (kind,) = tuple(integers(data, tensor, TENSOR_DIMS)), integers(data, tensor, TENSOR_TYPE)
        if kind not in DTYPES:
            raise ValueError("a tensor of another type")
        dtype = np.dtype(DTYPES[kind])
        entries = children(data, tensor, TENSOR_EXTERNAL)
        place = {strings(data, e, ENTRY_KEY)[0]: strings(data, e, ENTRY_VALUE)[0] for e in entries}
        if not place:
            (raw,) = children(data, tensor, TENSOR_RAW)
            return np.frombuffer(data[slice(*raw)], dtype).reshape(shape)
        if int(place["length"]) != dtype.itemsize * prod(shape):
            raise ValueError("external data of another size")
        return np.memmap(self._source / place["location"], dtype, "r", int(place["offset"]), shape)


def _node(operator: str, name: str, inputs: tuple[str, str], output: str) -> bytes:
    taken = b"".join(member(NODE_INPUT, value) for value in inputs)
    rest = member(NODE_OUTPUT, output) + member(NODE_NAME, name) + member(NODE_OPERATOR, operator)
    return member(GRAPH_NODE, taken + rest)


def _place(begin: int, size: int) -> bytes:
    """Where a tensor's data lie."""
    entries = (("location", weights_of(GRAPH)), ("offset", str(begin)), ("length", str(size)))
    return b"".join(member(TENSOR_EXTERNAL, member(ENTRY_KEY, k) + member(ENTRY_VALUE, v)) for k, v in entries)
