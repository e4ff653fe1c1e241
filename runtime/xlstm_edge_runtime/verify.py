"""Let a bundle prove itself on the device: every file's hash, the graph's contract, the test vectors, the snapshots.

Needs no torch and no checkpoint. Each check yields a `Check`; the first that fails raises VerificationError.

What runs is what the user's `load` runs: the tuned graph, its threads, provider and chunk, single steps and prompts whose
lengths end after one token, inside a chunk, at its end and beyond it. Quantized weights run once more as they are stored,
with float activations: that must come as near to the reference as float32 weights do, however deep the model, and shows
a wrong scale or a swapped block where rounded activations would hide it. On another provider than the CPU the placement is
a check too; where it computes in 16 bits, outputs are judged by what that costs, and over a few tokens.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import check_compiled, compiled_graph
from .errors import BundleError, VerificationError
from .graph_file import check_offsets
from .in_place import prove_in_place
from .loading import load, open_model
from .manifest import Manifest, check_hash, has_manifest, read_manifest
from .model import Model
from .opening import Settings
from .prepack import same_bits, sample
from .providers import FLOAT16, FLOAT32, choose_provider
from .reading import check_path
from .tuning import FLOAT, Tuning, check_tuning
from .vectors import (
    FLOAT16_ALLOWED,
    FLOAT16_STEPS,
    LONGEST_BASE,
    MOST_FLOAT,
    ODD,
    Expected,
    Vectors,
    make_inputs,
    read_vectors,
)

RANGES = 3.0  # the outputs' range may be so many times smaller or larger where rounding decides the outputs
PIECE = 64


@dataclass(frozen=True, slots=True)
class Check:
    """One check that passed: what was looked at, and what was found."""

    name: str
    detail: str


def verify_bundle(
    folder: str | Path,
    *,
    threads: int | None = None,
    provider: str = "cpu",
    provider_options: Mapping[str, str | int | bool] | None = None,
    allow_fallback: bool = False,
) -> Iterator[Check]:
    """Yield each passed check; VerificationError in one sentence for the first that fails.

    A path that is no bundle at all is bad input: BundleError, as from `load`; so is a provider that is not there or does
    not start (InputError, DependencyError).
    """
    folder = check_path(folder, "a bundle folder")
    choice = choose_provider(provider, provider_options, allow_fallback)
    if not has_manifest(folder):
        read_manifest(folder)  # says what is there instead
    try:
        yield from _verify(folder, Settings(threads=threads, provider=choice))
    except BundleError as error:
        raise VerificationError(str(error)) from error


def _verify(folder: Path, settings: Settings) -> Iterator[Check]:
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        check_hash(folder, name, entry)
    total = sum(entry.bytes for entry in manifest.files.values())
    for graph in manifest.graph.files:
        check_offsets(folder / graph, manifest.state)
    for compiled in manifest.compiled.values():
        for file in compiled.files if compiled.provider == "qnn" else ():
            check_compiled(folder / file, manifest.files)
    yield Check("files", f"{len(manifest.files)} files, {total:,} bytes, all hashes right")
    if manifest.compiled:
        names = ", ".join(sorted(name for entry in manifest.compiled.values() for name in entry.files))
        yield Check("compiled", f"{names}: hashes right; they run where they are for, not here")
    tuning = check_tuning(folder, manifest) if settings.provider.is_cpu else None
    if tuning is not None:
        yield Check("tuning", "made for this machine, all hashes right")
    vectors = read_vectors(folder, manifest)
    yield from _verify_loaded(folder, tuning, settings, vectors)
    yield from verify_stored(folder, manifest, settings, vectors)


def _verify_loaded(folder: Path, tuning: Tuning | None, settings: Settings, vectors: Vectors) -> Iterator[Check]:
    """What `load` gives the user."""
    choice = settings.provider
    model = load(
        folder,
        threads=settings.threads,
        provider=choice.provider.name,
        provider_options=choice.options,
        allow_fallback=choice.allow_fallback,
    )
    manifest = model.manifest
    yield Check("graph", f"{len(manifest.state)} state tensors in and out, {manifest.state.nbytes:,} bytes a session")
    if not model.provider.is_cpu:
        yield Check("placement", _placement(model))
    whole = vectors
    if model.precision == FLOAT16:
        vectors, whole = vectors.first(FLOAT16_STEPS), _ends_of_calls(vectors, model.chunk)
    if model.in_place and model.in_place != prove_in_place(model):
        raise VerificationError(
            "expected steps that write the state in place to change nothing, got other outputs; tune the bundle again"
        )
    yield from compare_outputs(model, vectors, whole)
    yield Check("snapshot", _round_trip(model, vectors))
    if tuning is None:
        return
    if model.tuning != tuning:
        raise VerificationError("expected the tuned graph to load, got one that does not; tune the bundle again")
    if tuning.weights == FLOAT:
        yield Check("tuned", f"the stored weights as float32, {float_pass(model, vectors)}")
        return
    got = sample(model)
    del model  # one set of weights in memory at a time
    threads = tuning.threads if settings.threads is None else settings.threads
    plain = open_model(folder, manifest, None, Settings(threads=threads))
    plain.chunk = tuning.chunk
    if not same_bits(got, sample(plain)):
        raise VerificationError(
            "expected the tuned graph to compute what the bundle does, got other outputs; tune again"
        )
    plain.chunk = manifest.graph.chunk
    yield Check("tuned", f"bit-equal with the graph as exported; {_chunks(plain, vectors)}")


def _placement(model: Model) -> str:
    """Where the nodes are and what they compute in; nothing is left to the CPU unless that was allowed."""
    parts = [f"{'some' if count is None else count} on {name}" for name, count in model.placement.items()]
    form = compiled_graph(model.folder, model.manifest, model.provider)
    made = "" if form is None else f"{form.name}, made ahead of time; "
    return f"{', '.join(parts) or 'not known to this onnxruntime'}; {made}computes in {model.precision}"


def verify_stored(folder: Path, manifest: Manifest, settings: Settings, vectors: Vectors) -> Iterator[Check]:
    """The stored weights with float activations: a pass over the vectors in calls that end at the expected positions.

    On the CPU, whatever else the settings say: it is what the file holds that is looked at.
    """
    if manifest.quantization.in_graph:
        return
    quantized = bool(manifest.quantization)
    if not quantized and manifest.graph.chunk <= LONGEST_BASE:
        return
    exact = open_model(folder, manifest, None, Settings(settings.threads, None, quantized))
    if quantized:
        yield Check("weights", f"float activations: {float_pass(exact, vectors)}")
    if manifest.graph.chunk > LONGEST_BASE:
        yield Check("full chunk", _full_chunk(exact, vectors))


def float_pass(model: Model, vectors: Vectors) -> str:
    """A pass over the vectors in calls that end at the expected positions, as near to them as float32 weights come."""
    session, start, worst = model.session(), 0, _Worst()
    for expected in vectors.expected:
        output = session.prefill(vectors.inputs[start : expected.position + 1])
        start = expected.position + 1
        worst.take(expected, expected.float_difference(output), expected.allowed_float)
    return str(worst)


def compare_outputs(model: Model, vectors: Vectors, prompts: Vectors | None = None) -> Iterator[Check]:
    """Single steps and prompts of a loaded model against the vectors, `prompts` where those should be others."""
    yield Check("step", _steps(model, vectors))
    if model.chunk > 1:
        yield Check("chunk", _chunks(model, prompts or vectors))


def _ends_of_calls(vectors: Vectors, chunk: int) -> Vectors:
    """After whole calls of `chunk` tokens, or soon after them where no vector ends there: what a simulator has time for."""
    reached = [e for e in vectors.expected if e.position + 1 >= chunk]
    whole = [e for e in reached if (e.position + 1) % chunk == 0]
    return Vectors(vectors.inputs, tuple(whole or reached[:2]))


def _steps(model: Model, vectors: Vectors) -> str:
    """Every token alone."""
    session, start, worst = model.session(), 0, _Worst(model.precision, takes_ids=model.takes_ids)
    for expected in vectors.expected:
        for token in vectors.inputs[start : expected.position + 1]:
            output = session.prefill(token[None])
        start = expected.position + 1
        worst.judge(expected, output)
    return str(worst)


def _chunks(model: Model, vectors: Vectors) -> str:
    """A prompt from the start to each position, as a user would give it."""
    worst = _Worst(model.precision, takes_ids=model.takes_ids)
    for expected in vectors.expected:
        worst.judge(expected, model.session().prefill(vectors.inputs[: expected.position + 1]))
    return str(worst)


def _full_chunk(model: Model, vectors: Vectors) -> str:
    """A chunk longer than the vectors, in one call and in calls of lengths that the vectors cover."""
    size, manifest = model.manifest.graph.chunk, model.manifest
    inputs = make_inputs(1, size + ODD, vocab_size=manifest.model.vocab_size, width=manifest.model.width)
    whole, pieces, worst = model.session(), model.session(), 0.0
    allowed = min(2 * max(expected.allowed_float for expected in vectors.expected), MOST_FLOAT)
    for part in (inputs[:size], inputs[size:]):  # a full chunk, and the rest that shows the state after it
        wanted = [np.array(pieces.prefill(part[start : start + PIECE])) for start in range(0, len(part), PIECE)][-1]
        difference = np.abs(np.subtract(whole.prefill(part), wanted, dtype=np.float64)).max()
        worst = max(worst, float(difference) / (float(np.ptp(wanted)) or 1.0))
        if not worst <= allowed:
            raise VerificationError(_refusal(f"outputs of calls of {size} and of {PIECE} tokens", allowed, worst))
    return f"{size} tokens in one call, largest difference {worst:.1e} of the range (allowed {allowed:.1e})"


class _Worst:
    """Judges outputs and remembers the one that came nearest to its bound."""

    def __init__(self, precision: str = FLOAT32, *, takes_ids: bool = True) -> None:
        self._float16, self._takes_ids = precision == FLOAT16, takes_ids
        self._share, self._text, self._last = -1.0, "a healthy range; rounding decides all else", 0

    def judge(self, expected: Expected, output: NDArray[Any]) -> None:
        """By the measure that fits weights and provider; VerificationError if it is too far off."""
        self._last = expected.position
        if expected.rounding_error is None and self._float16:
            self.take(expected, expected.float_difference(output), FLOAT16_ALLOWED)
            self._judge_likeliest(expected, int(output.argmax()))
            return
        if expected.rounding_error is None:
            self.take(expected, expected.float_difference(output), expected.allowed_float)
            return
        span = float(np.ptp(output))
        if not expected.span / RANGES <= span <= expected.span * RANGES:
            raise VerificationError(
                f"expected outputs over a range of {expected.span:.3g} after token {expected.position}, got "
                f"{span:.3g}; this runtime computes something else, do not use it"
            )
        if (allowed := expected.allowed_rounding) is not None:
            self.take(expected, expected.rounding_difference(output), allowed)

    def _judge_likeliest(self, expected: Expected, got: int) -> None:
        if self._takes_ids and got != expected.likeliest:
            raise VerificationError(
                f"expected token {expected.likeliest} as the likeliest after token {expected.position}, got {got}; 16 bits are "
                "too few for this model, use a provider with float32"
            )

    def take(self, expected: Expected, difference: float, allowed: float) -> None:
        """Remember it; VerificationError if it is more than allowed."""
        if not difference <= allowed:
            raise VerificationError(
                _refusal(f"outputs and the reference after token {expected.position}", allowed, difference)
            )
        if difference / allowed > self._share:
            self._share, self._text = difference / allowed, f"difference {difference:.1e} (allowed {allowed:.1e})"

    def __str__(self) -> str:
        if not self._float16:
            return self._text
        likeliest = ", the same likeliest token" if self._takes_ids else ""
        return f"{self._text}{likeliest}; 16 bits, to token {self._last} only"


def _refusal(what: str, allowed: float, difference: float) -> str:
    return (
        f"expected {what} within {allowed:.1e} of each other, got {difference:.2e}; this runtime computes something else, "
        "do not use it"
    )


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
            "expected a restored session to continue bit-equal, got other outputs; do not use snapshots"
        )
    return f"restored state continues bit-equal ({size:,} bytes)"
