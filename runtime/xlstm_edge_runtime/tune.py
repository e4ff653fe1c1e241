"""Fit a bundle to the machine it is on, once: threads, how long they wait busily, chunk size, and weights as this CPU's
kernels want them.

The result lies in the bundle's `tuned/` folder, outside the manifest, and belongs to one CPU model, one onnxruntime and
one graph: anywhere else it is ignored, and the bundle works as it was exported. Weights in the CPU's own layout are
memory-mapped instead of being rearranged into memory at every start. Where float32 weights are faster, as on chips without
dot products of integers, the integers are made float once, here.
"""

import shutil
from pathlib import Path

from .errors import BundleError, InputError, VerificationError, shown, shown_path
from .files import atomic_folder
from .float_graph import float_bytes, write_float_graph
from .graph_file import check_graph_file
from .hardware import multiplies_integers, physical_memory
from .layout import GRAPH, TUNED, TUNING, TUNING_RECORD
from .loading import checked_manifest, load
from .manifest import Manifest, file_entry
from .prepack import prove_prepacked, save_prepacked
from .progress import Progress, no_progress
from .rates import Found, decode_rate, find_settings, measure, open_found
from .tuning import FLOAT, PREPACKED, STORED, Tuning, key_of
from .vectors import read_vectors
from .verify import float_pass

IN_FLOAT = "float32"  # a folder, for as long as it is being measured
SMALL = 1 << 28  # bytes of float weights that are tried on any chip
GAIN = 1.1  # how much faster float weights must be, for several times the memory
HOPELESS = 0.75  # of the speed of integers, at what is best for them: no other setting makes up for that


def tune_bundle(folder: str | Path, *, progress: Progress = no_progress) -> Tuning:
    """Measure, save, return; InputError if the folder cannot be written. A former tuning is replaced."""
    folder = Path(folder)
    _check_place(folder / TUNING)
    manifest = checked_manifest(folder)
    check_graph_file(folder / manifest.graph.file, manifest.files, manifest.graph.chunk)
    try:
        with atomic_folder(folder / TUNING, replace=True, check=_only_ours) as partial:
            if manifest.quantization:  # float32 weights are mapped as they are
                progress("preparing weights", 0, 0)
                save_prepacked(folder / manifest.graph.file, partial, 1)
            found = find_settings(folder, partial, progress)
            tuning = _in_float(folder, manifest, partial, found, progress) or _proven(folder, partial, found)
            (partial / TUNING_RECORD).write_text(tuning.to_json(), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"expected to write into {shown_path(folder)}, got {error.strerror or error}; copy the bundle first"
        ) from error
    return tuning


def _check_place(place: Path) -> None:
    """InputError at once for what a tuning could not replace at the end."""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise InputError(
            f"expected a folder of a former tuning at {shown_path(place)}, or nothing, got another thing; remove it"
        )
    if place.exists():
        _only_ours(place)


def _proven(folder: Path, partial: Path, found: Found) -> Tuning:
    """What was found as a record; prepared weights stay only where they compute what the bundle does, bit for bit."""
    model = load(folder, threads=found.threads, tuned=False, spin=found.spin)
    model.chunk = found.chunk
    in_place, weights = bool(model.in_place), STORED
    if (partial / GRAPH).exists():
        proven = prove_prepacked(partial, model, threads=found.threads, spin=found.spin, chunk=found.chunk)
        if proven is not None:
            weights, in_place = PREPACKED, proven
    if weights == STORED:
        for path in partial.iterdir():
            path.unlink()
    return _record(model.manifest, partial, found, weights, in_place=in_place)


def _in_float(folder: Path, manifest: Manifest, partial: Path, found: Found, progress: Progress) -> Tuning | None:
    """The record of a graph with float weights, which then lies in `partial`; None where that is no gain, or cannot be had."""
    place, source = partial / IN_FLOAT, folder / manifest.graph.file
    if not manifest.quantization or not _worth_trying(source, partial):
        return None
    progress("float weights", 0, 0)
    place.mkdir()
    try:
        write_float_graph(source, place)
        if decode_rate(open_found(folder, place, found)) < HOPELESS * found.decode:
            return None
        other = find_settings(folder, place, progress)
        settings = [(partial, found), (place, other)]
        rates = measure("weights", [0, 1], lambda n: open_found(folder, *settings[n]), decode_rate, progress)
        if rates[1] < GAIN * rates[0]:
            return None
        model = open_found(folder, place, other)
        check_graph_file(place / GRAPH, {path.name for path in place.iterdir()}, other.chunk)
        float_pass(model, read_vectors(folder, manifest))
        in_place = bool(model.in_place)
        del model  # its files are to be moved
        for path in place.iterdir():
            path.replace(partial / path.name)
        return _record(manifest, partial, other, FLOAT, in_place=in_place)
    except (OSError, ValueError, BundleError, VerificationError):  # it was worth a try
        return None
    finally:
        shutil.rmtree(place)


def _worth_trying(source: Path, partial: Path) -> bool:
    """Whether float weights may be faster, and have room: in little memory, or where the chip has nothing for integers."""
    try:
        size = float_bytes(source)
    except ValueError:
        return False
    room = min(shutil.disk_usage(partial).free // 2, physical_memory() // 4)
    return size <= room and (size <= SMALL or not multiplies_integers())


def _record(manifest: Manifest, partial: Path, found: Found, weights: str, *, in_place: bool) -> Tuning:
    return Tuning(
        key=key_of(manifest),
        threads=found.threads,
        spin=found.spin,
        chunk=found.chunk,
        weights=weights,
        in_place=in_place,
        decode_per_second=found.decode,
        prefill_per_second=found.prefill,
        files={path.name: file_entry(path) for path in partial.iterdir() if path.is_file()},
    )


def _only_ours(folder: Path) -> None:
    """A former tuning may go, and nothing else."""
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in TUNED):
        raise InputError(
            f"expected only a tuning in {shown_path(folder)}, got {shown(foreign[0])}; move it elsewhere first"
        )
