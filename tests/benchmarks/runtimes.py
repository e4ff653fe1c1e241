"""Tokens a second of one bundle in Python, C, Node.js and WebAssembly, alternating, one thread each.

    python tests/benchmarks/runtimes.py BUNDLE ... [--tokens 400] [--rounds 5] [--llama LLAMA_BENCH GGUF]

Needs a C compiler, and `npm ci && npm run build` in runtime/web. Each way steps through the same tokens in a process
of its own.
"onnxruntime-web alone" is a loop that hands its outputs on and does nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """
import sys, time
import xlstm_edge_runtime as xr
session, count = xr.load(sys.argv[1], threads=1).session(), int(sys.argv[2])
for token in range(16):
    session.step(token)
begin = time.perf_counter()
for token in range(count):
    session.step(token % 100)
print(count / (time.perf_counter() - begin))
"""


def printed(words: list[str]) -> float:
    """What a command prints, a number."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: expected {words[0]} to measure, got {done.stderr.strip()[-400:]}; build it first")
    return float(done.stdout)


def python(bundle: str, count: int) -> float:
    return printed([sys.executable, "-c", PYTHON, bundle, str(count)])


def node(how: str) -> Callable[[str, int], float]:
    return lambda bundle, count: printed(["node", "runtime/web/test/measure.mjs", bundle, how, str(count)])


def c(bundle: str, count: int) -> float:
    """A program around the library, built when it is first asked for."""
    program = Path(tempfile.gettempdir()) / "xlstm-edge-measure"
    sources = ["tests/benchmarks/measure.c", "runtime/c/xlstm_edge.c"]
    flags = ["-O2", "-std=c99", "-ffp-contract=off"]
    subprocess.run(["cc", *flags, *sources, "-o", str(program), "-ldl", "-lm"], check=True, cwd=ROOT)
    os.environ["XLSTM_EDGE_ONNXRUNTIME"] = str(
        next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.*"))
    )
    return printed([str(program), bundle, str(count)])


def llama(program: str, model: str) -> Callable[[str, int], float]:
    """Another model, of the same size, whatever bundle is measured."""

    def measure(_bundle: str, count: int) -> float:
        words = [program, "-m", model, "-t", "1", "-p", "0", "-n", str(count), "-r", "1", "-fa", "1", "-o", "json"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)[0]["avg_ts"])

    return measure


WAYS: dict[str, Callable[[str, int], float]] = {
    "Python": python,
    "C": c,
    "Node.js, cpu": node("cpu"),
    "WebAssembly": node("wasm"),
    "WebAssembly, integers as stored": node("wasm-stored"),
    "onnxruntime-web alone": node("bare"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument(
        "--llama", nargs=2, metavar=("LLAMA_BENCH", "GGUF"), help="llama.cpp's own benchmark on this model"
    )
    arguments = parser.parse_args()
    ways = {name: WAYS[name] for name in arguments.only}
    if arguments.llama:
        ways["llama.cpp"] = llama(*arguments.llama)
    print("| bundle | way | tokens a second | least | most |\n|---|---|---|---|---|")
    for bundle in arguments.bundles:
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                found[name].append(way(str(bundle.resolve()), arguments.tokens))
        for name, speeds in found.items():
            print(
                f"| {bundle.name} | {name} | {statistics.median(speeds):.0f} | {min(speeds):.0f} | {max(speeds):.0f} |"
            )


if __name__ == "__main__":
    main()
