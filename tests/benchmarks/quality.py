"""What each way of quantizing costs a model: exports it in all of them, measures, prints the README's table.

    python tests/benchmarks/quality.py DIR [--tokens 12000] [--plot size-kl.png]
    python tests/benchmarks/quality.py DIR --checkpoint CKPT      # its heldout.txt and calibration.txt lie beside it
    python tests/benchmarks/quality.py DIR --calibration-sizes    # KL over the tokens of a self-made calibration
    python tests/benchmarks/quality.py DIR --snapshots            # KL of a stream that sleeps in float16 every 64 tokens

`plain` is round-to-nearest without a search of the scales: what llama.cpp's Q4_0 does at blocks of 32.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import xlstm_edge
from xlstm_edge.evaluate import evaluate, log_softmax, read_ids
from xlstm_edge.plots import plot_quality
from xlstm_edge.progress import bars
from xlstm_edge.tables import evaluate_table
from xlstm_edge_exporters.bundle import write_bundle
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.interface import GraphOptions
from xlstm_edge_exporters.quantize.plan import average_bits, make_plan
from xlstm_edge_exporters.quantize.scheme import Scheme
from xlstm_edge_exporters.quantize.sources import round_to_nearest
from xlstm_edge_exporters.recipe import Recipe

SHIPPED = Path(__file__).resolve().parents[2] / "examples" / "shakespeare"
EXPORTS: dict[str, dict[str, Any]] = {
    "int8": {"quantize": "int8"},
    "mixed": {"quantize": "mixed"},
    "int4-head8": {"quantize": "int4", "head_bits": 8},
    "int4": {"quantize": "int4"},
    "int4-text": {"quantize": "int4", "calibrate": "TEXT"},
    "int4-gptq-64": {"quantize": "int4", "block_size": 64},
    "int4-gptq-256": {"quantize": "int4", "block_size": 256},
    "int4-rtn-32": {"quantize": "int4", "method": "rtn"},
    "int4-ffn2": {"quantize": "int4", "block_size": 64, "keep": {"blocks.*.ffn.*": 2}},
    "int2": {"quantize": "int4", "block_size": 64, "keep": {"blocks.*": 2}},
}
PLAIN = {"plain-32": 32, "plain-256": 256}
ASLEEP = 64  # tokens between two snapshots
SIZES = (1024, 3072, 8192, 24_576, 49_152)


def main() -> None:
    """Export, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--tokens", type=int, default=12_000)
    parser.add_argument("--only", nargs="+", help="names of the exports to make")
    parser.add_argument("--calibration-sizes", action="store_true")
    parser.add_argument("--snapshots", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path, help="write the results there, for examples/plots/draw.py")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    if args.snapshots:
        snapshots(args.checkpoint, args.dir, args.tokens)
        return
    exports = (
        {f"self-{n}": {"quantize": "int4", "calibration_tokens": n} for n in SIZES}
        if args.calibration_sizes
        else EXPORTS
    )
    bundles, seconds = make(args.checkpoint, args.dir, exports, args.only)
    with bars(Console(stderr=True)) as progress:
        results = evaluate(
            bundles,
            against=args.dir / "float32",
            text=args.checkpoint / "heldout.txt",
            tokens=args.tokens,
            threads=1,
            progress=progress,
        )
    for path, row in zip(bundles, results, strict=True):
        row |= {"bits_a_weight": bits_of(args.checkpoint, path), "export_seconds": seconds.get(path.name)}
    if args.plot is not None:
        plot_quality(results, args.plot)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    Console().print(evaluate_table(results))
    for path, row in zip(bundles, results, strict=True):
        Console().print(
            f"{path.name}: {row['bits_a_weight']:.2f} bits a quantized weight, {row['export_seconds'] or 0:.0f} s"
        )


def snapshots(source: Path, folder: Path, tokens: int) -> None:
    """Print bytes of both kinds of snapshots, and what float16 ones change in a stream of the float model."""
    model = xlstm_edge.load(xlstm_edge.export(source, folder / "float32", force=True), threads=1)
    ids, awake, sleeper = read_ids(model, source / "heldout.txt", tokens), model.session(), model.session()
    kl, saved = np.empty(len(ids)), {dtype: folder / f"{dtype}.safetensors" for dtype in ("float32", "float16")}
    for index, token in enumerate(ids.tolist()):
        if index % ASLEEP == 0:
            sleeper.save(saved["float16"], dtype="float16")
            sleeper.load(saved["float16"])
        wanted, got = log_softmax(awake.step(token)), log_softmax(sleeper.step(token))
        kl[index] = float((np.exp(wanted) * (wanted - got)).sum())
    awake.save(saved["float32"])
    sizes = ", ".join(f"{dtype} {path.stat().st_size:,} bytes" for dtype, path in saved.items())
    Console().print(f"{sizes}; KL {kl.mean():.1e}, 99 of 100 below {np.percentile(kl, 99):.1e}, {len(ids):,} tokens")


def make(
    source: Path, folder: Path, exports: dict[str, dict[str, Any]], only: list[str] | None
) -> tuple[list[Path], dict[str, float]]:
    """The bundles, and how long their exports took after a first one."""
    xlstm_edge.export(source, folder / "float32", force=True)
    seconds: dict[str, float] = {}
    for name, options in exports.items():
        if only and name not in only:
            continue
        given = {key: source / "calibration.txt" if value == "TEXT" else value for key, value in options.items()}
        begin = time.perf_counter()
        xlstm_edge.export(source, folder / name, force=True, **given)
        seconds[name] = time.perf_counter() - begin
    checkpoint, plain = open_checkpoint(source), {} if exports is not EXPORTS else PLAIN
    for name, size in plain.items():
        if not only or name in only:
            plan = make_plan(
                checkpoint.spec, checkpoint.weights, Recipe(quantize="int4", method="rtn", block_size=size)
            )
            write_bundle(checkpoint, folder / name, GraphOptions(), plan=plan, quantizer=round_to_nearest, force=True)
    return [folder / name for name in (*exports, *plain) if not only or name in only], seconds


def bits_of(source: Path, bundle: Path) -> float:
    """Bits a quantized weight of a bundle, scales and padding included."""
    tensors = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["quantization"]["tensors"]
    weights = open_checkpoint(source).weights
    plan = {name: Scheme(entry["bits"], entry["block_size"]) for name, entry in tensors.items()}
    return average_bits({name: weights[name].shape for name in plan}, plan)


if __name__ == "__main__":
    main()
