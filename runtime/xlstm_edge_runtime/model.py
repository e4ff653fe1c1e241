"""Load a bundle once, make as many sessions of it as memory holds states.

The weights live in one onnxruntime session that all streams share. Everything about the bundle is checked before the
first token: schema, files, sizes, hashes of the small files, what the graph reads, and that its inputs and outputs are
exactly those of the state table. (`verify` also hashes the weights and runs the test vectors.)
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray

from .alias import alias_candidates, proven_aliases
from .errors import BundleError, InputError, shown
from .generate import GenerationOptions, merge_options
from .manifest import Manifest, check_hash, read_manifest
from .opening import Settings, remembers, start
from .reading import check_path, length_of
from .session import Session
from .tokenizer import Tokenizer, encode_text, load_tokenizer
from .tuning import HASHED_AT_LOAD, Tuning, read_tuning

MOST_INPUTS = 1 << 26  # tokens of one call; longer texts come in parts


def check_length(tokens: object) -> None:
    """InputError for more than any call takes, before they are made into an array."""
    if length_of(tokens) > MOST_INPUTS:
        raise InputError(f"expected at most {MOST_INPUTS:,} tokens in one call, came more; feed them in parts")


class Model:
    """A loaded bundle; see `load`."""

    def __init__(self, folder: Path, manifest: Manifest, inference: ort.InferenceSession) -> None:
        self.folder, self.manifest, self.inference = folder, manifest, inference
        self.takes_ids = manifest.model.vocab_size is not None
        self.output_width = manifest.model.vocab_size or manifest.model.width
        self.aliased: frozenset[str] = frozenset()  # state tensors that a single step writes in place
        self.tuning: Tuning | None = None  # what it was opened by
        self.chunk = manifest.graph.chunk  # tokens of one call while prefilling; a tuning may choose fewer

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer; InputError if it has none."""
        info = self.manifest.tokenizer
        if info.kind == "none":
            raise InputError("expected a bundle with a tokenizer, came one without; pass token ids to session.generate")
        return load_tokenizer(info.kind, self.folder / info.file if info.file else None)

    def session(self) -> Session:
        """A new stream in the zero state."""
        return Session(self)

    def encode(self, prompt: str, *, start: bool = True) -> list[int]:
        """Token ids of a prompt: those that `transformers` gives, special tokens of the tokenizer's post-processor included.

        So a tokenizer that ends every text with an eos token ends a prompt with it too: its models were trained so, and what
        they continue is the text after it. A model that wants a bos token which its tokenizer does not add gets it. `start`
        False is for text in the middle of a stream: nothing is added. InputError for an id that the model does not have.
        """
        try:
            prompt.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:
            came = ascii(prompt[:40]) if isinstance(prompt, str) else type(prompt).__name__
            raise InputError(f"expected a prompt of whole characters, came {came}; pass UTF-8 text") from error
        special = self.manifest.special_tokens
        bos = special.bos if special.add_bos else None
        return encode_text(self.tokenizer, prompt, self.output_width, bos=bos, start=start)

    def stream(
        self,
        prompt: str,
        *,
        stop: Sequence[str] = (),
        max_tokens: int | None = None,
        min_tokens: int | None = None,
        stop_ids: Collection[int] | None = None,
        ignore_eos: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        penalty_window: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        banned: Collection[int] | None = None,
        cancel: Callable[[], bool] | None = None,
        on_prompt: Callable[[int, int], object] | None = None,
    ) -> Iterator[str]:
        """Text pieces that continue a prompt, from a fresh session; the options are those of `text.stream_text`."""
        given = {name: value for name, value in locals().items() if name not in ("self", "prompt")}
        from .text import Piece, stream_text  # noqa: PLC0415  # text needs a tokenizer, loading a bundle does not

        events = stream_text(self.session(), prompt, **given)
        return (event.text for event in events if isinstance(event, Piece))

    def options(self, given: Mapping[str, Any]) -> GenerationOptions:
        """What the caller gives over the bundle's sampling defaults and stop ids; InputError for bad ones."""
        special = self.manifest.special_tokens
        return merge_options(given, defaults=self.manifest.sampling, eos_ids=special.stop)

    def check_inputs(self, tokens: Sequence[int] | ArrayLike) -> NDArray[Any]:
        """Ids as int64 (T,) inside the vocabulary, or vectors as finite float32 (T, D); InputError otherwise."""
        check_length(tokens)
        return self._check_ids(tokens) if self.takes_ids else self._check_vectors(tokens)

    def _check_ids(self, tokens: Sequence[int] | ArrayLike) -> NDArray[np.int64]:
        vocab_size = self.output_width
        try:
            ids = np.asarray(tokens)
        except (ValueError, OverflowError) as error:
            raise InputError(f"expected a flat list of token ids, came {_kind(tokens)}; pass integers") from error
        if ids.size == 0 and ids.ndim == 1:
            return ids.astype(np.int64)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InputError(f"expected a flat list of token ids, came {_kind(tokens)}; pass integers")
        if ids.min() < 0 or ids.max() >= vocab_size:
            bad = next(int(i) for i in ids if not 0 <= i < vocab_size)
            raise InputError(f"expected token ids from 0 to {vocab_size - 1}, came {bad}; use this model's tokenizer")
        return ids.astype(np.int64, copy=False)

    def _check_vectors(self, tokens: Sequence[int] | ArrayLike) -> NDArray[np.float32]:
        width = self.output_width
        try:
            vectors = np.asarray(tokens, np.float32)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"expected float vectors of width {width}, came {type(tokens).__name__}; pass an array"
            ) from error
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise InputError(f"expected float vectors (T, {width}), came shape {vectors.shape}; reshape the input")
        if not np.isfinite(vectors).all():
            raise InputError(
                "expected finite vectors, came NaN or infinity, which would stay in the state; clean the input"
            )
        return vectors


def _kind(value: object) -> str:
    """What came instead of ids: text as it is, anything else by its type, for a repr may be huge or fail."""
    return ascii(value[:40]) if isinstance(value, str) else f"something else as {type(value).__name__}"


def load(
    bundle: str | os.PathLike[str],
    *,
    threads: int | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    tuned: bool = True,
    spin: int | None = None,
    mapped: bool = False,
) -> Model:
    """Load a bundle: the weights once, for any number of sessions. `bundle` is its folder, or an exported `Bundle`.

    `threads` None takes what `tune` found on this machine or leaves the choice to onnxruntime (the physical cores);
    `tuned` False ignores a tuning. `spin` bounds how many microseconds a thread waits busily for its next piece of work
    (None: as tuned, else 20): more is faster on an idle machine, slower on a busy one, and costs energy. `mapped` leaves
    float32 weights in the file, from where they are read as needed: a start in a fraction of the time and memory that the
    system can take back, for slower decoding; quantized weights ignore it. Raises BundleError if anything is wrong with
    the bundle, InputError for a bad option.
    """
    folder = check_path(bundle, "a bundle folder")
    if isinstance(providers, str) or not isinstance(providers, Sequence):
        raise InputError(f"expected providers as a list of names, came {shown(providers)}; leave it out for the CPU")
    manifest = read_manifest(folder)
    _check_version(manifest)
    for name, entry in manifest.files.items():
        if entry.bytes <= HASHED_AT_LOAD:
            check_hash(folder, name, entry)
    # Quantized kernels are 50 times slower on weights as they are stored.
    mapped = mapped and not manifest.quantization.get("tensors")
    tuning = read_tuning(folder, manifest) if tuned else None
    return open_model(folder, manifest, tuning, Settings(threads, spin, mapped, tuple(providers)))


def open_model(folder: Path, manifest: Manifest, tuning: Tuning | None, settings: Settings) -> Model:
    """The model of a bundle whose files are checked already: as tuned, where a tuning is given and works."""
    inference, tuning = start(folder, manifest, tuning, settings)
    model = Model(folder, manifest, inference)
    model.tuning = tuning
    model.chunk = manifest.graph.chunk if tuning is None else tuning.chunk
    if tuning is not None and remembers(tuning, settings):
        model.aliased = alias_candidates(model) if tuning.in_place else frozenset()
    else:
        model.aliased = proven_aliases(model)
    return model


def _check_version(manifest: Manifest) -> None:
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())

    if numbers(ort.__version__) < numbers(manifest.onnxruntime):
        raise BundleError(
            f"expected onnxruntime {manifest.onnxruntime} or newer for this bundle, came {ort.__version__}; "
            "upgrade it with pip install -U onnxruntime"
        )
