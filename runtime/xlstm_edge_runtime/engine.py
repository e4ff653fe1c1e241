"""A bundle as it runs: its graph in onnxruntime, what may be fed to it, its tokenizer and its default options.

Sessions are made of an engine; `model.Model` is the engine that makes them.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .layout import GRAPH, TUNING
from .manifest import Manifest
from .options import GenerationOptions, ResolvedOptions
from .placement import Placement, placement_of
from .providers import CPU, FLOAT32, Choice
from .reading import length_of
from .tokenizer import Tokenizer, encode_text, load_tokenizer
from .tuning import STORED, Tuning

MOST_INPUTS = 1 << 26  # tokens of one call; longer texts come in parts


class Engine:
    """An opened bundle; several threads may use it at once, each with sessions of its own.

    `output_width` is V, or D for a stack of vectors. `chunk` is the number of tokens of one call while prefilling, which a
    tuning may choose smaller than the graph's. `in_place` names the state tensors that a single step writes over the old
    ones. `prompts` is the graph for calls of exactly the manifest's `chunk` tokens, None where `inference` takes any number up
    to it. `tuning` is what the bundle was opened by, None: as exported. `provider` is what runs it, with its options.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        inference: ort.InferenceSession,
        prompts: ort.InferenceSession | None = None,
    ) -> None:
        self.folder, self.manifest, self.inference, self.prompts = folder, manifest, inference, prompts
        self.takes_ids = manifest.model.vocab_size is not None
        self.output_width = manifest.model.vocab_size or manifest.model.width
        self.in_place: frozenset[str] = frozenset()
        self.tuning: Tuning | None = None
        self.provider: Choice = CPU
        self.chunk = manifest.graph.chunk

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}: {self.manifest.summary()})"

    @cached_property
    def placement(self) -> Placement:
        """Nodes by onnxruntime's provider, as {"QNNExecutionProvider": 1}: what a provider compiled as one counts as one.

        On the CPU, nodes of the graph file. A number is None, or all is empty, where this onnxruntime does not tell. That is
        of the graph for single tokens; the one for prompts, if there is one, was checked alike.
        """
        tuned = self.tuning is not None and self.tuning.weights != STORED
        graph = self.folder / TUNING / GRAPH if tuned else self.folder / self.manifest.graph.file
        return placement_of(self.inference, self.provider, graph)

    @property
    def precision(self) -> str:
        """What it computes in, "float32" or "float16": the provider's, but that of the CPU where every node fell to it."""
        on_cpu = self.placement.keys() == {CPU.provider.ort_name} and self.prompts is None
        return FLOAT32 if on_cpu else self.provider.precision

    def graph_for(self, length: int) -> ort.InferenceSession | None:
        """The graph that takes so many tokens (1 to `chunk`) in one call; None where they are to be taken one by one."""
        graph = self.manifest.graph
        if length == 1 or graph.prompt is None:
            return self.inference
        return self.prompts if length == graph.chunk else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer; InputError if it has none, DependencyError without the package for it."""
        info = self.manifest.tokenizer
        if info.kind == "none":
            raise InputError("expected a bundle with a tokenizer, got one without; pass token ids to session.generate")
        return load_tokenizer(info.kind, self.folder / info.file if info.file else None)

    def encode(self, prompt: str, *, start: bool = True) -> list[int]:
        """Token ids of a prompt: those that `transformers` gives, special tokens of the tokenizer's post-processor included.

        So a tokenizer that ends every text with an eos token ends a prompt with it too: its models were trained so, and what
        they continue is the text after it. A model that wants a bos token which its tokenizer does not add gets it. `start`
        False is for text in the middle of a stream: nothing is added. InputError for an id that the model does not have.
        """
        try:
            prompt.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:
            got = ascii(prompt[:40]) if isinstance(prompt, str) else type(prompt).__name__
            raise InputError(f"expected a prompt of whole characters, got {got}; pass UTF-8 text") from error
        special = self.manifest.special_tokens
        bos = special.bos if special.add_bos else None
        return encode_text(self.tokenizer, prompt, self.output_width, bos=bos, start=start)

    def resolve(self, options: GenerationOptions) -> ResolvedOptions:
        """Options over the bundle's sampling defaults and stop ids; InputError for bad ones."""
        return options.resolve(self.manifest.sampling, self.manifest.special_tokens.stop)

    def check_inputs(self, tokens: Sequence[int] | ArrayLike) -> NDArray[Any]:
        """Ids as int64 (T,) inside the vocabulary, or vectors as finite float32 (T, D); InputError otherwise.

        The caller's own array where its type fits already: it is read before `step` and `prefill` return, and not kept.
        """
        _check_length(tokens)
        return self._check_ids(tokens) if self.takes_ids else self._check_vectors(tokens)

    def _check_ids(self, tokens: Sequence[int] | ArrayLike) -> NDArray[np.int64]:
        vocab_size = self.output_width
        try:
            ids = np.asarray(tokens)
        except (ValueError, OverflowError) as error:
            raise InputError(f"expected a flat list of token ids, got {_kind(tokens)}; pass integers") from error
        if ids.size == 0 and ids.ndim == 1:
            return ids.astype(np.int64)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InputError(f"expected a flat list of token ids, got {_kind(tokens)}; pass integers")
        if ids.min() < 0 or ids.max() >= vocab_size:
            bad = next(int(i) for i in ids if not 0 <= i < vocab_size)
            raise InputError(f"expected token ids from 0 to {vocab_size - 1}, got {bad}; use this model's tokenizer")
        return ids.astype(np.int64, copy=False)

    def _check_vectors(self, tokens: Sequence[int] | ArrayLike) -> NDArray[np.float32]:
        width = self.output_width
        try:
            vectors = np.asarray(tokens, np.float32)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"expected float vectors of width {width}, got {type(tokens).__name__}; pass an array"
            ) from error
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise InputError(f"expected float vectors (T, {width}), got shape {vectors.shape}; reshape the input")
        if not np.isfinite(vectors).all():
            raise InputError(
                "expected finite vectors, got NaN or infinity, which would stay in the state; clean the input"
            )
        return vectors


def _check_length(tokens: object) -> None:
    """InputError for more than any call takes, before they are made into an array."""
    if length_of(tokens) > MOST_INPUTS:
        raise InputError(f"expected at most {MOST_INPUTS:,} tokens in one call, got more; feed them in parts")


def _kind(value: object) -> str:
    """What was given instead of ids: text as it is, anything else by its type, for a repr may be huge or fail."""
    return ascii(value[:40]) if isinstance(value, str) else f"something else as {type(value).__name__}"
