"""What float16 makes of an accelerator's graph: every operator computed on float16 numbers and its result rounded to them.

Accelerators compute so, and say nothing when a number leaves the range: some turn it into infinity, Qualcomm's HTP into
131,008. Here it is seen. Sums inside an operator are float32, as accelerators' are at best.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import StateTable

from .graph_operators import OPERATORS

LARGEST = 65504.0  # the largest float16
LEAST_EXPONENT = -80.0  # below, Qualcomm's HTP gives anything up to 131,008 for exp
KEPT = 4 << 30  # bytes of weights that stay in memory; those of larger graphs are read for every token
PRODUCTS, LEAST_TOKENS, MOST_TOKENS = 8e9, 8, 128
FEWEST_CALLS = 2  # of several tokens: from the start, and from a state
EXACT = ("scale", "scales")  # of integers: hardware multiplies them in more bits
Values = dict[str, Tensor]
Outputs = Callable[[NDArray[np.generic]], NDArray[np.float64]]


class Float16Graph:
    """A graph of one token, run operator by operator.

    `rounded` False keeps float32: what the same operators compute without rounding. `largest` is the largest number that
    any operator gave, and `where` its name; infinity where float16 does not hold it, or an accelerator's Exp fails.
    """

    def __init__(self, path: Path, *, rounded: bool = True) -> None:
        self.graph = ir.load(path).graph
        self.inputs = self.graph.inputs
        self._rounded = rounded
        self._constants: Values = {}
        sizes = [
            value.const_value.nbytes for value in self.graph.initializers.values() if value.const_value is not None
        ]
        self._keep = sum(sizes) <= KEPT
        self.largest, self.where = 0.0, ""

    def run(self, feeds: Mapping[str, Tensor]) -> Values:
        """Inputs by name -> outputs by name, all float32 that float16 holds; ids stay integers."""
        values = {name: self._rounding(tensor) for name, tensor in feeds.items()}
        for node in self.graph:
            inputs = [None if value is None else self._value(value, values) for value in node.inputs]
            if node.op_type == "Exp" and self._rounded:
                self._see_exponent(inputs[0], str(node.outputs[0].name))
            results = OPERATORS[node.op_type](inputs, {name: a.value for name, a in node.attributes.items()})
            if self.rounds(node):
                results = tuple(self._rounding(result) for result in results)
            for output, result in zip(node.outputs, results, strict=True):
                values[str(output.name)] = self._seen(result, str(output.name))
        return {str(output.name): values[str(output.name)] for output in self.graph.outputs}

    def rounds(self, node: ir.Node) -> bool:  # noqa: ARG002  # for studies of what rounding costs where
        """Whether the results of a node are rounded, where the graph is."""
        return True

    def _value(self, value: ir.Value, values: Values) -> Tensor:
        name = str(value.name)
        if name in values:
            return values[name]
        if name not in self._constants:
            assert value.const_value is not None
            tensor = torch.from_numpy(np.array(value.const_value.numpy()))
            tensor = tensor if name.endswith(EXACT) else self._rounding(tensor)
            if not self._keep:
                return tensor
            self._constants[name] = tensor
        return self._constants[name]

    def _rounding(self, tensor: Tensor) -> Tensor:
        return tensor.half().float() if self._rounded and tensor.is_floating_point() else tensor

    def _see_exponent(self, x: Tensor | None, name: str) -> None:
        """What exp is taken of."""
        assert x is not None
        if float(x.min()) < LEAST_EXPONENT:
            self.largest, self.where = torch.inf, name

    def _seen(self, tensor: Tensor, name: str) -> Tensor:
        """The tensor, its largest number remembered; NaN counts as infinity."""
        if tensor.is_floating_point() and tensor.numel():
            largest = float(tensor.abs().max().nan_to_num(torch.inf, torch.inf))
            if largest > self.largest:
                self.largest, self.where = largest, name
        return tensor


@dataclass(frozen=True, slots=True)
class Float16Report:
    """What float16 does to a model over some tokens of its own text, beside the model itself in float32.

    `difference` is the largest of an output, as a share of the outputs' range; `equal` how many outputs have the same
    likeliest token (or, of vectors, largest element). `exact` is the largest difference of the graph in float32, of which
    nothing but rounding is allowed. `largest` is the largest number of any operator, `where` it came from; `inputs` is what was
    fed, in calls of `call` tokens, of which each has one output.
    """

    tokens: int
    difference: float
    equal: int
    exact: float
    largest: float
    where: str
    inputs: NDArray[np.generic] = field(repr=False, compare=False, default_factory=lambda: np.zeros(0))
    call: int = 1

    @property
    def saturated(self) -> bool:
        """Whether a number left float16's range."""
        return not self.largest <= LARGEST

    def __str__(self) -> str:
        where = f"{self.where} gave a number out of float16's range" if self.saturated else "no number out of range"
        what = "tokens" if self.call == 1 else f"calls of {self.call} tokens"
        return (
            f"float16 over {self.tokens} {what}: outputs within {self.difference:.2%} of their range, likeliest token the same "
            f"in {self.equal}, {where}"
        )


def measure_float16(
    path: Path,
    table: StateTable,
    parameters: int,
    reference: Outputs,
    *,
    tokens: int | None = None,
    half: bool = True,
    progress: Progress = no_progress,
) -> Float16Report:
    """Run a static graph in float16 over text that it writes itself in float32, and hold both to the model's own outputs.

    `reference` gives the outputs (T, V) or (T, D) of the checkpoint for ids (T,) or vectors (T, D). A stack of vectors gets
    random ones. `tokens` None takes as many as a model of so many parameters has time for. Without `half` everything that is
    reported is of float32, and nothing runs in float16.
    """
    count = tokens or int(min(max(PRODUCTS / parameters, LEAST_TOKENS), MOST_TOKENS))
    with torch.no_grad(), _one_thread():
        return _measure(path, table, count, reference, half, progress)


def measure_prompts(
    path: Path,
    table: StateTable,
    inputs: NDArray[np.generic],
    reference: Outputs,
    *,
    half: bool = True,
    progress: Progress = no_progress,
) -> Float16Report:
    """The same of a graph that takes several tokens in a call, over `inputs` (T,) or (T, D), longer if they are few."""
    with torch.no_grad(), _one_thread():
        streams = _Streams(path, table, half)
        call = streams.tokens
        count = max(len(inputs) // call, FEWEST_CALLS)
        fed = np.resize(inputs, (count * call, *inputs.shape[1:]))
        for index in range(count):
            progress("float16", index, count)
            streams.read(torch.from_numpy(fed[None, index * call : (index + 1) * call]))
        return streams.report(reference(fed)[call - 1 :: call], fed)


def _measure(
    path: Path, table: StateTable, count: int, reference: Outputs, half: bool, progress: Progress
) -> Float16Report:
    streams = _Streams(path, table, half)
    source = _Source(streams.input)
    for index in range(count):
        progress("float16", index, count)
        source.take(streams.read(source.next()))
    fed = source.inputs()
    return streams.report(reference(fed), fed)


class _Streams:
    """A graph in float32 and, if `half`, in float16 beside it, with what both gave; without `half` float32 is both."""

    def __init__(self, path: Path, table: StateTable, half: bool) -> None:
        floats = _Stream(path, table, rounded=False)
        self._both = (floats, _Stream(path, table, rounded=True) if half else floats)
        self._outputs: list[tuple[Tensor, Tensor]] = []
        self.input, self.tokens = floats.input, floats.tokens

    def read(self, inputs: Tensor) -> Tensor:
        """Ids (1, T) or vectors (1, T, D) in, the outputs of the last in float32."""
        floats, halves = self._both
        output = floats.read(inputs)
        self._outputs.append((output, output if halves is floats else halves.read(inputs)))
        return output

    def report(self, reference: NDArray[np.float64], fed: NDArray[np.generic]) -> Float16Report:
        """The outputs beside those that are wanted after each call."""
        wanted = [torch.from_numpy(row).float() for row in reference]
        exact = max(_share(got, want) for (got, _), want in zip(self._outputs, wanted, strict=True))
        difference = max(_share(got, want) for (_, got), want in zip(self._outputs, wanted, strict=True))
        equal = sum(int(got.argmax() == want.argmax()) for (_, got), want in zip(self._outputs, wanted, strict=True))
        graph = self._both[1].graph
        return Float16Report(len(wanted), difference, equal, exact, graph.largest, graph.where, fed, self.tokens)


class _Stream:
    """A graph with its state."""

    def __init__(self, path: Path, table: StateTable, *, rounded: bool) -> None:
        self.graph = Float16Graph(path, rounded=rounded)
        self._names = {row.output_name: row.input_name for row in table}
        initial = table.initial()
        self._state = {row.input_name: torch.from_numpy(initial[row.name]) for row in table}
        self.input = next(value for value in self.graph.inputs if value.name not in self._state)
        assert self.input.shape is not None
        self.tokens = int(self.input.shape.numpy()[1])

    def read(self, inputs: Tensor) -> Tensor:
        """Ids (1, T) or vectors (1, T, D) in, the outputs of the last."""
        results = self.graph.run({str(self.input.name): inputs, **self._state})
        self._state = {self._names[name]: value for name, value in results.items() if name in self._names}
        output = next(value for name, value in results.items() if name not in self._names)
        return output.reshape(-1, output.shape[-1])[-1]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Products of one row wait for memory; more threads only wait for each other between hundreds of small operators."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _share(got: Tensor, wanted: Tensor) -> float:
    """Largest difference as a share of the range; infinity for anything that is no number."""
    span = float(wanted.max() - wanted.min()) or 1.0
    return float(((got - wanted).abs().max() / span).nan_to_num(torch.inf, torch.inf))


class _Source:
    """What is fed to a graph: text that it writes itself, or random vectors."""

    def __init__(self, value: ir.Value) -> None:
        self._input = value
        self._random = np.random.default_rng(0)
        self._token, self._fed = 0, list[Tensor]()

    def next(self) -> Tensor:
        """The graph's input of the next step."""
        assert self._input.shape is not None
        shape = tuple(int(size) for size in self._input.shape.numpy())
        if self._input.dtype == ir.DataType.INT64:
            fed = torch.full(shape, self._token, dtype=torch.int64)
        else:
            fed = torch.from_numpy(self._random.standard_normal(shape).astype(np.float32))
        self._fed.append(fed)
        return fed

    def inputs(self) -> NDArray[np.generic]:
        """All that was fed: ids (T,) or vectors (T, D)."""
        together: NDArray[np.generic] = torch.cat([fed[0] for fed in self._fed]).numpy()
        return together

    def take(self, logits: Tensor) -> None:
        """Draw the next token."""
        probabilities: NDArray[np.float64] = torch.softmax(logits.double(), -1).numpy()
        self._token = int(self._random.choice(len(probabilities), p=probabilities / probabilities.sum()))
