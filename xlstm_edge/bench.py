"""Measure a bundle: time to load, prompt speed, generation speed, latency per token, memory.

Medians with their spread, because machines are noisy; one warm-up before the repetitions.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from xlstm_edge_runtime import Model, __version__, load

from .report import human, peak_memory

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[str, int, int], None]


def bench_bundle(
    bundle: str | Path,
    *,
    threads: int | None = None,
    prompt: int = 256,
    generate: int = 64,
    repeat: int = 5,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Speeds in tokens a second, latencies in milliseconds, memory in bytes."""
    begin = time.perf_counter()
    model = load(bundle, threads=threads)
    load_seconds = time.perf_counter() - begin
    runs = []
    for index in range(repeat + 1):
        runs.append(_run(model, prompt, generate))
        if progress is not None:
            progress("bench", index, repeat)
    prompts, generations = zip(*runs[1:], strict=True)
    latencies = np.concatenate(generations)
    return {
        "bundle": str(bundle),
        "machine": machine(threads),
        "prompt_tokens": prompt,
        "generated_tokens": generate,
        "repeat": repeat,
        "load_seconds": load_seconds,
        "prompt_tokens_per_second": spread([prompt / seconds for seconds in prompts]),
        "generated_tokens_per_second": spread([generate / float(np.sum(times)) for times in generations]),
        "latency_ms": {f"p{q}": float(np.percentile(latencies, q) * 1e3) for q in (50, 90, 99)},
        "bundle_bytes": sum(entry.bytes for entry in model.manifest.files.values()),
        "state_bytes": model.manifest.state.nbytes,
        "peak_memory_bytes": peak_memory(),
    }


def machine(threads: int | None) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads or os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "onnxruntime": ort.__version__,
        "xlstm_edge": __version__,
    }


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def bench_table(result: dict[str, Any]) -> "Table":
    """For people."""
    from rich.table import Table  # noqa: PLC0415  # an extra

    where = result["machine"]
    title = f"{result['bundle']} on {where['cpu']}, {where['threads']} threads, onnxruntime {where['onnxruntime']}"
    table = Table("measure", "median", "min", "max", title=title, title_justify="left")
    for name, key in (
        (f"prompt of {result['prompt_tokens']}, tokens/s", "prompt_tokens_per_second"),
        (f"generate {result['generated_tokens']}, tokens/s", "generated_tokens_per_second"),
    ):
        values = result[key]
        table.add_row(name, *(f"{values[column]:,.0f}" for column in ("median", "min", "max")))
    latency = result["latency_ms"]
    table.add_row("latency a token, ms", f"{latency['p50']:.3f}", "", f"p99 {latency['p99']:.3f}")
    table.add_row("load, s", f"{result['load_seconds']:.2f}", "", "")
    table.add_row("bundle", human(result["bundle_bytes"]), "", "")
    table.add_row("state a session", human(result["state_bytes"]), "", "")
    table.add_row("peak memory", human(result["peak_memory_bytes"]), "", "")
    return table


def _run(model: Model, prompt: int, generate: int) -> tuple[float, np.ndarray[Any, np.dtype[np.float64]]]:
    """Seconds of the prompt, and seconds of each following token (the next input is the last output's largest id)."""
    inputs = _inputs(model, prompt)
    session, times = model.session(), np.empty(generate)
    begin = time.perf_counter()
    output = session.prefill(inputs)
    prompt_seconds = time.perf_counter() - begin
    for index in range(generate):
        begin = time.perf_counter()
        output = session.step(int(np.argmax(output)) if model.takes_ids else inputs[index % prompt])
        times[index] = time.perf_counter() - begin
    return prompt_seconds, times


def _inputs(model: Model, length: int) -> Any:
    rng = np.random.default_rng(0)
    if model.takes_ids:
        return rng.integers(0, model.output_width, length)
    return rng.standard_normal((length, model.output_width)).astype(np.float32)
