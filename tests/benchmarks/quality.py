"""What each way of quantizing costs the shipped model: exports it in all of them, measures, prints the README's table.

    python tests/benchmarks/quality.py DIR [--tokens 12000] [--plot size-kl.png]

`plain` is round-to-nearest without a search of the scales: what llama.cpp's Q4_0 does at blocks of 32.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

import xlstm_edge
from xlstm_edge.evaluate import evaluate
from xlstm_edge.plots import plot_quality
from xlstm_edge.progress import bars
from xlstm_edge.tables import evaluate_table
from xlstm_edge_exporters.bundle import write_bundle
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.interface import GraphOptions
from xlstm_edge_exporters.quantize.plan import make_plan
from xlstm_edge_exporters.quantize.sources import round_to_nearest
from xlstm_edge_exporters.recipe import Recipe

SHIPPED = Path(__file__).resolve().parents[2] / "examples" / "shakespeare"
CALIBRATED = {"quantize": "int4", "calibrate": str(SHIPPED / "calibration.txt")}
EXPORTS: dict[str, dict[str, object]] = {
    "int8": {"quantize": "int8"},
    "int4-head8": {**CALIBRATED, "head_bits": 8},
    "int4-gptq-64": {**CALIBRATED, "block_size": 64},
    "int4-gptq-256": CALIBRATED,
    "int4-rtn-32": {"quantize": "int4", "method": "rtn"},
}
PLAIN = {"plain-32": 32, "plain-256": 256}


def main() -> None:
    """Export, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--tokens", type=int, default=12_000)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path, help="write the results there, for examples/plots/draw.py")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    xlstm_edge.export(SHIPPED, args.dir / "float32", force=True)
    for name, options in EXPORTS.items():
        xlstm_edge.export(SHIPPED, args.dir / name, force=True, **options)
    checkpoint = open_checkpoint(SHIPPED)
    for name, size in PLAIN.items():
        plan = make_plan(checkpoint.spec, checkpoint.weights, Recipe(quantize="int4", method="rtn", block_size=size))
        write_bundle(checkpoint, args.dir / name, GraphOptions(), plan=plan, quantizer=round_to_nearest, force=True)
    bundles = [args.dir / name for name in (*EXPORTS, *PLAIN)]
    with bars(Console(stderr=True)) as progress:
        results = evaluate(
            bundles,
            against=args.dir / "float32",
            text=SHIPPED / "heldout.txt",
            tokens=args.tokens,
            threads=1,
            progress=progress,
        )
    if args.plot is not None:
        plot_quality(results, args.plot)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    Console().print(evaluate_table(results))


if __name__ == "__main__":
    main()
