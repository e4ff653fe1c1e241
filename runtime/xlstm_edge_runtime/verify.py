"""Let a bundle prove itself on the device: every file's hash, the graph's contract, the test vectors, the snapshots.

Needs no torch and no checkpoint. Each check yields a `Check`; the first that fails raises VerificationError.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, InputError, VerificationError
from .manifest import MANIFEST, Manifest, check_hash, read_manifest
from .model import Model, load
from .tune import check_tuning, read_tuning

VECTORS = "vectors.json"


@dataclass(frozen=True, slots=True)
class Check:
    """One check that passed: what was looked at, and what was found."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Expected:
    """Outputs at one position of the test vectors: the ids of the largest and their values, over the output's range."""

    position: int
    ids: NDArray[np.int64]
    values: NDArray[np.float64]
    span: float


@dataclass(frozen=True, slots=True)
class Vectors:
    """Test vectors: inputs (T,) ids or (T, D) vectors, outputs to expect, and the allowed share of the range."""

    inputs: Sequence[Any]
    expected: tuple[Expected, ...]
    tolerance: float


def verify_bundle(folder: str | Path, *, threads: int | None = None) -> Iterator[Check]:
    """Yield each passed check; VerificationError in one sentence for the first that fails.

    A path that is no bundle at all is bad input: BundleError, as from `load`.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        read_manifest(folder)
    try:
        yield from _verify(folder, threads)
    except BundleError as error:
        raise VerificationError(str(error)) from error


def _verify(folder: Path, threads: int | None) -> Iterator[Check]:
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        check_hash(folder, name, entry)
    total = sum(entry.bytes for entry in manifest.files.values())
    yield Check("files", f"{len(manifest.files)} files, {total:,} bytes, all hashes right")
    tuning = read_tuning(folder, manifest)
    if tuning is not None:
        check_tuning(folder, tuning)
        yield Check("tuning", "made for this machine, all hashes right")
    model = load(folder, threads=threads)
    yield Check("graph", f"{len(manifest.state)} state tensors in and out, {manifest.state.nbytes:,} bytes a session")
    vectors = read_vectors(folder, manifest)
    yield Check("step", _compare(model, vectors, 1))
    if manifest.graph.chunk > 1:
        yield Check("chunk", _compare(model, vectors, manifest.graph.chunk))
    yield Check("snapshot", _round_trip(model, vectors))


def read_vectors(folder: Path, manifest: Manifest) -> Vectors:
    """The bundle's test vectors; BundleError if they are not usable."""
    try:
        document = json.loads((folder / VECTORS).read_text(encoding="utf-8"))
        expected = tuple(
            Expected(
                int(check["position"]),
                np.asarray(check["ids"], np.int64),
                np.asarray(check["values"], np.float64),
                float(check["range"]),
            )
            for check in document["checks"]
        )
        vectors = Vectors(list(document["inputs"]), expected, float(document["tolerance"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"expected test vectors in {VECTORS}, came something else; export the bundle again"
        ) from error
    width = manifest.model.vocab_size or manifest.model.width
    usable = all(
        0 <= e.position < len(vectors.inputs) and e.ids.shape == e.values.shape and e.ids.size and e.ids.max() < width
        for e in expected
    )
    if not (expected and usable):
        raise BundleError(
            f"expected test vectors that fit the model in {VECTORS}, came others; export the bundle again"
        )
    return vectors


def _compare(model: Model, vectors: Vectors, size: int) -> str:
    """Run the inputs in pieces of at most `size` tokens that end at the expected positions."""
    session, worst, start = model.session(), 0.0, 0
    for expected in sorted(vectors.expected, key=lambda e: e.position):
        try:
            while start <= expected.position:
                end = min(start + size, expected.position + 1)
                output = session.prefill(vectors.inputs[start:end])
                start = end
        except InputError as error:
            raise BundleError(f"expected inputs of this model in {VECTORS}, came others: {error}") from error
        difference = float(np.abs(output[expected.ids] - expected.values).max()) / max(expected.span, 1e-30)
        if not difference <= vectors.tolerance:
            raise VerificationError(
                f"expected outputs within {vectors.tolerance:g} of their range at token {expected.position}, "
                f"came {difference:.2e}; this runtime computes something else, do not use it"
            )
        worst = max(worst, difference)
    return f"largest difference {worst:.1e} of the range (allowed {vectors.tolerance:g})"


def _round_trip(model: Model, vectors: Vectors) -> str:
    """Save, load into another session, continue: bit-equal outputs."""
    session, other = model.session(), model.session()
    session.prefill(vectors.inputs[:-1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        session.save(path)
        size = path.stat().st_size
        other.load(path)
    last = vectors.inputs[-1:]
    if not np.array_equal(session.prefill(last).copy(), other.prefill(last)):
        raise VerificationError(
            "expected a restored session to continue bit-equal, came other outputs; do not use snapshots"
        )
    return f"restored state continues bit-equal ({size:,} bytes)"
