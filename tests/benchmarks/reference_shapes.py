"""Speed of the reference shapes, with random weights, beside llama.cpp on models of the same size, in one run.

    python tests/benchmarks/reference_shapes.py DIR                         # build bundles in DIR, measure, print a table
    python tests/benchmarks/reference_shapes.py DIR --llama LLAMA_DIR       # alternate with llama-bench
    python tests/benchmarks/reference_shapes.py DIR --shapes S --variants int4-64 --threads 1
    python tests/benchmarks/reference_shapes.py DIR --shapes S M --checkpoints    # write checkpoints for bench --compare
    python tests/benchmarks/reference_shapes.py DIR --shapes S V --nodes          # nodes a block of both lowerings
    python tests/benchmarks/reference_shapes.py DIR --shapes S --python-share     # what Python adds to a step, and to a prompt
    python tests/benchmarks/reference_shapes.py DIR --shapes S M V --roofline     # shares of this machine's bounds

LLAMA_DIR holds build/bin/llama-bench and S-Q4_0.gguf, M-Q4_0.gguf, M-Q8_0.gguf: Llama-shaped models of the sizes of S and M.

Shapes: S is 256 wide, 8 blocks, 4 heads, 2,048 tokens; M is 1,024 wide, 24 blocks, 4 heads, 50,304 tokens (407 M
parameters, xLSTM-Large form); V is the v1 form, 768 wide, 24 blocks, one sLSTM in eight, 50,304 tokens. Machines are
noisy: what counts is the ratio of alternating runs in one call.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xlstm_edge.bench import bench_bundle, machine
from xlstm_edge_exporters.bundle import write_bundle
from xlstm_edge_exporters.checkpoints import Checkpoint
from xlstm_edge_exporters.interface import GraphOptions
from xlstm_edge_exporters.quantize.plan import make_plan
from xlstm_edge_exporters.quantize.sources import round_to_nearest
from xlstm_edge_exporters.recipe import Recipe
from xlstm_edge_exporters.reference import iterate_names
from xlstm_edge_exporters.spec import MLSTM, SLSTM, Block, FeedForward, ModelSpec, Norm, UpMLSTM
from xlstm_edge_exporters.trace import trace
from xlstm_edge_exporters.weights import Weight
from xlstm_edge_runtime import Model, load
from xlstm_edge_runtime.tune import tune_bundle

RMS, LAYER = Norm(kind="rms", eps=1e-6), Norm(kind="layer", eps=1e-5)
# What `export --quantize` plans by default, and the same at one block size; how the integers are found changes no speed.
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    **{
        f"int{bits}-{size}": {"quantize": f"int{bits}", "block_size": size}
        for bits in (4, 8)
        for size in (32, 64, 128, 256)
    },
}
PEER = {"int4": "Q4_0", "int8": "Q8_0"}


def large(width: int, blocks: int, heads: int, vocab: int, ffn: int) -> ModelSpec:
    """The xLSTM-Large form."""
    head_norm = Norm(kind="layer", eps=1e-6, weight=False)
    mixer = MLSTM(heads=heads, qk_width=width // 2, v_width=width, gate_soft_cap=15.0, head_norm=head_norm, bias=False)
    block = Block(norm=RMS, mixer=mixer, ffn_norm=RMS, ffn=FeedForward(width=ffn, activation="silu", bias=False))
    return ModelSpec(
        family="xlstm_large", width=width, blocks=(block,) * blocks, norm=RMS, vocab_size=vocab, logit_soft_cap=30.0
    )


def v1(width: int, blocks: int, heads: int, vocab: int) -> ModelSpec:
    """The v1 form, every eighth block an sLSTM."""
    up = UpMLSTM(inner=2 * width, heads=heads, conv_kernel=4, qkv_block=4, head_norm=LAYER, bias=False)
    ffn = FeedForward(width=64 * -(-int(1.3 * width) // 64), activation="gelu", bias=False)
    slstm = SLSTM(heads=heads, width=width, conv_kernel=4, head_norm=LAYER)
    kinds = [Block(norm=LAYER, mixer=up), Block(norm=LAYER, mixer=slstm, ffn_norm=LAYER, ffn=ffn)]
    return ModelSpec(
        family="xlstm_lm",
        width=width,
        blocks=tuple(kinds[i % 8 == 1] for i in range(blocks)),
        norm=LAYER,
        vocab_size=vocab,
        tied=True,
    )


SHAPES: dict[str, Callable[[], ModelSpec]] = {
    "S": lambda: large(256, 8, 4, 2048, 704),
    "M": lambda: large(1024, 24, 4, 50304, 2752),
    "V": lambda: v1(768, 24, 4, 50304),
}


def random_weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Healthy numbers: norms near 1, gates that remember, matrices of unit gain."""
    rng = np.random.default_rng(sum(map(ord, name)))
    if "norm" in name:
        return np.ones(shape, np.float32)
    if name.endswith("gates.bias"):
        return np.linspace(-3, 0, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    scale = 0.02 if name.startswith(("embedding", "head")) else shape[0] ** -0.5
    return rng.standard_normal(shape, np.float32) * np.float32(scale)


def build(folder: Path, shape: str, variant: str) -> Path:
    """The bundle of a shape and variant, made unless it is there."""
    out = folder / f"{shape}-{variant}"
    if not (out / "manifest.json").exists():
        spec = SHAPES[shape]()
        weights = {name: Weight(size, partial(random_weight, name, size)) for name, size in iterate_names(spec)}
        recipe = VARIANTS[variant]
        plan = make_plan(spec, weights, Recipe(**recipe)) if recipe else {}
        checkpoint = Checkpoint(folder, (), {}, spec, weights)
        write_bundle(checkpoint, out, GraphOptions(), plan=plan, quantizer=round_to_nearest)
    return out


def nodes_a_block(shape: str, target: Literal["cpu", "portable"]) -> float:
    """Nodes of the traced graph over blocks: standard operators one by one (portable), or fused ones (ort)."""
    spec = SHAPES[shape]()
    graph = trace(spec, GraphOptions(target=target, chunk=64 if target == "cpu" else 1)).graph
    return sum(1 for _ in graph.all_nodes()) / len(spec.blocks)


def python_share(model: Model, rounds: int = 10, count: int = 300) -> float:
    """Microseconds that `Session.step` adds to the bare bound run inside it, medians of alternating rounds."""
    import time

    session = model.session()
    session.step(1)
    session.step(2)
    bound = session._steps[session._current]
    assert bound is not None
    times: dict[str, list[float]] = {"step": [], "run": []}
    for _ in range(rounds):
        for name, call in (("step", partial(session.step, 5)), ("run", bound.run)):
            for _ in range(count):
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
    return 1e6 * (statistics.median(times["step"]) - statistics.median(times["run"]))


def prompt_share(model: Model, rounds: int = 200) -> float:
    """Microseconds that a prompt of another length than the one before adds, medians of alternating rounds."""
    import time

    session = model.session()
    times: dict[str, list[float]] = {"same": [], "other": []}
    for _ in range(rounds):
        for name, lengths in (("same", (4, 4)), ("other", (3, 4))):
            before, timed = (np.arange(length) for length in lengths)
            session.prefill(before)
            begin = time.perf_counter()
            session.prefill(timed)
            times[name].append(time.perf_counter() - begin)
    return 1e6 * (statistics.median(times["other"]) - statistics.median(times["same"]))


def roofline(path: Path, threads: int, rounds: int) -> str:
    """Tokens a second, and what shares of the machine's memory and arithmetic they are, measured beside them."""
    found = bench_bundle(path, threads=threads, repeat=rounds, roofline=True)
    rate, roofs = found["generated_tokens_per_second"]["median"], found["roofline"]
    shares = f"{roofs['share_of_bandwidth']:.0%} of the bandwidth, {roofs['share_of_arithmetic']:.0%} of the arithmetic"
    return f"{path.name} {threads} threads {rate:.1f} tokens/s, {shares}"


def write_checkpoint(folder: Path, shape: str) -> Path:
    """A checkpoint of shape S or M as the official package writes it, freshly initialized."""
    import torch
    import yaml
    from safetensors.torch import save_file
    from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

    from xlstm_edge_exporters.pytorch_baseline import NATIVE

    out, spec = folder / f"{shape}-checkpoint", SHAPES[shape]()
    heads, ffn, vocab = spec.blocks[0].mixer.heads, spec.blocks[0].ffn, spec.vocab_size
    assert ffn is not None and vocab is not None
    torch.manual_seed(0)
    sizes = {"embedding_dim": spec.width, "num_heads": heads, "num_blocks": len(spec.blocks), "vocab_size": vocab}
    config = xLSTMLargeConfig(**sizes, ffn_proj_factor=ffn.width / spec.width, **NATIVE)
    out.mkdir(parents=True, exist_ok=True)
    save_file(xLSTMLarge(config).state_dict(), out / "model.safetensors")
    (out / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    return out


def decode(model: Model, count: int, depth: int = 3) -> float:
    """Tokens a second of a greedy loop after `depth` tokens."""
    import time

    session = model.session()
    output = session.prefill(np.arange(1, depth + 1) % model.output_width)
    begin = time.perf_counter()
    for _ in range(count):
        output = session.step(int(output.argmax()))
    return count / (time.perf_counter() - begin)


def prefill(model: Model, count: int) -> float:
    """Prompt tokens a second."""
    import time

    session, prompt = model.session(), np.arange(count) % model.output_width
    session.prefill(prompt[:70])
    begin = time.perf_counter()
    session.prefill(prompt)
    return count / (time.perf_counter() - begin)


def llama(folder: Path, shape: str, variant: str, threads: int, *options: object) -> float | None:
    """llama-bench on the model of the same size; None where there is none."""
    gguf = folder / f"{shape}-{PEER.get(variant.split('-', maxsplit=1)[0], '')}.gguf"
    if not gguf.exists():
        return None
    words = [folder / "build/bin/llama-bench", "-m", gguf, "-t", threads, "-r", 2, "-fa", 1, "-o", "json", *options]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def measure(
    path: Path,
    shape: str,
    variant: str,
    threads: int,
    rounds: int,
    peer: Path | None,
    depths: Sequence[int] = (),
    prompt: bool = True,
) -> list[dict[str, Any]]:
    """Alternate ours and theirs; medians."""
    model = load(path, threads=threads)
    count = 200 if shape == "S" else 128  # 128 is what llama-bench generates when not told otherwise
    jobs: dict[str, tuple[Callable[[], float], tuple[Any, ...]]] = {
        "decode": (partial(decode, model, count), ("-p", 0, "-n", count)),
    }
    if prompt:
        jobs["prompt 512"] = (partial(prefill, model, 512), ("-p", 512, "-n", 0))
    for depth in depths:
        jobs[f"at {depth:,}"] = (partial(decode, model, count, depth), ("-p", 0, "-n", count, "-d", depth))
    rows = []
    for name, (ours, options) in jobs.items():
        ours()
        mine, theirs = [], []
        for _ in range(rounds):
            mine.append(ours())
            if peer is not None and (value := llama(peer, shape, variant, threads, *options)) is not None:
                theirs.append(value)
        row = {"shape": shape, "variant": variant, "threads": threads, "job": name, "ours": statistics.median(mine)}
        rows.append(row | ({"llama.cpp": statistics.median(theirs)} if theirs else {}))
    return rows


def look(args: argparse.Namespace) -> Iterator[str]:
    """Lines of what is asked for beside speeds."""
    for shape in args.shapes:
        if args.nodes:
            counts = {target: nodes_a_block(shape, target) for target in ("portable", "cpu")}
            yield f"{shape} " + ", ".join(f"{f} {n:.1f} nodes a block" for f, n in counts.items())
        if args.python_share:
            model = load(build(args.dir, shape, "int4-256"), threads=1)
            step, length = python_share(model), prompt_share(model)
            yield f"{shape} {step:.1f} microseconds a step, {length:.1f} a prompt of another length"
        if args.roofline:
            for variant, threads in itertools.product(args.variants, args.threads):
                yield roofline(build(args.dir, shape, variant), threads, args.rounds)
        if args.checkpoints:
            yield str(write_checkpoint(args.dir, shape))


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--shapes", nargs="+", default=["S", "M"], choices=list(SHAPES))
    parser.add_argument("--variants", nargs="+", default=["int4", "int8"], choices=list(VARIANTS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON document, for examples/plots/draw.py")
    parser.add_argument("--depths", nargs="*", type=int, default=[], help="decode also after this many tokens")
    parser.add_argument("--no-prompt", action="store_true", help="leave out the prompts of 512 tokens")
    parser.add_argument("--tune", action="store_true", help="tune each bundle first, as a user would on a device")
    parser.add_argument("--python-share", action="store_true", help="print what Python adds and stop")
    parser.add_argument("--roofline", action="store_true", help="print shares of this machine's bounds and stop")
    parser.add_argument("--nodes", action="store_true", help="print nodes a block and stop")
    parser.add_argument("--checkpoints", action="store_true", help="write checkpoints of S and M and stop")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    if any((args.nodes, args.python_share, args.roofline, args.checkpoints)):
        for line in look(args):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        return
    where, rows = machine(None), list[dict[str, Any]]()
    sys.stderr.write(f"{where['cpu']}, {where['cores']} cores, onnxruntime {where['onnxruntime']}\n")
    for shape in args.shapes:
        for variant in args.variants:
            path = build(args.dir, shape, variant)
            if args.tune:
                tune_bundle(path)
            for threads in args.threads:
                prompt = not args.no_prompt
                for row in measure(path, shape, variant, threads, args.rounds, args.llama, args.depths, prompt):
                    theirs = row.get("llama.cpp")
                    ratio = f"llama.cpp {theirs:8.1f}  ratio {row['ours'] / theirs:.2f}" if theirs else ""
                    line = (
                        f"{shape} {variant:8} {threads} threads  {row['job']:10} {row['ours']:8.1f} tokens/s  {ratio}"
                    )
                    rows.append(row)
                    (sys.stderr if args.json else sys.stdout).write(line + "\n")
                    sys.stdout.flush()
    if args.json:
        sys.stdout.write(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
