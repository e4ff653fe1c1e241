"""An accelerator's graph as a Core ML program (MIL), operator by operator, in float16 from end to end.

The graph is the one that `trace` makes for onnxruntime's Core ML provider, so there is one lowering for both. Weights and
constants become float16 here, one tensor at a time: no float32 copy of the model, no cast inside the program.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from xlstm_edge_runtime.errors import CheckpointError
from xlstm_edge_runtime.state import StateSpec, StateTable

# What has the same meaning in both, by name.
ONE_INPUT = {"Erf": "erf", "Exp": "exp", "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}
TWO_INPUTS = {"Add": "add", "Div": "real_div", "Max": "maximum", "Mul": "mul", "Sub": "sub"}
SMALLEST_EPSILON = 2.0**-23  # of a norm: a smaller one may round to 0 in float16
FRESH = 0.25  # an sLSTM's normalizer below this has seen no token; a start value divided by it must still be a float16
Attributes = Mapping[str, Any]
Values = dict[str, Any]


def build_program(graph: ir.Graph, table: StateTable, *, stateful: bool) -> Any:
    """A MIL program of one function, for iOS 18 and macOS 15 if `stateful` and for iOS 16 and macOS 13 if not.

    The graph has its weights. Takes int32 `input_ids` (1, 1) or float32 `inputs_embeds` (1, 1, D), gives float32
    `logits` (1, V) or `last_hidden_state` (1, D). States are float16 (1, *graph_shape) and all start at 0: states of the
    program by `state_name`, or else inputs `past_*` and outputs `present_*`. CheckpointError for weights beyond float16.
    """
    import coremltools as ct  # noqa: PLC0415  # an extra
    from coremltools.converters.mil.mil import Function, Program  # noqa: PLC0415  # same

    first = graph.inputs[0]
    inputs = {str(first.name): _main_input(first), **_state_inputs(table, stateful=stateful)}
    program = Program()
    with Function(inputs, ct.target.iOS18 if stateful else ct.target.iOS16) as function:
        values = _read(first, function.inputs, table, stateful=stateful)
        _Translation(values).run(graph)
        output = str(graph.outputs[0].name)
        function.set_outputs([_main_output(values[output], output), *_write(values, function.inputs, table, stateful)])
    program.add_function("main", function)
    return program


def state_name(row: StateSpec) -> str:
    """What a state is called in a package: Core ML has no dots in names."""
    return row.name.replace(".", "_")


def _main_input(value: ir.Value) -> Any:
    from coremltools.converters.mil.mil import Builder, types  # noqa: PLC0415  # an extra

    assert value.shape is not None
    dtype = types.int32 if value.dtype == ir.DataType.INT64 else types.fp32
    return Builder.TensorSpec(tuple(int(size) for size in value.shape.numpy()), dtype=dtype)


def _main_output(value: Any, name: str) -> Any:
    """float32, which every Swift API reads."""
    from coremltools.converters.mil.mil import Builder  # noqa: PLC0415  # an extra

    return Builder.cast(x=value, dtype="fp32", name=name)


def _state_inputs(table: StateTable, *, stateful: bool) -> Values:
    from coremltools.converters.mil.mil import Builder, types  # noqa: PLC0415  # an extra

    make = Builder.StateTensorSpec if stateful else Builder.TensorSpec
    return {_past(row, stateful): make((1, *row.graph_shape), dtype=types.fp16) for row in table}


def _past(row: StateSpec, stateful: bool) -> str:
    return state_name(row) if stateful else f"past_{state_name(row)}"


def _read(first: ir.Value, inputs: Mapping[str, Any], table: StateTable, *, stateful: bool) -> Values:
    """The graph's inputs by its own names."""
    from coremltools.converters.mil.mil import Builder  # noqa: PLC0415  # an extra

    main = inputs[str(first.name)]
    values = {str(first.name): main if first.dtype == ir.DataType.INT64 else Builder.cast(x=main, dtype="fp16")}
    for row in table:
        given = inputs[_past(row, stateful)]
        values[row.input_name] = Builder.read_state(input=given) if stateful else given
    for row in table:
        if row.initial != 0.0:
            normalizer = values[row.input_name.removesuffix("m") + "n"]
            values[row.input_name] = _started(values[row.input_name], normalizer, row.initial)
    return values


def _started(m: Any, n: Any, initial: float) -> Any:
    """The stabilizer of an sLSTM, `initial` lower where its cell has seen no token yet: n is 0 there, and 1 or more ever after.

    Core ML's states start at 0. In exact arithmetic any start of m will do; but from 0 a first input gate of -20 makes
    c = n = exp(-20), which is 0 in float16, and h = 0 / 0.
    """
    from coremltools.converters.mil.mil import Builder  # noqa: PLC0415  # an extra

    fresh = Builder.relu(x=Builder.sub(x=np.float16(FRESH), y=n))
    return Builder.add(x=m, y=Builder.mul(x=fresh, y=np.float16(initial / FRESH)))


def _write(values: Values, inputs: Mapping[str, Any], table: StateTable, stateful: bool) -> list[Any]:
    """Update the states; without states, the outputs in their place."""
    from coremltools.converters.mil.mil import Builder  # noqa: PLC0415  # an extra

    if not stateful:
        return [Builder.identity(x=values[row.output_name], name=f"present_{state_name(row)}") for row in table]
    for row in table:
        Builder.coreml_update_state(state=inputs[state_name(row)], value=values[row.output_name])
    return []


class _Translation:
    """One MIL operation for each node. Constants stay arrays until an operation takes them."""

    def __init__(self, values: Values) -> None:
        from coremltools.converters.mil.mil import Builder  # noqa: PLC0415  # an extra

        self._values, self._mil = values, Builder

    def run(self, graph: ir.Graph) -> None:
        """Add what every node gives to the values."""
        for node in graph:
            inputs = [None if value is None else self._value(value) for value in node.inputs]
            results = self._translated(node.op_type, inputs, {name: a.value for name, a in node.attributes.items()})
            for output, result in zip(node.outputs, results, strict=True):
                self._values[str(output.name)] = result

    def _value(self, value: ir.Value) -> Any:
        name = str(value.name)
        if name in self._values:
            return self._values[name]
        assert value.const_value is not None
        array = value.const_value.numpy()
        return _half(name, array) if array.dtype == np.float32 else array

    def _translated(self, op: str, inputs: Sequence[Any], attributes: Attributes) -> Sequence[Any]:
        """What one node gives."""
        if op in ONE_INPUT:
            return (getattr(self._mil, ONE_INPUT[op])(x=inputs[0]),)
        if op in TWO_INPUTS:
            return (getattr(self._mil, TWO_INPUTS[op])(x=inputs[0], y=inputs[1]),)
        result = getattr(self, f"_{op.lower()}")(inputs, attributes)
        return result if isinstance(result, (tuple, list)) else (result,)

    def _concat(self, inputs: Sequence[Any], attributes: Attributes) -> Any:
        return self._mil.concat(values=tuple(inputs), axis=attributes["axis"])

    def _conv(self, inputs: Sequence[Any], attributes: Attributes) -> Any:
        bias = {"bias": inputs[2]} if len(inputs) > 2 and inputs[2] is not None else {}
        groups = int(attributes["group"])
        return self._mil.conv(x=inputs[0], weight=inputs[1], groups=groups, pad_type="valid", **bias)

    def _gathernd(self, inputs: Sequence[Any], _: Attributes) -> Any:
        """Rows of a table for indices (1, 1, 1)."""
        return self._mil.gather(x=inputs[0], indices=self._mil.reshape(x=inputs[1], shape=[1, 1]), axis=0)

    def _gemm(self, inputs: Sequence[Any], _: Attributes) -> Any:
        """Always transposed and without a bias."""
        return self._mil.linear(x=inputs[0], weight=inputs[1])

    def _layernormalization(self, inputs: Sequence[Any], attributes: Attributes) -> Any:
        beta = {"beta": inputs[2]} if len(inputs) > 2 and inputs[2] is not None else {}
        epsilon = np.float16(max(attributes["epsilon"], SMALLEST_EPSILON))
        return self._mil.layer_norm(x=inputs[0], axes=[-1], gamma=inputs[1], epsilon=epsilon, **beta)

    def _matmul(self, inputs: Sequence[Any], _: Attributes) -> Any:
        """With a matrix of weights, the operation that Core ML has for those."""
        x, y = inputs
        if isinstance(y, np.ndarray) and y.ndim == 2:
            return self._mil.linear(x=x, weight=np.ascontiguousarray(y.T))
        return self._mil.matmul(x=x, y=y)

    def _reducemax(self, inputs: Sequence[Any], attributes: Attributes) -> Any:
        keep = bool(attributes.get("keepdims", 1))
        return self._mil.reduce_max(x=inputs[0], axes=inputs[1].tolist(), keep_dims=keep)

    def _reshape(self, inputs: Sequence[Any], _: Attributes) -> Any:
        x, sizes = inputs
        shape = [size or x.shape[axis] for axis, size in enumerate(sizes.tolist())]
        return x.reshape(shape) if isinstance(x, np.ndarray) else self._mil.reshape(x=x, shape=shape)

    def _slice(self, inputs: Sequence[Any], _: Attributes) -> Any:
        x, start, end, axis = inputs[0], *(int(number[0]) for number in inputs[1:])
        begins, ends = [0] * len(x.shape), list(x.shape)
        begins[axis], ends[axis] = start, min(end, ends[axis])
        return self._mil.slice_by_index(x=x, begin=begins, end=ends)

    def _split(self, inputs: Sequence[Any], attributes: Attributes) -> Any:
        return self._mil.split(x=inputs[0], split_sizes=inputs[1].tolist(), axis=attributes["axis"])

    def _transpose(self, inputs: Sequence[Any], attributes: Attributes) -> Any:
        return self._mil.transpose(x=inputs[0], perm=list(attributes["perm"]))


def _half(name: str, array: Any) -> Any:
    """float16; CheckpointError where that does not hold a number."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise CheckpointError(
            f"expected weights that float16 holds, got one beyond 65,504 in {name}; take a target of float32"
        )
    return half
