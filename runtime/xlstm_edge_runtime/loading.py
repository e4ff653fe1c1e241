"""Load a bundle once, make as many sessions of it as memory holds states.

The weights live in one onnxruntime session that all streams share. Everything about the bundle is checked before the
first token: schema, files, sizes, hashes of the small files, what the graph reads, and that its inputs and outputs are
exactly those of the state table. (`verify` also hashes the weights and runs the test vectors.)
"""

import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from .errors import BundleError
from .in_place import in_place_candidates, prove_in_place
from .manifest import Manifest, check_hash, read_manifest
from .model import Model
from .opening import Settings, is_tuned_for, open_prompts, open_session
from .providers import choose_provider
from .reading import check_path
from .tuning import HASHED_AT_LOAD, Tuning, read_tuning


def load(
    bundle: str | os.PathLike[str],
    *,
    threads: int | None = None,
    provider: str = "cpu",
    provider_options: Mapping[str, str | int | bool] | None = None,
    allow_fallback: bool = False,
    tuned: bool = True,
    spin: int | None = None,
    mapped: bool = False,
) -> Model:
    """Load a bundle: the weights once, for any number of sessions. `bundle` is its folder, or an exported `Bundle`.

    `threads` None takes what `tune` found on this machine or leaves the choice to onnxruntime (the physical cores);
    `tuned` False ignores a tuning. `spin` bounds how many microseconds a thread waits busily for its next piece of work
    (None: as tuned, else 20): more is faster on an idle machine, slower on a busy one, and costs energy. `mapped` leaves
    float32 weights in the file, from where they are read as needed: a start in a fraction of the time and memory that the
    system can take back, for slower decoding; quantized weights ignore it.

    `provider` is what runs the graph: "cpu", "qnn", "openvino", "coreml", "webgpu" or "cuda" (`providers.py`), its
    `provider_options` over the defaults that stand there. A graph that does not land whole on it is refused unless
    `allow_fallback` lets the CPU take the rest; `model.placement` says where it landed. Other providers than the CPU use
    no tuning, no state in place and no `mapped`.

    Raises BundleError if anything is wrong with the bundle, InputError for a bad option, DependencyError for a provider
    whose package is not installed.
    """
    folder = check_path(bundle, "a bundle folder")
    choice = choose_provider(provider, provider_options, allow_fallback)
    manifest = checked_manifest(folder)
    # Quantized kernels are 50 times slower on weights as they are stored.
    mapped = mapped and not manifest.quantization and choice.is_cpu
    tuning = read_tuning(folder, manifest) if tuned and choice.is_cpu else None
    return open_model(folder, manifest, tuning, Settings(threads, spin, mapped, choice))


def checked_manifest(folder: Path) -> Manifest:
    """A bundle's manifest, its small files hashed; BundleError for one that is damaged, or for a newer onnxruntime."""
    manifest = read_manifest(folder)
    _check_version(manifest)
    for name, entry in manifest.files.items():
        if entry.bytes <= HASHED_AT_LOAD:
            check_hash(folder, name, entry)
    return manifest


def open_model(folder: Path, manifest: Manifest, tuning: Tuning | None, settings: Settings) -> Model:
    """The model of a bundle whose files are checked already: as tuned, where a tuning is given and works."""
    inference, tuning = open_session(folder, manifest, tuning, settings)
    model = Model(folder, manifest, inference, open_prompts(folder, manifest, tuning, settings))
    model.tuning, model.provider = tuning, settings.provider
    model.chunk = manifest.graph.chunk if tuning is None else tuning.chunk
    if tuning is not None and is_tuned_for(tuning, settings):
        model.in_place = in_place_candidates(manifest.state) if tuning.in_place else frozenset()
    elif settings.provider.is_cpu:  # others copy the state to a memory of their own anyway
        model.in_place = prove_in_place(model)
    return model


def _check_version(manifest: Manifest) -> None:
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())

    if numbers(ort.__version__) < numbers(manifest.onnxruntime):
        raise BundleError(
            f"expected onnxruntime {manifest.onnxruntime} or newer for this bundle, got {ort.__version__}; "
            "upgrade it with pip install -U onnxruntime"
        )
