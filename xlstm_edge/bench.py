"""Measure a bundle: load, prompt speed, generation speed, latency per token at any depth, memory, share of the bandwidth.

Medians with their spread, because machines are noisy; one warm-up before the repetitions; two bundles (or a bundle and
the original checkpoint in PyTorch) are measured in alternation.
"""

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from xlstm_edge_runtime import Model, Session, __version__, load
from xlstm_edge_runtime.errors import DependencyError, InputError
from xlstm_edge_runtime.hardware import cpu_name
from xlstm_edge_runtime.progress import Progress, no_progress

from . import facade
from .memory import peak_memory, resident_memory
from .roofline import Probe, ProductProbe, ReadProbe, bytes_per_token, products_per_token

UNITS = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
DEEPEST = 10**10
PART = 4096  # tokens prefilled between two looks at the clock


def bench_bundle(
    bundle: str | Path,
    *,
    threads: int | None = None,
    prompt: int = 256,
    generate: int = 64,
    repeat: int = 5,
    depths: Sequence[int] = (),
    against: str | Path | None = None,
    compare: str | Path | None = None,
    prefix: str | None = None,
    weights: str | None = None,
    roofline: bool = False,
    provider: str = "cpu",
    provider_options: Mapping[str, str | int | bool] | None = None,
    allow_fallback: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Speeds in tokens a second, latencies in milliseconds, memory in bytes; what runs it, and its nodes by provider.

    `prefix` and `weights` say which model of the checkpoint `compare` is meant, as for the export. Both bundles run on
    `provider`.
    """
    loaded = partial(
        load,
        threads=threads,
        provider=provider,
        provider_options=provider_options,
        allow_fallback=allow_fallback,
    )
    model, load_seconds = _load(bundle, loaded, progress)
    baseline = _baseline(model, against, compare, loaded, threads, prefix, weights)
    probes = _probes(model, threads) if roofline else []
    runs, baseline_rates, roofs = [], [], []
    for index in range(repeat + 1):
        progress("bench", index, repeat + 1)
        runs.append(_run(model, prompt, generate))
        baseline_rates += [baseline(generate)] if baseline is not None else []
        roofs.append([probe.measure() for probe in probes])
    result = _facts(model, bundle, threads) | {"load_seconds": load_seconds, "repeat": repeat}
    result |= {"prompt_tokens": prompt, "generated_tokens": generate, **_summary(runs[1:], prompt, generate)}
    rate = result["generated_tokens_per_second"]["median"]
    if baseline_rates:
        result["baseline"] = _compared(str(against or compare), rate, baseline_rates[1:])
    if probes:
        result["roofline"] = _roofline(model, rate, *zip(*roofs[1:], strict=True))
    if depths:
        result["depths"] = _sweep(model, sorted(depths), generate, progress)
    return result | {"peak_memory_bytes": peak_memory()}


def _load(bundle: str | Path, loaded: Callable[[str | Path], Model], progress: Progress) -> tuple[Model, float]:
    """The model, and seconds."""
    progress("loading", 0, 0)
    begin = time.perf_counter()
    model = loaded(bundle)
    return model, time.perf_counter() - begin


def _facts(model: Model, bundle: str | Path, threads: int | None) -> dict[str, Any]:
    """What is measured, and on what."""
    return {
        "bundle": str(bundle),
        "machine": machine(threads),
        "provider": model.provider.provider.name,
        "provider_options": dict(model.provider.options),
        "precision": model.precision,
        "placement": model.placement,
        "bundle_bytes": sum(entry.bytes for entry in model.manifest.files.values()),
        "state_bytes": model.manifest.state.nbytes,
    }


def _compared(name: str, rate: float, baseline_rates: Sequence[float]) -> dict[str, Any]:
    ratio = rate / statistics.median(baseline_rates)
    return {"name": name, "generated_tokens_per_second": spread(baseline_rates), "ratio": ratio}


def _summary(runs: Sequence[tuple[float, NDArray[np.float64]]], prompt: int, generate: int) -> dict[str, Any]:
    """Rates and latencies of the repetitions."""
    prompts, generations = zip(*runs, strict=True)
    return {
        "prompt_tokens_per_second": spread([prompt / seconds for seconds in prompts]),
        "generated_tokens_per_second": spread([generate / float(np.sum(times)) for times in generations]),
        "latency_ms": _percentiles(np.concatenate(generations)),
    }


def parse_depths(text: str | None) -> list[int]:
    """'0,1k,1M' -> [0, 1000, 1000000]; None -> []; InputError for anything else."""
    depths = []
    for part in [] if text is None else text.split(","):
        word = part.strip().lower()
        factor = UNITS.get(word[-1:], 1)
        digits = word[:-1] if factor > 1 else word
        if not digits.isdecimal() or int(digits) * factor > DEEPEST:
            raise InputError(f"expected depths like 0,1k,1M, got {part!r}; write numbers of tokens")
        depths.append(int(digits) * factor)
    return depths


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


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _run(model: Model, prompt: int, generate: int) -> tuple[float, NDArray[np.float64]]:
    """Seconds of the prompt, and seconds of each following token."""
    inputs, session = _inputs(model, prompt), model.session()
    begin = time.perf_counter()
    output = session.prefill(inputs)
    return time.perf_counter() - begin, _latencies(model, session, output, generate)


def _latencies(model: Model, session: Session, output: Any, count: int) -> NDArray[np.float64]:
    """Seconds of each of `count` tokens; the next input is the last output's largest id, or the vector itself."""
    times = np.empty(count)
    for index in range(count):
        begin = time.perf_counter()
        output = session.step(int(output.argmax()) if model.takes_ids else np.tanh(output))
        times[index] = time.perf_counter() - begin
    return times


def _sweep(model: Model, depths: Sequence[int], generate: int, progress: Progress) -> list[dict[str, Any]]:
    """Latency and memory after each depth, one session that only ever moves on."""
    session, rows = model.session(), []
    output, count = session.prefill(_inputs(model, 1)), max(generate, 200)
    _latencies(model, session, output, count)  # both buffers bound, everything warm
    for depth in depths:
        while (missing := depth - session.tokens) > 0:
            output = session.prefill(_inputs(model, min(missing, PART)))
            progress("depth", min(session.tokens, depths[-1]), depths[-1])
        times = _latencies(model, session, output, count)
        row = {"depth": depth, "latency_ms": _percentiles(times), "resident_memory_bytes": resident_memory()}
        rows.append(row | {"state_bytes": session.nbytes})
    return rows


def check_bench(depth: str | None, against: str | Path | None, compare: str | Path | None) -> list[int]:
    """The depths; InputError for bad ones, and for two baselines."""
    if against is not None and compare is not None:
        raise InputError("expected --against or --compare, got both; run them one after the other")
    return parse_depths(depth)


def _baseline(
    model: Model,
    against: str | Path | None,
    compare: str | Path | None,
    loaded: Callable[[str | Path], Model],
    threads: int | None,
    prefix: str | None,
    weights: str | None,
) -> Callable[[int], float] | None:
    """A function that generates n tokens with the other side and returns its tokens a second."""
    check_bench(None, against, compare)
    if against is not None:
        other = loaded(against)
        return lambda count: count / float(np.sum(_run(other, 4, count)[1]))
    if compare is None:
        return None
    if not model.takes_ids:
        raise InputError("expected a model that takes tokens for --compare, got a stack of float vectors; leave it out")
    facade.open_checkpoint(compare, prefix=prefix, weights=weights)
    from xlstm_edge_exporters.pytorch_baseline import official_rate  # noqa: PLC0415  # loads torch and the official packages

    return official_rate(Path(compare), threads, prefix=prefix, weights=weights)


def _probes(model: Model, threads: int | None) -> list[Probe]:
    """What measures memory and, where the packages of an export are there to write a graph, arithmetic."""
    probes: list[Probe] = [ReadProbe(threads or os.cpu_count() or 1)]
    with contextlib.suppress(DependencyError):
        facade.load_exporters()
        probes.append(ProductProbe(model, threads))
    return probes


def _roofline(
    model: Model, rate: float, bandwidths: Sequence[float], products: Sequence[float] = ()
) -> dict[str, float]:
    """Shares of what was measured; without `products` of the bandwidth alone."""
    bandwidth, needed, work = statistics.median(bandwidths), bytes_per_token(model), products_per_token(model)
    facts = {
        "read_bandwidth_bytes_per_second": bandwidth,
        "bytes_per_token": needed,
        "share_of_bandwidth": rate * needed / bandwidth,
        "products_per_token": work,
    }
    if products:
        arithmetic = statistics.median(products)
        facts |= {"products_per_second": arithmetic, "share_of_arithmetic": rate * work / arithmetic}
    return facts


def _percentiles(times: NDArray[np.float64]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(times, q) * 1e3) for q in (50, 90, 99)}


def _inputs(model: Model, length: int) -> Any:
    rng = np.random.default_rng(0)
    if model.takes_ids:
        return rng.integers(0, model.output_width, length)
    return rng.standard_normal((length, model.output_width)).astype(np.float32)
