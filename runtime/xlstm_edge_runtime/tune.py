"""Fit a bundle to the machine it is on, once: threads, how long they wait busily, chunk size, and weights as this CPU's
kernels want them.

The result lies in the bundle's `tuned/` folder, outside the manifest, and belongs to one CPU model, one onnxruntime and
one graph: anywhere else it is ignored, and the bundle works as it was exported. Weights in the CPU's own layout are
memory-mapped instead of being rearranged into memory at every start.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError, shown, shown_path
from .files import atomic_folder
from .in_place import example_tokens
from .layout import TUNED, TUNING, TUNING_RECORD
from .loading import load
from .manifest import file_entry
from .model import Model
from .prepack import prove_prepacked, save_prepacked
from .progress import Progress, no_progress
from .tuning import Tuning, key_of

CHUNKS = (16, 32, 64, 128, 256)
SPINS = (20, 100, 500)  # microseconds; a longer wait must earn its energy
WORTH = 1.02
WARM, STEPS, PROMPT, ROUNDS = 4, 24, 256, 5


def tune_bundle(folder: str | Path, *, progress: Progress = no_progress) -> Tuning:
    """Measure, save, return; InputError if the folder cannot be written. A former tuning is replaced."""
    folder = Path(folder)
    _check_place(folder / TUNING)
    most = os.cpu_count() or 1
    candidates = sorted({1, 2, most // 2, most} & set(range(1, most + 1)))
    rates = _measure("threads", candidates, lambda n: load(folder, threads=n, tuned=False), decode_rate, progress)
    threads = max(rates, key=lambda n: rates[n])
    spins = SPINS if threads > 1 else SPINS[:1]
    rates = _measure("spin", spins, lambda n: load(folder, threads=threads, tuned=False, spin=n), decode_rate, progress)
    spin = min(n for n in rates if rates[n] * WORTH >= max(rates.values()))
    model = load(folder, threads=threads, tuned=False, spin=spin)

    def with_chunk(size: int) -> Model:
        model.chunk = size
        return model

    chunks = [size for size in CHUNKS if size < model.manifest.graph.chunk] + [model.manifest.graph.chunk]
    speeds = _measure("chunk", chunks, with_chunk, prefill_rate, progress)
    chunk = max(speeds, key=lambda n: speeds[n])
    return _save(folder, with_chunk(chunk), _Found(threads, spin, chunk, rates[spin], speeds[chunk]))


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
    session, tokens = model.session(), example_tokens(model, STEPS)
    for token in tokens[:WARM]:
        session.prefill(token[None])
    begin = time.perf_counter()
    for token in tokens:
        session.prefill(token[None])
    return STEPS / (time.perf_counter() - begin)


def prefill_rate(model: Model) -> float:
    """Prompt tokens a second."""
    session, prompt = model.session(), example_tokens(model, PROMPT)
    begin = time.perf_counter()
    session.prefill(prompt)
    return PROMPT / (time.perf_counter() - begin)


def _save(folder: Path, model: Model, found: _Found) -> Tuning:
    manifest, in_place, prepacked = model.manifest, bool(model.in_place), False
    try:
        with atomic_folder(folder / TUNING, replace=True, check=_only_ours) as partial:
            if manifest.quantization:  # float32 weights are mapped as they are
                save_prepacked(folder / manifest.graph.file, partial, found.threads)
                proven = prove_prepacked(partial, model, threads=found.threads, spin=found.spin, chunk=found.chunk)
                prepacked, in_place = proven is not None, in_place if proven is None else proven
            if not prepacked:
                for path in partial.iterdir():
                    path.unlink()
            tuning = Tuning(
                key=key_of(manifest),
                threads=found.threads,
                spin=found.spin,
                chunk=found.chunk,
                prepacked=prepacked,
                in_place=in_place,
                decode_per_second=found.decode,
                prefill_per_second=found.prefill,
                files={path.name: file_entry(path) for path in partial.iterdir()},
            )
            (partial / TUNING_RECORD).write_text(tuning.to_json(), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"expected to write into {shown_path(folder)}, got {error.strerror or error}; copy the bundle first"
        ) from error
    return tuning


def _only_ours(folder: Path) -> None:
    """A former tuning may go, and nothing else."""
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in TUNED):
        raise InputError(
            f"expected only a tuning in {shown_path(folder)}, got {shown(foreign[0])}; move it elsewhere first"
        )
