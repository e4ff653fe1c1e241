"""All states in the two tensors a layer that onnxruntime-genai moves: `conv_state` of rank 3, `recurrent_state` of rank 4.

genai starts both with zeros, all layers' in one shape, and lets the input and the output of one name lie in the same memory.
So each packed input is read by one node only, and its output is written from what comes of that node: whatever it reads is
read before anything is written, whichever kernels run.

A layer is a matrix memory with the other states of its block; what has no matrix memory (an sLSTM) goes where there is most
room. Numbers lie as they do in the plain graph, one tensor after another; shorter layers end with zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from xlstm_edge_runtime.state import StateSpec, StateTable

PAST, PRESENT = "past_key_values", "present"
LEADING = {"conv_state": [1, 1], "recurrent_state": [1, 1, 1]}  # axes before the packed one; the first is the batch
NEVER = -1e30  # a logit that no sampler picks
AWAY = 1 << 31  # farther than any vocabulary; genai's ids have 32 bits


@dataclass(frozen=True, slots=True)
class Layer:
    """What goes into each of the two tensors of one layer, by their names."""

    recurrent_state: list[StateSpec]
    conv_state: list[StateSpec] = field(default_factory=list)

    def rows(self, kind: str) -> list[StateSpec]:
        """Those of `conv_state` or `recurrent_state`."""
        return self.conv_state if kind == "conv_state" else self.recurrent_state


def layers_of(table: StateTable) -> list[Layer]:
    """Every state in one layer: a layer for each matrix memory, a single one where there is none."""
    memories = [row for row in table if row.name.endswith(".C")] or [table[0]]
    layers = [Layer([row]) for row in memories]
    owners = {_block(row): layer for row, layer in zip(memories, layers, strict=True)}
    others = [row for row in table if row not in memories]
    for row in others:
        if _block(row) in owners:
            owners[_block(row)].conv_state.append(row)
    for row in sorted((row for row in others if _block(row) not in owners), key=_size, reverse=True):
        min(layers, key=lambda layer: _total(layer.conv_state)).conv_state.append(row)
    return layers


def packed_sizes(layers: Sequence[Layer]) -> dict[str, int]:
    """Numbers of each of the two tensors, the same for all layers; every table has some for both."""
    return {kind: max(_total(layer.rows(kind)) for layer in layers) for kind in LEADING}


class PackStates(ir.passes.InPlacePass):
    """The cpu target's graph with genai's inputs and outputs, for one sequence and the ids of a `vocabulary`.

    Inputs: the ids (1, T), then `past_key_values.{layer}.conv_state` (1, 1, S) and `.recurrent_state` (1, 1, 1, R);
    outputs: the logits of the last token (1, 1, V), then `present.{layer}...`. `table` is the state table. With `never` there
    is one logit more, of an id that is never picked. The shapes refuse batches: padding would go through states as tokens do.
    """

    def __init__(self, table: StateTable, vocabulary: int, *, never: bool = False) -> None:
        super().__init__()
        self._table, self._vocabulary, self._never = table, vocabulary, never

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """In place; the graph must have the table's states."""
        graph = _Packing(model.graph)
        past, present = list[ir.Value](), list[ir.Value]()
        layers = layers_of(self._table)
        sizes = packed_sizes(layers)
        for index, layer in enumerate(layers):
            for kind, size in sizes.items():
                past.append(graph.unpack(f"{PAST}.{index}.{kind}", LEADING[kind], layer.rows(kind), size))
                present.append(graph.pack(f"{PRESENT}.{index}.{kind}", LEADING[kind], layer.rows(kind), size))
        for row in self._table:
            if row.initial != 0.0:
                graph.start(row)
        graph.check_ids(self._vocabulary)
        graph.finish(past, [graph.logits(self._vocabulary, self._never), *present])
        return ir.passes.PassResult(model, modified=True)


class _Packing:
    """A graph that gets nodes before its first and after its last."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._inputs = {str(value.name): value for value in graph.inputs}
        self._outputs = {str(value.name): value for value in graph.outputs}
        self._first, self._made = list[ir.Node](), 0

    def unpack(self, name: str, leading: Sequence[int], rows: Sequence[StateSpec], size: int) -> ir.Value:
        """The packed input, from which the plain graph's are taken."""
        past = _named(ir.Value(), name, [*leading, size])
        sizes = _with_rest([_size(row) for row in rows], size)
        parts: Sequence[ir.Value] = [past]
        if len(sizes) > 1:
            parts = self._before("Split", past, self._constant(sizes), outputs=len(sizes), axis=-1)
        for row, part in zip(rows, parts, strict=False):  # what is left over is padding
            (shaped,) = self._before("Reshape", part, self._constant([1, *row.graph_shape]))
            _replace(self._inputs[row.input_name], shaped)
            self._inputs[row.input_name] = shaped
        return past

    def pack(self, name: str, leading: Sequence[int], rows: Sequence[StateSpec], size: int) -> ir.Value:
        """The packed output, of the plain graph's."""
        parts = [
            self._after("Reshape", self._outputs[row.output_name], self._constant([*leading, _size(row)]))
            for row in rows
        ]
        if rest := size - _total(rows):
            parts.append(self._constant(np.zeros([*leading, rest], np.float32)))
        present = parts[0] if rows and len(parts) == 1 else self._after("Concat", *parts, axis=-1)
        return _named(present, name, [*leading, size])

    def start(self, row: StateSpec) -> None:
        """Give an sLSTM's stabilizer its start value while its normalizer is 0; from the first token on that is 1 or more.

        m - 1e30 relu(1 - 2 n)
        """
        m, n = self._inputs[row.input_name], self._inputs[f"past.{_block(row)}.n"]
        less, one, far = (self._constant(np.array(number, np.float32)) for number in (-2.0, 1.0, row.initial))
        users = list(m.uses())
        (doubled,) = self._before("Mul", n, less)
        (left,) = self._before("Add", doubled, one)
        (unset,) = self._before("Relu", left)
        (moved,) = self._before("Mul", unset, far)
        (started,) = self._before("Add", m, moved)
        _take(users, started)

    def check_ids(self, vocabulary: int) -> None:
        """Make ids outside the vocabulary an error: look-ups take negative ones from the end, those of integers any number.

        ids + table[max(ids, -ids 2^31)], of a table of zeros, by an operator that refuses what it does not have.
        """
        ids = self._graph.inputs[0]
        users = list(ids.uses())
        (away,) = self._before("Mul", ids, self._constant(np.array(-AWAY)))
        (place,) = self._before("Max", ids, away)
        (table,) = self._before("ConstantOfShape", self._constant([vocabulary]), value=ir.Tensor(np.zeros(1, np.int64)))
        (nothing,) = self._before("Gather", table, place, axis=0)
        (known,) = self._before("Add", ids, nothing)
        _take(users, known)

    def logits(self, vocabulary: int, never: bool) -> ir.Value:
        """Those of the last token, (1, 1, V), from (1, V) or (1, T, V)."""
        plain = self._graph.outputs[0]
        name, rank = str(plain.name), 0 if plain.shape is None else len(plain.shape)
        plain.name = f"{name}.plain"
        if rank == 3:
            last = self._after("Gather", plain, self._constant([-1]), axis=1)
        else:
            last = self._after("Unsqueeze", plain, self._constant([1]))
        if never:
            last = self._after("Concat", last, self._constant(np.full([1, 1, 1], NEVER, np.float32)), axis=-1)
        return _named(last, name, [1, 1, vocabulary + never])

    def finish(self, past: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
        """The new inputs and outputs in the place of the old."""
        graph, ids = self._graph, self._graph.inputs[0]
        graph.insert_before(graph[0], self._first)
        ids.shape = ir.Shape([1, "tokens"])
        for old, new in ((graph.inputs, [ids, *past]), (graph.outputs, list(outputs))):
            old.clear()
            old.extend(new)

    def _before(self, operator: str, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> Sequence[ir.Value]:
        node = self._node(operator, inputs, outputs, attributes)
        self._first.append(node)
        return node.outputs

    def _after(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = self._node(operator, inputs, 1, attributes)
        self._graph.append(node)
        return node.outputs[0]

    def _node(self, operator: str, inputs: Sequence[ir.Value], outputs: int, attributes: dict[str, Any]) -> ir.Node:
        made = ir.convenience.convert_attributes(attributes)
        node = ir.Node("", operator, inputs, made, num_outputs=outputs, name=f"packing.{self._made}")
        for index, output in enumerate(node.outputs):
            output.name = f"packing.{self._made}.{index}"
        self._made += 1
        return node

    def _constant(self, content: list[int] | NDArray[Any]) -> ir.Value:
        name = f"packing.constant.{self._made}"
        self._made += 1
        array = np.array(content, np.int64) if isinstance(content, list) else content
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _named(value: ir.Value, name: str, shape: Sequence[int]) -> ir.Value:
    """An input or output of float32."""
    value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    return value


def _replace(old: ir.Value, new: ir.Value) -> None:
    _take(list(old.uses()), new)


def _take(users: Sequence[Any], value: ir.Value) -> None:
    """Let nodes read this value, each at its place."""
    for node, index in users:
        node.replace_input_with(index, value)


def _block(row: StateSpec) -> str:
    return row.name.rpartition(".")[0]


def _size(row: StateSpec) -> int:
    return prod(row.shape)


def _total(rows: Sequence[StateSpec]) -> int:
    return sum(map(_size, rows))


def _with_rest(sizes: list[int], size: int) -> list[int]:
    """With the length of the padding, if there is any."""
    rest = size - sum(sizes)
    return [*sizes, rest] if rest else sizes
