"""A finished Core ML package run without Core ML: its ML program read back from the files, each operation in torch.

Operations mean what coremltools documents them as; sums inside an operation are float32 and its result is rounded to
float16, or all is float64 and nothing is rounded.
"""

import contextlib
import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

INSIDE = "model.mlpackage/Data/com.apple.CoreML"
Values = dict[str, Tensor]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """coremltools warns of other packages' versions when it is imported."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class Package:
    """An unzipped package: `spec` as Core ML reads it, `function` as coremltools does."""

    def __init__(self, archive: Path, folder: Path) -> None:
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
        self.folder = folder / INSIDE
        with quiet():
            import coremltools as ct
            from coremltools.converters.mil.frontend.milproto.load import load

            self.spec = ct.utils.load_spec(str(self.folder / "model.mlmodel"))
            program = load(self.spec, self.spec.specificationVersion, str(self.folder / "weights"))
        (self.function,) = program.functions.values()
        self.operations = [operation for operation in self.function.operations if operation.op_type != "const"]
        self.constants = [
            operation.outputs[0] for operation in self.function.operations if operation.op_type == "const"
        ]

    def initial(self) -> Values:
        """Every state, or input in its place, at 0."""
        features = [*self.spec.description.state, *self.spec.description.input]
        names = [str(feature.name) for feature in features if not str(feature.name).startswith("input")]
        return {name: torch.zeros(self.function.inputs[name].shape) for name in names}

    def run(self, main: Tensor, state: Mapping[str, Tensor], *, rounded: bool = True) -> tuple[Tensor, Values]:
        """The output of one token and the state after it, names as in `state`."""
        run = _Run(rounded)
        first = next(str(f.name) for f in self.spec.description.input if str(f.name).startswith("input"))
        for name, tensor in {first: main, **state}.items():
            run.values[name] = tensor if name == first else run.rounding(tensor)
        new: Values = {}
        for operation in self.operations:
            if operation.op_type == "coreml_update_state":
                new[operation.state.name] = run.value(operation.value)
            run.step(operation)
        outputs = {str(f.name): run.values[str(f.name)] for f in self.spec.description.output}
        new |= {name.replace("present_", "past_"): v for name, v in outputs.items() if name.startswith("present_")}
        return next(v for name, v in outputs.items() if not name.startswith("present_")), new


class _Run:
    """The values of one call."""

    def __init__(self, rounded: bool) -> None:
        self.values: Values = {}
        self._rounded = rounded

    def rounding(self, tensor: Tensor) -> Tensor:
        """Floats as this run computes with them."""
        if not tensor.is_floating_point():
            return tensor
        return tensor.half().float() if self._rounded else tensor.double()

    def value(self, var: Any) -> Tensor:
        """A variable's tensor: computed, or a constant."""
        if var.name in self.values:
            return self.values[var.name]
        assert var.val is not None, var.name
        return self.rounding(torch.from_numpy(np.array(var.val)))

    def step(self, operation: Any) -> None:
        """Compute one operation."""
        result = OPERATIONS[operation.op_type](operation, self.value)
        for output, tensor in zip(operation.outputs, result if isinstance(result, tuple) else (result,), strict=True):
            assert tuple(output.shape) == tuple(tensor.shape), operation.name
            self.values[output.name] = self.rounding(tensor)


Value = Callable[[Any], Tensor]


def _one(function: Callable[[Tensor], Tensor]) -> Callable[[Any, Value], Tensor]:
    return lambda op, value: function(value(op.x))


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Value], Tensor]:
    return lambda op, value: function(value(op.x), value(op.y))


def _conv(op: Any, value: Value) -> Tensor:
    assert op.pad_type.val == "valid" and set(op.strides.val) == set(op.dilations.val) == {1}
    bias = None if op.bias is None else value(op.bias)
    return F.conv1d(value(op.x), value(op.weight), bias, groups=int(op.groups.val))


def _gelu(op: Any, value: Value) -> Tensor:
    assert op.mode.val == "EXACT"
    return F.gelu(value(op.x))


def _layer_norm(op: Any, value: Value) -> Tensor:
    x = value(op.x)
    assert [axis % x.ndim for axis in op.axes.val] == [x.ndim - 1]
    beta = None if op.beta is None else value(op.beta)
    gamma = None if op.gamma is None else value(op.gamma)
    return F.layer_norm(x, (x.shape[-1],), gamma, beta, float(op.epsilon.val))


def _linear(op: Any, value: Value) -> Tensor:
    return F.linear(value(op.x), value(op.weight), None if op.bias is None else value(op.bias))


def _matmul(op: Any, value: Value) -> Tensor:
    x, y = value(op.x), value(op.y)
    return (x.mT if op.transpose_x.val else x) @ (y.mT if op.transpose_y.val else y)


def _slice(op: Any, value: Value) -> Tensor:
    assert op.stride is None or set(op.stride.val) == {1}
    assert op.begin_mask is None and op.end_mask is None and op.squeeze_mask is None
    return value(op.x)[tuple(slice(int(b), int(e)) for b, e in zip(op.begin.val, op.end.val, strict=True))]


OPERATIONS: dict[str, Callable[[Any, Value], Tensor | tuple[Tensor, ...]]] = {
    "add": _two(torch.add),
    "cast": _one(lambda x: x),
    "concat": lambda op, value: torch.cat([value(v) for v in op.values], int(op.axis.val)),
    "conv": _conv,
    "coreml_update_state": lambda op, value: value(op.value),
    "exp": _one(torch.exp),
    "gather": lambda op, value: value(op.x)[value(op.indices).long()],
    "gelu": _gelu,
    "identity": _one(lambda x: x),
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "maximum": _two(torch.maximum),
    "mul": _two(torch.mul),
    "read_state": lambda op, value: value(op.input),
    "real_div": _two(torch.div),
    "reduce_max": lambda op, value: value(op.x).amax([int(a) for a in op.axes.val], keepdim=bool(op.keep_dims.val)),
    "relu": _one(torch.relu),
    "reshape": lambda op, value: value(op.x).reshape([int(size) for size in op.shape.val]),
    "sigmoid": _one(torch.sigmoid),
    "silu": _one(F.silu),
    "slice_by_index": _slice,
    "split": lambda op, value: torch.split(value(op.x), [int(s) for s in op.split_sizes.val], int(op.axis.val)),
    "sub": _two(torch.sub),
    "tanh": _one(torch.tanh),
    "transpose": lambda op, value: value(op.x).permute([int(axis) for axis in op.perm.val]),
}
