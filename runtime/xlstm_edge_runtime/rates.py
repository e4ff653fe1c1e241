"""How fast a bundle runs here with one setting or another, and which is best."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .errors import BundleError
from .in_place import example_tokens, prove_in_place
from .layout import GRAPH
from .loading import load
from .manifest import read_manifest
from .model import Model
from .opening import SPIN, Settings, check_graph, open_graph, open_prompts, session_options
from .progress import Progress
from .providers import CPU
from .session import Session

CHUNKS = (16, 32, 64, 128, 256)
SPINS = (20, 100, 500)  # microseconds; a longer wait must earn its energy
WORTH = 1.02
WARM, STEPS, PROMPT, ROUNDS = 2, 24, 256, 5
ENOUGH = 1.0  # seconds of one look


@dataclass(frozen=True, slots=True)
class Found:
    """Settings, and tokens a second with them: one after the other, and of a prompt."""

    threads: int
    spin: int
    chunk: int
    decode: float
    prefill: float


def find_settings(folder: Path, partial: Path, progress: Progress) -> Found:
    """Threads first, then how long they wait, then the chunk, each with what was best before."""
    most = os.cpu_count() or 1
    candidates = sorted({1, 2, most // 2, most} & set(range(1, most + 1)))
    rates = measure("threads", candidates, lambda n: open_trial(folder, partial, n, SPIN), decode_rate, progress)
    threads = max(rates, key=lambda n: rates[n])
    spins = SPINS if threads > 1 else SPINS[:1]
    rates = measure("spin", spins, lambda n: open_trial(folder, partial, threads, n), decode_rate, progress)
    spin = min(n for n in rates if rates[n] * WORTH >= max(rates.values()))
    model = open_trial(folder, partial, threads, spin)

    def with_chunk(size: int) -> Model:
        model.chunk = size
        return model

    graph = model.manifest.graph
    chunks = [size for size in CHUNKS if size < graph.chunk and graph.prompt is None] + [graph.chunk]
    speeds = measure("chunk", chunks, with_chunk, prefill_rate, progress)
    chunk = max(speeds, key=lambda n: speeds[n])
    return Found(threads, spin, chunk, rates[spin], speeds[chunk])


def open_trial(folder: Path, partial: Path, threads: int, spin: int) -> Model:
    """The bundle with weights that were prepared already, which open in no time; else as exported."""
    if (partial / GRAPH).exists():
        with contextlib.suppress(BundleError):
            inference = open_graph(partial / GRAPH, session_options(threads, spin), CPU)
            manifest = read_manifest(folder)
            check_graph(inference, manifest)
            model = Model(folder, manifest, inference, open_prompts(folder, manifest, None, Settings(threads, spin)))
            model.in_place = prove_in_place(model)
            return model
    return load(folder, threads=threads, tuned=False, spin=spin)


def open_found(folder: Path, partial: Path, found: Found) -> Model:
    """The bundle with these settings."""
    model = open_trial(folder, partial, found.threads, found.spin)
    model.chunk = found.chunk
    return model


def measure(
    stage: str,
    settings: Sequence[int],
    make: Callable[[int], Model],
    rate: Callable[[Model], float],
    progress: Progress,
) -> dict[int, float]:
    """Setting -> median rate, settings in turn, as a machine's speed drifts; one model in memory at a time."""
    rates: dict[int, list[float]] = {setting: [] for setting in settings}
    for done in range(ROUNDS * len(settings)):
        setting = settings[done % len(settings)]
        rates[setting].append(rate(make(setting)))
        progress(stage, done + 1, ROUNDS * len(settings))
    return {setting: statistics.median(found) for setting, found in rates.items()}


def decode_rate(model: Model) -> float:
    """Tokens a second, after a few to warm up."""
    session, tokens = model.session(), example_tokens(model, WARM + STEPS)
    for token in tokens[:WARM]:
        session.prefill(token[None])
    return _rate(session, [token[None] for token in tokens[WARM:]])


def prefill_rate(model: Model) -> float:
    """Prompt tokens a second."""
    prompt, chunk = example_tokens(model, PROMPT), model.chunk
    return _rate(model.session(), [prompt[start : start + chunk] for start in range(0, PROMPT, chunk)])


def _rate(session: Session, parts: Sequence[NDArray[Any]]) -> float:
    """Tokens a second over as many of the parts as a large model reads in a while."""
    count, begin, spent = 0, time.perf_counter(), 0.0
    for part in parts:
        session.prefill(part)
        count, spent = count + len(part), time.perf_counter() - begin
        if spent > ENOUGH:
            break
    return count / spent
