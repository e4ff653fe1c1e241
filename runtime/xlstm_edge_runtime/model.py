"""Load a bundle once, make as many sessions of it as memory holds states.

The weights live in one onnxruntime session that all streams share. Everything about the bundle is checked before the
first token: schema, files, sizes, hashes of the small files, and that the graph's inputs and outputs are exactly those
of the state table. (`verify` also hashes the weights and runs the test vectors.)
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray

from .errors import BundleError, InputError
from .generate import GenerationOptions, merge_options
from .manifest import Manifest, check_hash, read_manifest
from .session import Session
from .tokenizer import Tokenizer, encode_text, load_tokenizer
from .tune import FOLDER, GRAPH, Tuning, read_tuning

HASHED_AT_LOAD = 16 << 20  # larger files are hashed by verify: a start must not wait for gigabytes
SPIN = 20  # microseconds a thread waits busily for work: near full speed on an idle machine, the best on a busy one
LONGEST_SPIN = 10_000
TRIAL_CHUNK = 8
ORT_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}


class Model:
    """A loaded bundle; see `load`."""

    def __init__(self, folder: Path, manifest: Manifest, inference: ort.InferenceSession) -> None:
        self.folder, self.manifest, self.inference = folder, manifest, inference
        self.takes_ids = manifest.model.vocab_size is not None
        self.output_width = manifest.model.vocab_size or manifest.model.width
        self.aliased: frozenset[str] = frozenset()
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
    bundle: str | Path,
    *,
    threads: int | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    tuned: bool = True,
    spin: int | None = None,
    mapped: bool = False,
) -> Model:
    """Load a bundle folder: the weights once, for any number of sessions.

    `threads` None takes what `tune` found on this machine or leaves the choice to onnxruntime (the physical cores);
    `tuned` False ignores a tuning. `spin` bounds how many microseconds a thread waits busily for its next piece of work
    (None: as tuned, else 20): more is faster on an idle machine, slower on a busy one, and costs energy. `mapped` leaves
    float32 weights in the file, from where they are read as needed: a start in a fraction of the time and memory that the
    system can take back, for slower decoding; quantized weights ignore it. Raises BundleError if anything is wrong with
    the bundle, InputError for a bad option.
    """
    if not isinstance(bundle, (str, Path)):
        raise InputError(f"expected a bundle folder, came {bundle!r:.60}; pass its path")
    folder, manifest = Path(bundle), read_manifest(bundle)
    _check_version(manifest)
    for name, entry in manifest.files.items():
        if entry.bytes <= HASHED_AT_LOAD and name != f"{manifest.graph.file}.data":
            check_hash(folder, name, entry)
    # Quantized kernels are 50 times slower on weights as they are stored.
    mapped = mapped and not manifest.quantization.get("tensors")
    tuning = read_tuning(folder, manifest) if tuned else None
    inference, tuning = _start(folder / manifest.graph.file, tuning, (threads, spin, mapped), providers)
    check_graph(inference, manifest)
    model = Model(folder, manifest, inference)
    model.chunk = manifest.graph.chunk if tuning is None else tuning.chunk
    model.aliased = alias_candidates(model) if tuning is not None and tuning.in_place else proven_aliases(model)
    return model


def _start(
    graph: Path, tuning: Tuning | None, given: tuple[int | None, int | None, bool], providers: Sequence[str]
) -> tuple[ort.InferenceSession, Tuning | None]:
    """The graph opened as tuned or, without a tuning that works, as exported; and the tuning that holds.

    `given`: threads, spin, mapped, as the caller of `load` wants them.
    """
    threads, spin, mapped = given
    if tuning is not None:
        options = session_options(threads or tuning.threads, tuning.spin if spin is None else spin, mapped=mapped)
        if not tuning.prepacked:
            return _open_graph(graph, options, providers), tuning
        try:
            return _open_graph(graph.parent / FOLDER / GRAPH, options, providers), tuning
        except BundleError:  # a damaged tuning must not make a healthy bundle unusable
            pass
    return _open_graph(graph, session_options(threads, SPIN if spin is None else spin, mapped=mapped), providers), None


def _open_graph(graph: Path, options: ort.SessionOptions, providers: Sequence[str]) -> ort.InferenceSession:
    unknown = [name for name in providers if name not in ort.get_available_providers()]
    if unknown or not providers:
        raise InputError(
            f"expected providers of {ort.get_available_providers()}, came {unknown or 'none'}; install their onnxruntime"
        )
    try:
        return ort.InferenceSession(str(graph), options, providers=list(providers))
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = " ".join(str(error).split())[:160]
        raise BundleError(
            f"expected a graph that onnxruntime {ort.__version__} loads, came: {reason}; export again"
        ) from error


def proven_aliases(model: Model) -> frozenset[str]:
    """State tensors that may be written in place: all of those that could be, if a trial changes nothing, else none.

    In place saves a copy of the state's traffic through memory a token. An sLSTM reads its last output after the new one
    could be there, so its tensors are never candidates. The trial runs single tokens and a chunk both ways and compares
    every output and state bit by bit; a tuning remembers its result.
    """
    candidates = alias_candidates(model)
    plain = _trial(model)
    model.aliased = candidates
    aliased = _trial(model)
    equal = all(np.array_equal(a, b) for a, b in zip(plain, aliased, strict=True))
    return candidates if equal else frozenset()


def alias_candidates(model: Model) -> frozenset[str]:
    """Every state tensor but those of sLSTM cells."""
    names = {row.name for row in model.manifest.state}
    return frozenset(name for name in names if f"{name.rpartition('.')[0]}.y" not in names)


def _trial(model: Model) -> list[NDArray[np.float32]]:
    """Outputs and final states of a few tokens."""
    session, chunk = model.session(), min(model.chunk, TRIAL_CHUNK)
    if model.takes_ids:
        tokens: Any = np.arange(3 + chunk) * 7 % model.output_width
    else:
        tokens = np.cos(np.arange((3 + chunk) * model.output_width, dtype=np.float32)).reshape(-1, model.output_width)
    outputs = [session.prefill(tokens[i : i + 1]) for i in range(3)]
    outputs.append(session.prefill(tokens[3:]))
    return outputs + list(session.state.values())


def session_options(threads: int | None, spin: int = SPIN, *, mapped: bool = False) -> ort.SessionOptions:
    """Options of every session this project makes."""
    if isinstance(spin, bool) or not isinstance(spin, int) or not 0 <= spin <= LONGEST_SPIN:
        raise InputError(
            f"expected spin from 0 to {LONGEST_SPIN} microseconds, came {spin!r}; leave it out for the default"
        )
    options = ort.SessionOptions()
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
            raise InputError(f"expected threads from 1 to 1024, came {threads!r}; leave it out for the default")
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Memory is planned per shape after the first run anyway; reuse and arena only add work to every node of later ones.
    options.enable_mem_reuse = options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin))
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def check_graph(inference: ort.InferenceSession, manifest: Manifest) -> None:
    """BundleError unless inputs and outputs are those of the manifest, in name, type and shape."""
    dtype, rank = ("int64", 2) if manifest.model.vocab_size is not None else ("float32", 3)
    wanted_in = {manifest.graph.input: (ORT_TYPES[dtype], rank)}
    wanted_out: dict[str, tuple[str, int]] = {
        manifest.graph.output: (ORT_TYPES["float32"], 3 if manifest.graph.all_logits else 2)
    }
    for row in manifest.state:
        wanted_in[row.input_name] = wanted_out[row.output_name] = (ORT_TYPES["float32"], 1 + len(row.shape))
    for kind, wanted, nodes in (
        ("input", wanted_in, inference.get_inputs()),
        ("output", wanted_out, inference.get_outputs()),
    ):
        came = {node.name: (node.type, len(node.shape)) for node in nodes}
        if missing := [name for name in wanted if came.get(name) != wanted[name]]:
            raise BundleError(
                f"expected the graph to have the {kind} {missing[0]}, came a graph without it; export again"
            )
        if extra := [name for name in came if name not in wanted]:
            raise BundleError(f"expected only {kind}s of the state table, came {extra[0]}; export the bundle again")
    width = manifest.model.vocab_size or manifest.model.width
    result = next(node for node in inference.get_outputs() if node.name == manifest.graph.output)
    if result.shape[-1] != width:
        raise BundleError(f"expected {width} outputs as in the manifest, came {result.shape[-1]}; export again")
    shapes = {node.name: tuple(node.shape[1:]) for node in inference.get_inputs()}
    for row in manifest.state:
        if shapes[row.input_name] != row.shape:
            came_shape = shapes[row.input_name]
            raise BundleError(
                f"expected state {row.name} of shape {row.shape}, came {came_shape} in the graph; export again"
            )


def _check_version(manifest: Manifest) -> None:
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())

    if numbers(ort.__version__) < numbers(manifest.onnxruntime):
        raise BundleError(
            f"expected onnxruntime {manifest.onnxruntime} or newer for this bundle, came {ort.__version__}; "
            "upgrade it with pip install -U onnxruntime"
        )
