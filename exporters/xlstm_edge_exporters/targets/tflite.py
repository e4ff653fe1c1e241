"""LiteRT's own form of accelerators' graphs, made ahead of time by litert-torch, which translates what torch exports.

    model.tflite   each graph as a signature; weights that graphs have in common are there once

A signature takes and gives what its graph does, by the same names with `_` for `.`: `input_ids` (int32) or `inputs_embeds`,
`past_blocks_0_C` and so on; `logits` or `last_hidden_state`, `present_blocks_0_C`. The same graphs give the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..extras import import_extra
from ..graph_operators import OPERATORS
from ..quiet import quiet, silent

TFLITE = "model.tflite"


def write_tflite(graphs: Mapping[str, Path], out: Path) -> None:
    """Write static graphs, by the names of their signatures, as the file `out`. DependencyError without litert-torch."""
    with quiet("litert_torch"), silent(), torch.no_grad():
        litert = import_extra("litert-torch", "LiteRT's own form of a graph", "litert", module="litert_torch")
        converter, shared = litert.Converter(), dict[str, Tensor]()
        for name, path in graphs.items():
            module = _Graph(path, shared).eval()
            converter.signature(name, module, sample_kwargs=module.examples())
        converter.convert().export(str(out))


def argument_name(name: str) -> str:
    """What an input or output of a graph is called in a signature: arguments have no dots in their names."""
    return name.replace(".", "_")


class _Graph(nn.Module):
    """A graph as a module that torch traces: its float constants are buffers, all others only say shapes."""

    def __init__(self, path: Path, shared: dict[str, Tensor]) -> None:
        super().__init__()
        self._graph = ir.load(path).graph
        self._constants: dict[str, Any] = {}
        self._buffer_names: dict[str, str] = {}
        for index, (name, value) in enumerate(self._graph.initializers.items()):
            assert value.const_value is not None
            array = np.array(value.const_value.numpy())
            if array.dtype == np.float32:
                self._buffer_names[name] = f"constant_{index}"
                self.register_buffer(f"constant_{index}", _once(name, array, shared))
            else:
                self._constants[name] = array

    def examples(self) -> dict[str, Tensor]:
        """Zeros of the types and shapes of the graph's inputs."""
        made = {}
        for value in self._graph.inputs:
            assert value.shape is not None
            dtype = torch.int32 if value.dtype == ir.DataType.INT64 else torch.float32
            made[argument_name(str(value.name))] = torch.zeros([int(size) for size in value.shape.numpy()], dtype=dtype)
        return made

    def forward(self, **arguments: Tensor) -> dict[str, Tensor]:
        """One call of the graph."""
        values: dict[str, Any] = {
            str(value.name): arguments[argument_name(str(value.name))] for value in self._graph.inputs
        }
        values |= self._constants | {name: getattr(self, buffer) for name, buffer in self._buffer_names.items()}
        for node in self._graph:
            inputs = [None if value is None else values[str(value.name)] for value in node.inputs]
            results = OPERATORS[node.op_type](inputs, {name: a.value for name, a in node.attributes.items()})
            values |= {str(output.name): result for output, result in zip(node.outputs, results, strict=True)}
        return {argument_name(str(value.name)): values[str(value.name)] for value in self._graph.outputs}


def _once(name: str, array: Any, shared: dict[str, Tensor]) -> Tensor:
    """The array as a tensor, the same one for graphs that have it in common: the converter goes by where numbers lie."""
    if name not in shared or not np.array_equal(shared[name].numpy(), array):
        shared[name] = torch.from_numpy(array)
    return shared[name]
