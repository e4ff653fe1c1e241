"""What a second graph for prompts is worth: the same tokens one by one and in calls, in turns on each provider installed.

    python tests/benchmarks/prompts.py FOLDER [NAME=CHECKPOINT ...] [--chunk 32] [--rounds 9] [--threads 1]

Prints the table of exporters/targets.md: nodes of both graphs, and the medians of both ways to read `chunk` tokens. Qualcomm's
simulator says where nodes land and not how long they take; Core ML's checker the same.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script

import xlstm_edge
import xlstm_edge_runtime as xr
from tests.benchmarks.devices import coreml_verdict
from tests.conftest import SHIPPED
from xlstm_edge_runtime import plugins
from xlstm_edge_runtime.providers import PROVIDERS


def nodes_of(graph: Path) -> int:
    return len(onnx.load(graph, load_external_data=False).graph.node)


def bundle_for(target: str, name: str, source: Path, arguments: argparse.Namespace) -> Path:
    out: Path = arguments.folder / f"{target}-{name}"
    xlstm_edge.export(source, out, target=target, chunk=arguments.chunk, tokenizer="none", force=out.exists())
    return out


def read_in_turns(model: xr.Model, rounds: int) -> tuple[float, float]:
    """Milliseconds for `chunk` tokens one by one, and in one call: medians of alternating rounds."""
    session, ids = model.session(), [i * 11 % model.output_width for i in range(model.chunk)]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * (rounds + 1)):
        parts: Sequence[list[int]] = [ids] if turn % 2 else [[token] for token in ids]
        begin = time.perf_counter()
        for part in parts:
            session.prefill(part)
        if turn > 1:  # the first of both prepares memory
            times[turn % 2].append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[0]), statistics.median(times[1])


def timed(folder: Path, provider: str, arguments: argparse.Namespace) -> str:
    if provider != "cpu" and plugins.installed(PROVIDERS[provider]) is None:
        return "not installed"
    config = {"CPU": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": arguments.threads}}
    options = {} if provider == "cpu" else {"load_config": json.dumps(config)}
    model = xr.load(folder, threads=arguments.threads, provider=provider, provider_options=options)
    single, call = read_in_turns(model, arguments.rounds)
    return f"{single:.1f} / {call:.1f} ms, {call / single:.2f}"


def landed(folder: Path) -> str:
    """Parts that Qualcomm's compiler makes of the graph for prompts; loading refuses what is left to the CPU."""
    if plugins.installed(PROVIDERS["qnn"]) is None:
        return "not installed"
    model = xr.load(folder, provider="qnn", provider_options={"soc": "8gen2"})
    assert model.prompts is not None
    return f"{len(model.prompts.get_provider_graph_assignment_info())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("named", nargs="*", help="NAME=CHECKPOINT")
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    print(
        "| checkpoint | nodes, step and call | onnxruntime's CPU | OpenVINO's CPU | Core ML: partitions, outside | HTP |"
    )
    print("|---|---|---|---|---|---|")
    for name, source in [
        ("shipped", SHIPPED),
        *((n, Path(p)) for n, _, p in (w.partition("=") for w in arguments.named)),
    ]:
        floats, halves = (bundle_for(target, name, source, arguments) for target in ("openvino", "qnn"))
        nodes = ", ".join(str(nodes_of(floats / graph)) for graph in ("model.onnx", "prompt.onnx"))
        times = (timed(floats, provider, arguments) for provider in ("cpu", "openvino"))
        partitions = ", ".join(coreml_verdict(halves / "prompt.onnx"))
        print("|", " | ".join([name, nodes, *times, partitions, landed(halves)]), "|", flush=True)


if __name__ == "__main__":
    main()
