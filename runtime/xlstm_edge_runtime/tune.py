"""Fit a bundle to the machine it is on, once: threads, how long they wait busily, chunk size, and weights as this CPU's
kernels want them.

The result lies in the bundle's `tuned/` folder, outside the manifest, and belongs to one CPU model, one onnxruntime and
one graph: anywhere else it is ignored, and the bundle works as it was exported. Weights in the CPU's own layout are
memory-mapped instead of being rearranged into memory at every start.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .errors import BundleError, InputError, shown, shown_path
from .files import atomic_folder
from .in_place import example_tokens, prove_in_place
from .layout import GRAPH, TUNED, TUNING, TUNING_RECORD
from .loading import load
from .manifest import file_entry, read_manifest
from .model import Model
from .opening import CPU, SPIN, open_graph, session_options
from .prepack import prove_prepacked, save_prepacked
from .progress import Progress, no_progress
from .session import Session
from .tuning import Tuning, key_of

CHUNKS = (16, 32, 64, 128, 256)
SPINS = (20, 100, 500)  # microseconds; a longer wait must earn its energy
WORTH = 1.02
WARM, STEPS, PROMPT, ROUNDS = 2, 24, 256, 5
ENOUGH = 1.0  # seconds of one look


def tune_bundle(folder: str | Path, *, progress: Progress = no_progress) -> Tuning:
    """Measure, save, return; InputError if the folder cannot be written. A former tuning is replaced."""
    folder = Path(folder)
    _check_place(folder / TUNING)
    manifest = load(folder, threads=1, tuned=False).manifest
    try:
        with atomic_folder(folder / TUNING, replace=True, check=_only_ours) as partial:
            if manifest.quantization:  # float32 weights are mapped as they are
                progress("preparing weights", 0, 0)
                save_prepacked(folder / manifest.graph.file, partial, 1)
            found = _find(folder, partial, progress)
            tuning = _proven(folder, partial, found)
            (partial / TUNING_RECORD).write_text(tuning.to_json(), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"expected to write into {shown_path(folder)}, got {error.strerror or error}; copy the bundle first"
        ) from error
    return tuning


def _find(folder: Path, partial: Path, progress: Progress) -> "_Found":
    """Threads first, then how long they wait, then the chunk, each with what was best before."""
    most = os.cpu_count() or 1
    candidates = sorted({1, 2, most // 2, most} & set(range(1, most + 1)))
    rates = _measure("threads", candidates, lambda n: _trial(folder, partial, n, SPIN), decode_rate, progress)
    threads = max(rates, key=lambda n: rates[n])
    spins = SPINS if threads > 1 else SPINS[:1]
    rates = _measure("spin", spins, lambda n: _trial(folder, partial, threads, n), decode_rate, progress)
    spin = min(n for n in rates if rates[n] * WORTH >= max(rates.values()))
    model = _trial(folder, partial, threads, spin)

    def with_chunk(size: int) -> Model:
        model.chunk = size
        return model

    chunks = [size for size in CHUNKS if size < model.manifest.graph.chunk] + [model.manifest.graph.chunk]
    speeds = _measure("chunk", chunks, with_chunk, prefill_rate, progress)
    chunk = max(speeds, key=lambda n: speeds[n])
    return _Found(threads, spin, chunk, rates[spin], speeds[chunk])


def _trial(folder: Path, partial: Path, threads: int, spin: int) -> Model:
    """The bundle with weights that were prepared already, which open in no time; else as exported."""
    if (partial / GRAPH).exists():
        with contextlib.suppress(BundleError):
            inference = open_graph(partial / GRAPH, session_options(threads, spin), CPU)
            model = Model(folder, read_manifest(folder), inference)
            model.in_place = prove_in_place(model)
            return model
    return load(folder, threads=threads, tuned=False, spin=spin)


def _check_place(place: Path) -> None:
    """InputError at once for what a tuning could not replace at the end."""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise InputError(
            f"expected a folder of a former tuning at {shown_path(place)}, or nothing, got another thing; remove it"
        )
    if place.exists():
        _only_ours(place)


@dataclass(frozen=True, slots=True)
class _Found:
    threads: int
    spin: int
    chunk: int
    decode: float
    prefill: float


def _measure(
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


def _proven(folder: Path, partial: Path, found: _Found) -> Tuning:
    """What was found as a record; prepared weights stay only where they compute what the bundle does, bit for bit."""
    model = load(folder, threads=found.threads, tuned=False, spin=found.spin)
    model.chunk = found.chunk
    in_place, prepacked = bool(model.in_place), False
    if (partial / GRAPH).exists():
        proven = prove_prepacked(partial, model, threads=found.threads, spin=found.spin, chunk=found.chunk)
        prepacked, in_place = proven is not None, in_place if proven is None else proven
    if not prepacked:
        for path in partial.iterdir():
            path.unlink()
    return Tuning(
        key=key_of(model.manifest),
        threads=found.threads,
        spin=found.spin,
        chunk=found.chunk,
        prepacked=prepacked,
        in_place=in_place,
        decode_per_second=found.decode,
        prefill_per_second=found.prefill,
        files={path.name: file_entry(path) for path in partial.iterdir()},
    )


def _only_ours(folder: Path) -> None:
    """A former tuning may go, and nothing else."""
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in TUNED):
        raise InputError(
            f"expected only a tuning in {shown_path(folder)}, got {shown(foreign[0])}; move it elsewhere first"
        )
