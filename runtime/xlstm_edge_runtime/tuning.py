"""What `tune` found and where it lies: a bundle's `tuned/` folder, which belongs to one CPU, one onnxruntime, one bundle.

Anywhere else, and whenever anything about it is not as it must be, it is ignored, and the bundle works as exported.
"""

import hashlib
import json
import stat
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import onnxruntime as ort

from .errors import BundleError
from .hardware import cpu_key
from .layout import GRAPH, TUNED_GRAPH, TUNING, TUNING_RECORD
from .manifest import Manifest, file_entry
from .manifest_sections import FileEntry, read_files
from .reading import Reader, read_json

MOST_THREADS, MOST_SPIN, MOST_RATE = 1024, 10_000, 1e12
HASHED_AT_LOAD = 16 << 20  # larger files are hashed by verify: a start must not wait for gigabytes
LARGEST_RECORD = 1 << 16
KINDS = STORED, PREPACKED, FLOAT = "stored", "prepacked", "float32"
ADVICE = "tune the bundle again"


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was found best; `key` names the CPU, the onnxruntime and the bundle it holds for.

    `weights`: `stored` where the bundle's own graph runs, else the graph lies here too, with the weights `prepacked` as
    this CPU's kernels want them, or made `float32` for a CPU that multiplies floats faster. `in_place`: a step was proven to
    write the state in place, with this graph, these threads, on the CPU provider.
    """

    key: str
    threads: int
    spin: int
    chunk: int
    weights: str
    in_place: bool
    decode_per_second: float
    prefill_per_second: float
    files: dict[str, FileEntry]

    def to_json(self) -> str:
        """The text of tuned.json."""
        return json.dumps(asdict(self), indent=2) + "\n"


def key_of(manifest: Manifest) -> str:
    """CPU, onnxruntime and bundle in one hash."""
    bundle = sorted((name, entry.sha256) for name, entry in manifest.files.items())
    return hashlib.sha256(json.dumps([cpu_key(), ort.__version__, bundle]).encode()).hexdigest()


def read_tuning(folder: Path, manifest: Manifest) -> Tuning | None:
    """The bundle's tuning if it was made here for this very bundle; None otherwise, whatever is wrong with it.

    Of files too large to be hashed at every start the size is compared; `check_tuning` compares the rest.
    """
    try:
        tuning = _read(folder / TUNING, manifest)
        small = {name: entry for name, entry in tuning.files.items() if entry.bytes <= HASHED_AT_LOAD}
        sizes = all(_size(folder / TUNING / name) == entry.bytes for name, entry in tuning.files.items())
        hashes = all(file_entry(folder / TUNING / name) == entry for name, entry in small.items())
    except (BundleError, OSError):
        return None
    return tuning if tuning.key == key_of(manifest) and sizes and hashes else None


def check_tuning(folder: Path, manifest: Manifest) -> Tuning | None:
    """As `read_tuning`, but BundleError where a tuning of this machine lies there with files other than it wrote."""
    try:
        tuning = _read(folder / TUNING, manifest)
    except (BundleError, OSError):
        return None
    if tuning.key != key_of(manifest):
        return None
    for name, entry in tuning.files.items():
        try:
            same = _size(folder / TUNING / name) == entry.bytes and file_entry(folder / TUNING / name) == entry
        except OSError:
            same = False
        if not same:
            raise BundleError(f"expected {TUNING}/{name} as it was tuned, got other bytes; {ADVICE}")
    return tuning


def _read(folder: Path, manifest: Manifest) -> Tuning:
    """BundleError, or OSError, for a record that is not as `Tuning.to_json` writes it."""
    if folder.is_symlink():
        raise OSError("a link")
    document = read_json(folder / TUNING_RECORD, LARGEST_RECORD, advice=ADVICE)
    reader = Reader(document, TUNING_RECORD, [field.name for field in fields(Tuning)], advice=ADVICE)
    tuning = Tuning(
        key=reader.text("key"),
        threads=reader.integer("threads", 1, MOST_THREADS),
        spin=reader.integer("spin", 0, MOST_SPIN),
        chunk=reader.integer("chunk", 1, manifest.graph.chunk),
        weights=reader.text("weights", among=KINDS),
        in_place=reader.flag("in_place"),
        decode_per_second=reader.number("decode_per_second", 0, MOST_RATE),
        prefill_per_second=reader.number("prefill_per_second", 0, MOST_RATE),
        files=read_files(reader.section("files", (), optional=TUNED_GRAPH)),
    )
    if (tuning.weights == STORED) == (GRAPH in tuning.files):
        raise reader.refuse(f"{TUNING_RECORD} files", "those of its graph", "others")
    return tuning


def _size(path: Path) -> int:
    """Size of a regular file that is no link; OSError for anything else."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("no regular file")
    return found.st_size
