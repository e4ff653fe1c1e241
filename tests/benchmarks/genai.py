"""A bundle in onnxruntime-genai beside the same bundle in our runtime: greedy decoding, and a prompt, in alternating rounds.

    python tests/benchmarks/genai.py DIR                      # the shipped model
    python tests/benchmarks/genai.py DIR --checkpoint CKPT --threads 1 2

Needs `pip install onnxruntime-genai`. Bundles are made in DIR unless they are there. Machines are noisy: what counts is the
median of the ratios of neighbouring rounds. genai copies each state once a token, our runtime writes it in place.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script

import xlstm_edge
from tests.benchmarks.openvino_ir import SHIPPED
from xlstm_edge_runtime import Session, load

KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4", "method": "rtn"},
}
PROMPT, TOKENS = 512, 64
Times = tuple[float, float]  # milliseconds of the prompt, and of a token


def ours(session: Session, prompt: list[int]) -> Times:
    """A prompt and greedy tokens in our runtime."""
    begin = time.perf_counter()
    logits = session.prefill(prompt)
    middle = time.perf_counter()
    for _ in range(TOKENS):
        logits = session.step(int(logits.argmax()))
    return 1e3 * (middle - begin), 1e3 * (time.perf_counter() - middle) / TOKENS


def genais(api: Any, model: Any, prompt: list[int]) -> Times:
    """The same in genai."""
    parameters = api.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + TOKENS + 1)
    generator = api.Generator(model, parameters)
    begin = time.perf_counter()
    generator.append_tokens(prompt)
    middle = time.perf_counter()
    made = 0
    while made < TOKENS and not generator.is_done():
        generator.generate_next_token()
        made += 1
    return 1e3 * (middle - begin), 1e3 * (time.perf_counter() - middle) / made


def opened(api: Any, bundle: Path, threads: int) -> Any:
    """genai's model on so many threads."""
    config = api.Config(str(bundle))
    options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
    config.overlay(json.dumps(options))
    return api.Model(config)


def measure(api: Any, bundle: Path, threads: int, rounds: int) -> str:
    """A line: medians of both, and of the ratios of rounds that follow each other."""
    mine, theirs = load(bundle, threads=threads), opened(api, bundle, threads)
    vocabulary = mine.manifest.model.vocab_size or 2
    prompt = np.random.default_rng(5).integers(1, vocabulary, PROMPT).tolist()
    found = [(*ours(mine.session(), prompt), *genais(api, theirs, prompt)) for _ in range(rounds)]
    medians = [statistics.median(column) for column in zip(*found, strict=True)]
    ratios = [statistics.median(row[2 + index] / row[index] for row in found) for index in (0, 1)]
    return (
        f"prompt of {PROMPT}: ours {medians[0]:.1f} ms, genai {medians[2]:.1f}, ratio {ratios[0]:.2f}; a token: ours "
        f"{medians[1]:.3f} ms, genai {medians[3]:.3f}, ratio {ratios[1]:.2f}"
    )


def main() -> None:
    """Make what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    args = parser.parse_args()
    import onnxruntime_genai

    args.dir.mkdir(parents=True, exist_ok=True)
    for kind in args.kinds:
        if not (args.dir / kind).exists():
            xlstm_edge.export(args.checkpoint, args.dir / kind, target="genai", **KINDS[kind])
        for threads in args.threads:
            line = measure(onnxruntime_genai, args.dir / kind, threads, args.rounds)
            sys.stdout.write(f"{kind}, {threads} threads: {line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
