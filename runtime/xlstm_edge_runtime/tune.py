"""Fit a bundle to the machine it is on, once: threads, how long they wait busily, chunk size, and weights as this CPU's
kernels want them.

The result lies in the bundle's `tuned/` folder, outside the manifest, and belongs to one CPU model, one onnxruntime and
one graph: anywhere else it is ignored, and the bundle works as it was exported. Weights in the CPU's own layout are
memory-mapped instead of being rearranged into memory at every start.
"""

import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from .errors import BundleError, InputError
from .manifest import Manifest, file_entry

if TYPE_CHECKING:
    from .model import Model

FOLDER, RECORD, GRAPH = "tuned", "tuned.json", "model.onnx"
CHUNKS = (16, 32, 64, 128, 256)
SPINS = (20, 100, 500)  # microseconds; a longer wait must earn its energy
WORTH = 1.02
WARM, STEPS, PROMPT, ROUNDS = 4, 24, 256, 5
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was found best; `key` names the CPU, the onnxruntime and the bundle it holds for."""

    key: str
    threads: int
    spin: int
    chunk: int
    prepacked: bool
    in_place: bool
    decode_per_second: float
    prefill_per_second: float
    files: dict[str, dict[str, Any]]


def cpu_key() -> str:
    """Name of this processor and its instruction sets, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part", "model\t", "cpu family")
    return " ".join(sorted({line.split(":", 1)[-1].strip() for line in lines if line.startswith(wanted)}))


def key_of(manifest: Manifest) -> str:
    """CPU, onnxruntime and bundle in one hash."""
    import hashlib  # noqa: PLC0415  # only here

    graph = sorted((name, entry.sha256) for name, entry in manifest.files.items())
    return hashlib.sha256(json.dumps([cpu_key(), ort.__version__, graph]).encode()).hexdigest()


def read_tuning(folder: Path, manifest: Manifest) -> Tuning | None:
    """The bundle's tuning if it was made here for this very bundle; None otherwise, whatever is wrong with it."""
    path = folder / FOLDER / RECORD
    try:
        tuning = Tuning(**json.loads(path.read_text(encoding="utf-8")))
        usable = (
            tuning.key == key_of(manifest)
            and 1 <= tuning.threads <= 1024
            and 0 <= tuning.spin <= max(SPINS)
            and 1 <= tuning.chunk <= manifest.graph.chunk
        )
        sizes = all((folder / FOLDER / name).stat().st_size == entry["bytes"] for name, entry in tuning.files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return tuning if usable and sizes else None


def check_tuning(folder: Path, tuning: Tuning) -> None:
    """BundleError unless the tuned files hold what was written; `load` only looks at their sizes."""
    for name, entry in tuning.files.items():
        if asdict(file_entry(folder / FOLDER / name)) != entry:
            raise BundleError(f"expected {FOLDER}/{name} as it was tuned, came other bytes; tune the bundle again")


def tune_bundle(folder: str | Path, *, progress: Progress | None = None) -> Tuning:
    """Measure, save, return; InputError if the folder cannot be written. A former tuning is replaced."""
    from .model import load  # noqa: PLC0415  # load reads tunings

    folder = Path(folder)
    report = progress or _silent
    most = os.cpu_count() or 1
    candidates = sorted({1, 2, most // 2, most} & set(range(1, most + 1)))
    rates = _measure("threads", candidates, lambda n: load(folder, threads=n, tuned=False), decode_rate, report)
    threads = max(rates, key=lambda n: rates[n])
    spins = SPINS if threads > 1 else SPINS[:1]
    rates = _measure("spin", spins, lambda n: load(folder, threads=threads, tuned=False, spin=n), decode_rate, report)
    spin = min(n for n in rates if rates[n] * WORTH >= max(rates.values()))
    model = load(folder, threads=threads, tuned=False, spin=spin)

    def with_chunk(size: int) -> "Model":
        model.chunk = size
        return model

    chunks = [size for size in CHUNKS if size < model.manifest.graph.chunk] + [model.manifest.graph.chunk]
    speeds = _measure("chunk", chunks, with_chunk, prefill_rate, report)
    chunk = max(speeds, key=lambda n: speeds[n])
    return _save(folder, model, _Found(threads, spin, chunk, rates[spin], speeds[chunk]))


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
    make: "Callable[[int], Model]",
    rate: "Callable[[Model], float]",
    report: Progress,
) -> dict[int, float]:
    """Setting -> median rate, settings in turn, as a machine's speed drifts; one model in memory at a time."""
    rates: dict[int, list[float]] = {setting: [] for setting in settings}
    for done in range(ROUNDS * len(settings)):
        setting = settings[done % len(settings)]
        rates[setting].append(rate(make(setting)))
        report(stage, done + 1, ROUNDS * len(settings))
    return {setting: statistics.median(found) for setting, found in rates.items()}


def decode_rate(model: "Model") -> float:
    """Tokens a second, after a few to warm up."""
    session, tokens = model.session(), _tokens(model, STEPS)
    for token in tokens[:WARM]:
        session.prefill(token[None])
    begin = time.perf_counter()
    for token in tokens:
        session.prefill(token[None])
    return STEPS / (time.perf_counter() - begin)


def prefill_rate(model: "Model") -> float:
    """Prompt tokens a second."""
    session, prompt = model.session(), _tokens(model, PROMPT)
    begin = time.perf_counter()
    session.prefill(prompt)
    return PROMPT / (time.perf_counter() - begin)


def _save(folder: Path, model: "Model", found: _Found) -> Tuning:
    partial = folder / f".{FOLDER}.{os.getpid()}.partial"
    try:
        partial.mkdir()
        prepacked = bool(model.manifest.quantization.get("tensors"))
        if prepacked:  # float32 weights are mapped as they are
            _save_prepacked(folder / model.manifest.graph.file, partial / GRAPH, found.threads)
        files = {path.name: asdict(file_entry(path)) for path in partial.iterdir()}
        tuning = Tuning(
            key=key_of(model.manifest),
            threads=found.threads,
            spin=found.spin,
            chunk=found.chunk,
            prepacked=prepacked,
            in_place=bool(model.aliased),
            decode_per_second=found.decode,
            prefill_per_second=found.prefill,
            files=files,
        )
        (partial / RECORD).write_text(json.dumps(asdict(tuning), indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        partial.rename(folder / FOLDER)
    except OSError as error:
        raise InputError(
            f"expected to write into {folder}, came {error.strerror or error}; copy the bundle first"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tuning


def _save_prepacked(source: Path, target: Path, threads: int) -> None:
    """Let onnxruntime write the optimized graph with the weights as its kernels want them."""
    from .model import session_options  # noqa: PLC0415  # model reads tunings

    options = session_options(threads)
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{target.name}.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise InputError(
            f"expected room for a second copy of the weights in {target.parent.parent}, came a failed write; free some space"
        ) from error


def _tokens(model: "Model", count: int) -> Any:
    if model.takes_ids:
        return np.arange(count) * 11 % model.output_width
    return np.cos(np.arange(count * model.output_width, dtype=np.float32)).reshape(count, -1)


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Nobody asked for progress."""
