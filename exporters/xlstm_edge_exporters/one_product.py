"""A graph of one product as an export writes it: what a processor's kernel does when nothing else is in its way."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from .external_data import save_graph
from .quantize.rewrite import QuantizeGraph
from .quantize.scheme import Scheme
from .quantize.sources import Load, quantized_sources, round_to_nearest
from .weights import loaded

NAME = "blocks.0.mixer.out.weight"
OPSET, IR_VERSION = 21, 10


def write_product(path: Path, width: int, rows: int, scheme: tuple[int, int] | None) -> None:
    """Save x (rows, width) -> x @ W for a random square W, quantized to `scheme`: bits and block size; None: float32."""
    size = [width, width]
    x, y, weight = (_value("x", [rows, width]), _value("y", [rows, width]), _value(NAME, size))
    node = ir.node("MatMul", [x, weight], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[weight], opset_imports={"": OPSET}, name="product")
    model = ir.Model(graph, ir_version=IR_VERSION)
    matrix = loaded(np.random.default_rng(0).standard_normal(size, np.float32) * np.float32(width**-0.5))
    sources: dict[str, Load] = {NAME: matrix.load}
    if scheme is not None:
        plan = {NAME: Scheme(*scheme)}
        QuantizeGraph(plan)(model)
        sources, _ = quantized_sources({NAME: matrix}, plan, round_to_nearest, tied=False)
    save_graph(model, sources, path)


def _value(name: str, shape: list[int]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
