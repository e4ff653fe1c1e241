"""Draw the plots of the READMEs from one file of results, results.json beside this script; nothing is measured here.

    python examples/plots/draw.py                     draw all plots
    python examples/plots/draw.py add KEY FILE.json --command "..." [--note "..."]    put measured results in

What each entry holds and how it was measured stands in the file: the command, the date, the machine. The keys:

    quality     python tests/benchmarks/quality.py DIR --json FILE.json
    depth       xlstm-edge bench BUNDLE --depth 0,1k,10k,100k,1M --generate 400 --threads 1 --json
    positions   xlstm-edge eval BUNDLE --positions --text examples/shakespeare/heldout.txt --json
    speed       python tests/benchmarks/reference_shapes.py DIR --llama LLAMA_DIR ... --json
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from xlstm_edge.bench import machine
from xlstm_edge.plots import figure, plot_depths, plot_positions, plot_quality

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
KEYS = ("quality", "depth", "positions", "speed")


def draw(results: dict[str, Any], folder: Path) -> None:
    """One PNG a key."""
    plot_quality(results["quality"]["results"], folder / "size-kl.png")
    plot_depths(results["depth"]["results"], folder / "depth.png")
    plot_positions(results["positions"]["results"], folder / "positions.png")
    plot_speed(results["speed"]["results"]["rows"], folder / "speed.png")


def plot_speed(rows: list[dict[str, Any]], path: Path) -> None:
    """Tokens a second as a multiple of llama.cpp's, one bar a job; 1 is as fast."""
    rows = [row for row in rows if "llama.cpp" in row]
    labels = [f"{row['shape']} {row['variant']}, {row['job']}, threads: {row['threads']}" for row in rows]
    ratios = [row["ours"] / row["llama.cpp"] for row in rows]
    picture = figure(8, 0.34 * len(rows) + 1)
    axes = picture.add_subplot()
    colours = ["#2a7f62" if ratio >= 1 else "#b5543c" for ratio in ratios]
    axes.barh(labels, [ratio - 1 for ratio in ratios], left=1, color=colours)  # from "as fast" to either side
    for row, ratio in enumerate(ratios):
        axes.text(max(ratio, 1) * 1.02, row, f"{ratio:.2f}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlim(0.7, 1.4 * max(ratios))
    axes.tick_params(labelsize=8)
    axes.set(xlabel="tokens a second, as a multiple of llama.cpp on a Llama of the same size", xscale="log")
    axes.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    picture.savefig(str(path), dpi=130, format="png")


def without_folders(value: Any) -> Any:
    """The same document, bundles by their names: where they lay on the machine is nobody's business."""
    if isinstance(value, list):
        return [without_folders(member) for member in value]
    if isinstance(value, dict):
        return {key: Path(member).name if key == "bundle" else without_folders(member) for key, member in value.items()}
    return value


def add(results: dict[str, Any], key: str, file: Path, command: str, note: str | None) -> None:
    """Put what a command measured into the results, with today's date and this machine."""
    entry: dict[str, Any] = {"command": command, "date": str(datetime.date.today()), "machine": machine(None)}
    if note:
        entry["note"] = note
    results[key] = entry | {"results": without_folders(json.loads(file.read_text(encoding="utf-8")))}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Draw, or add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the PNG files")
    verbs = parser.add_subparsers(dest="verb")
    adding = verbs.add_parser("add", help="put measured results in")
    adding.add_argument("key", choices=KEYS)
    adding.add_argument("file", type=Path)
    adding.add_argument("--command", required=True)
    adding.add_argument("--note")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if args.verb == "add":
        add(results, args.key, args.file, args.command, args.note)
    else:
        draw(results, args.out)


if __name__ == "__main__":
    main()
