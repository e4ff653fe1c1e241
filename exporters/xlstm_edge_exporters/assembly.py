"""Put a graph together out of traced parts: each block a copy of the part of its kind, under its own names."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from .interface import GraphOptions, graph_states, input_name, output_name
from .parts import PARAMETER, Parts, distinct_blocks, pair_names
from .spec import ModelSpec


def assemble(spec: ModelSpec, options: GraphOptions, parts: Parts) -> ir.Graph:
    """The whole graph; parameters have their canonical names and no data, constants of the trace their data."""
    rows, whole = graph_states(spec, options), _Whole(parts)
    inputs = [whole.input("inputs", input_name(spec))]
    outputs: dict[str, ir.Value] = {}
    pair: Sequence[ir.Value] = ()
    kinds = distinct_blocks(spec.blocks)[1]
    for index, kind in enumerate(kinds):
        mine, its = f"blocks.{index}.", f"blocks.{kind}."
        states = [row.name.removeprefix(mine) for row in rows if row.name.startswith(mine)]
        inputs += [whole.input(f"past.{its}{name}", f"past.{mine}{name}") for name in states]
        if pair:
            whole.give(kind - 1, pair)
        made = whole.copy([*pair_names(kind), *(f"present.{its}{name}" for name in states)], its, mine)
        pair = made[:2]
        outputs |= {f"present.{mine}{name}": value for name, value in zip(states, made[2:], strict=True)}
    whole.give(max(kinds), pair)
    outputs[output_name(spec)] = whole.copy(["output"], "", "")[0]
    for name, value in outputs.items():
        value.name = name
    ordered = [outputs[name] for name in (output_name(spec), *(row.output_name for row in rows))]
    return whole.graph(inputs, ordered, spec.family)


class _Whole:
    """The graph that grows: copied nodes, and the initializers that copies share."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._bound: dict[ir.Value, ir.Value] = {}

    def input(self, source: str, name: str) -> ir.Value:
        """A new input of the graph, in the place of a part's."""
        old = self._parts.inputs[source]
        self._bound[old] = ir.Value(name=name, shape=old.shape, type=old.type)
        return self._bound[old]

    def give(self, kind: int, pair: Sequence[ir.Value]) -> None:
        """What the part after block `kind` of the parts is given from now on."""
        for name, value in zip(pair_names(kind, "given."), pair, strict=True):
            self._bound[self._parts.inputs[name]] = value

    def copy(self, outputs: Sequence[str], its: str, mine: str) -> list[ir.Value]:
        """Copies of these outputs and of all that leads to them; `its` at the head of names becomes `mine`."""
        wanted = [self._parts.outputs[name] for name in outputs]
        needed = _leading_to(wanted)
        made: dict[ir.Value, ir.Value] = {}
        for node in self._parts.graph:
            if node in needed:
                self._nodes.append(self._copied(node, made, its, mine))
        return [made[value] if value in made else self._bound[value] for value in wanted]

    def graph(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], name: str) -> ir.Graph:
        """The finished graph."""
        return ir.Graph(
            inputs,
            outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=dict(self._parts.graph.opset_imports),
            name=name,
        )

    def _copied(self, node: ir.Node, made: dict[ir.Value, ir.Value], its: str, mine: str) -> ir.Node:
        taken = [None if value is None else self._value(value, made, its, mine) for value in node.inputs]
        new = ir.Node(
            node.domain,
            node.op_type,
            taken,
            node.attributes.values(),
            num_outputs=len(node.outputs),
            version=node.version,
        )
        new.name = f"{mine}{node.name}"
        for old, output in zip(node.outputs, new.outputs, strict=True):
            output.name, output.shape, output.type = f"{mine}{old.name}", old.shape, old.type
            made[old] = output
        return new

    def _value(self, old: ir.Value, made: Mapping[ir.Value, ir.Value], its: str, mine: str) -> ir.Value:
        """What an input of a copied node is in the whole graph."""
        if old in made:
            return made[old]
        if not old.is_initializer():
            return self._bound[old]
        assert old.name is not None
        name, constant = old.name, old.const_value
        if name in self._parts.parameters:
            name, constant = name.removeprefix(PARAMETER), None
            name = mine + name.removeprefix(its) if name.startswith(its) else name  # the embedding is no block's
        if name not in self._initializers:
            self._initializers[name] = ir.Value(name=name, shape=old.shape, type=old.type, const_value=constant)
        return self._initializers[name]


def _leading_to(values: Sequence[ir.Value]) -> set[ir.Node]:
    """All nodes that the values come from."""
    found, waiting = set[ir.Node](), [node for value in values if (node := value.producer()) is not None]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [before for before in node.predecessors() if before not in found]
    return found
