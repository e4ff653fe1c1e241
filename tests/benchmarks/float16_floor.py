"""What float16 costs whatever the order of operations, beside what it costs the graph as it is.

    python tests/benchmarks/float16_floor.py FOLDER [NAME=CHECKPOINT ...] [--tokens 1000] [--texts 3]

Any program in float16 rounds the weights, the state between two tokens, what goes into a product and comes out of it, and
sums of the residual stream. "floor" rounds these and computes all else exactly: no order of operations does better on
average. "+ Max" rounds the results of Max besides, which changes next to nothing but which numbers are rounded, and so shows
how much of the largest difference is chance. Three texts, each drawn by the model itself from a seed of its own.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script

import xlstm_edge
from tests.benchmarks.devices import checkpoints, outputs_of
from xlstm_edge_exporters import float16
from xlstm_edge_exporters.float16 import Float16Graph, measure_float16
from xlstm_edge_runtime.manifest import read_manifest

Plain = float16._Source
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
SUMS = frozenset({"Add"})
Rounds = Callable[[Float16Graph, ir.Node], bool]


def floor(graph: Float16Graph, node: ir.Node) -> bool:
    """Products, their operands, sums, and the new state."""
    feeds = any(user.op_type in PRODUCTS for output in node.outputs for user in output.consumers())
    gives = any(output.is_graph_output() for output in node.outputs)
    return feeds or gives or node.op_type in PRODUCTS | SUMS


def with_max(graph: Float16Graph, node: ir.Node) -> bool:
    return floor(graph, node) or node.op_type == "Max"


WAYS: dict[str, Rounds] = {"floor": floor, "+ Max": with_max, "every operator": lambda _graph, _node: True}


def seeded(seed: int) -> type[Plain]:
    """Text drawn from this seed."""

    class Source(Plain):
        def __init__(self, value: ir.Value) -> None:
            super().__init__(value)
            self._random = np.random.default_rng(seed)

    return Source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("named", nargs="*", help="NAME=CHECKPOINT")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--texts", type=int, default=3)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    print("| checkpoint | rounded | largest difference, text by text | same likeliest |\n|---|---|---|---|")
    for name, source in checkpoints(arguments.folder, arguments.named):
        out = arguments.folder / f"coreml-{name}".replace(", ", "-").replace(" ", "-")
        xlstm_edge.export(source, out, target="coreml", force=out.exists())
        for way, rounds in WAYS.items():
            Float16Graph.rounds = rounds  # type: ignore[method-assign]  # what is studied
            print(f"| {name} | {way} | {' | '.join(texts(out, outputs_of(source), arguments))} |", flush=True)
        Float16Graph.rounds = WAYS["every operator"]  # type: ignore[method-assign]  # the export measures, too


def texts(
    bundle: Path, reference: Callable[[NDArray[np.generic]], NDArray[np.float64]], arguments: argparse.Namespace
) -> tuple[str, str]:
    """Largest differences and equal tokens, over all texts."""
    manifest, differences, equal = read_manifest(bundle), list[str](), 0
    for seed in range(arguments.texts):
        float16._Source = seeded(seed)  # type: ignore[misc]  # another text
        report = measure_float16(
            bundle / "model.onnx", manifest.state, manifest.model.parameters, reference, tokens=arguments.tokens
        )
        differences.append(f"{report.difference:.1%}")
        equal += report.equal
    return ", ".join(differences), f"{equal}/{arguments.texts * arguments.tokens}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
