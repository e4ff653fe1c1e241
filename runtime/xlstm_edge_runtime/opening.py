"""Open a bundle's graph in onnxruntime: as tuned or as exported, its file and its inputs and outputs checked."""

from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from .compiled import compiled_graph
from .errors import BundleError, InputError, printable, shown
from .graph_file import check_graph_file
from .layout import GRAPH, TUNING
from .manifest import Manifest
from .placement import check_placement, not_whole, record_placement, refused_by_itself
from .plugins import attach
from .providers import CPU as CPU  # noqa: PLC0414  # whoever calls `open_graph` names it
from .providers import Choice
from .tuning import MOST_SPIN, MOST_THREADS, STORED, Tuning

SPIN = 20  # microseconds a thread waits busily for work: near full speed on an idle machine, the best on a busy one
ORT_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the caller of `load` asked for; None: as tuned or the default.

    `mapped` leaves weights as they are stored. Quantized ones are then made float for each product, which is slow and
    exact: the activations are not rounded.
    """

    threads: int | None = None
    spin: int | None = None
    mapped: bool = False
    provider: Choice = CPU


def is_tuned_for(tuning: Tuning, settings: Settings) -> bool:
    """Whether what a tuning proved was proven on what these settings run."""
    return settings.threads in (None, tuning.threads) and settings.provider.is_cpu and not settings.mapped


def open_session(
    folder: Path, manifest: Manifest, tuning: Tuning | None, settings: Settings
) -> tuple[ort.InferenceSession, Tuning | None]:
    """The graph opened as tuned or, without a tuning that works, as exported; and the tuning that holds."""
    if tuning is not None:
        options = _options(tuning, settings)
        if tuning.weights == STORED:
            return _open_exported(folder, manifest, options, settings.provider), tuning
        try:
            check_graph_file(folder / TUNING / GRAPH, tuning.files, tuning.chunk)
            inference = open_graph(folder / TUNING / GRAPH, options, settings.provider)
            check_graph(inference, manifest)
        except BundleError:  # a damaged tuning must not make a healthy bundle unusable
            pass
        else:
            return inference, tuning
    return _open_exported(folder, manifest, _options(None, settings), settings.provider), None


def open_prompts(
    folder: Path, manifest: Manifest, tuning: Tuning | None, settings: Settings
) -> ort.InferenceSession | None:
    """The graph for prompts, as exported, on the same provider; None for a bundle without one."""
    if manifest.graph.prompt is None:
        return None
    return _open_exported(folder, manifest, _options(tuning, settings), settings.provider, prompt=True)


def _options(tuning: Tuning | None, settings: Settings) -> ort.SessionOptions:
    """What was asked for, else as tuned, else the defaults."""
    threads, spin = (None, SPIN) if tuning is None else (tuning.threads, tuning.spin)
    threads = threads if settings.threads is None else settings.threads
    return session_options(threads, spin if settings.spin is None else settings.spin, mapped=settings.mapped)


def _open_exported(
    folder: Path, manifest: Manifest, options: ort.SessionOptions, choice: Choice, *, prompt: bool = False
) -> ort.InferenceSession:
    graph = compiled_graph(folder, manifest, choice, prompt=prompt)
    if graph is None:
        graph = folder / (manifest.graph.prompt if prompt and manifest.graph.prompt else manifest.graph.file)
        check_graph_file(graph, manifest.files, manifest.graph.chunk)
    inference = open_graph(graph, options, choice)
    check_graph(inference, manifest, prompt=prompt)
    return inference


def open_graph(graph: Path, options: ort.SessionOptions, choice: Choice) -> ort.InferenceSession:
    """An onnxruntime session on the provider that was chosen, with all nodes there unless a fallback was allowed.

    BundleError if the graph does not load, or not whole; DependencyError or InputError where it is the provider that fails.
    """
    if not choice.is_cpu:
        return _open_elsewhere(graph, options, choice)
    # Integers that a graph writes out are for accelerators; here they are computed as written, not fused into other roundings.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        # Without a fallback, which prints to standard output and tries the same again.
        return ort.InferenceSession(str(graph), options, providers=[CPU.provider.ort_name], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise BundleError(
            f"expected a graph that onnxruntime {ort.__version__} loads, got {_reason(error)}; export again"
        ) from error


def _open_elsewhere(graph: Path, options: ort.SessionOptions, choice: Choice) -> ort.InferenceSession:
    record_placement(options, choice)
    providers = attach(choice, options)
    try:
        inference = ort.InferenceSession(str(graph), options, providers=providers, enable_fallback=0)
    except Exception as error:  # the same; of all providers, each has others
        if refused_by_itself(error):
            raise BundleError(not_whole(choice)) from error
        raise InputError(
            f"expected to open the graph on {choice}, got {_last_words(error)}; {_hint(choice)}"
        ) from error
    check_placement(inference, choice)
    return inference


def _hint(choice: Choice) -> str:
    """What to do where a provider does not start."""
    if choice.provider.name == "qnn" and choice.chip is None:
        return "name the chip, which a simulator needs: --provider-option soc=8gen2"
    return "check the options and the device"


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:160]


def _last_words(error: Exception) -> str:
    """Providers begin with places in their source and end with what is wrong."""
    return f"...{printable(' '.join(str(error).split()))[-160:]}"


def session_options(threads: int | None, spin: int = SPIN, *, mapped: bool = False) -> ort.SessionOptions:
    """Options of every session this project makes."""
    if isinstance(spin, bool) or not isinstance(spin, int) or not 0 <= spin <= MOST_SPIN:
        raise InputError(
            f"expected spin from 0 to {MOST_SPIN} microseconds, got {shown(spin)}; leave it out for the default"
        )
    check_threads(threads)
    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, and told in one sentence
    # Memory is planned per shape after the first run anyway; reuse and arena only add work to every node of later ones.
    options.enable_mem_reuse = options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin))
    # Weights of a large model are rearranged for the kernels on all threads; versions that do not know it ignore it.
    options.add_session_config_entry("session.prepack.enable_parallel", "1")
    if mapped:  # quantized products then multiply the stored weights in float
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def check_threads(threads: int | None) -> None:
    """InputError for a number of threads that no session takes; None leaves it to onnxruntime."""
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise InputError(
            f"expected threads from 1 to {MOST_THREADS}, got {shown(threads)}; leave it out for the default"
        )


def check_graph(inference: ort.InferenceSession, manifest: Manifest, *, prompt: bool = False) -> None:
    """BundleError unless inputs and outputs are those of the manifest, in name, type, shape; `prompt` as for `open_prompts`."""
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
        got = {node.name: (node.type, len(node.shape)) for node in nodes}
        if missing := [name for name in wanted if got.get(name) != wanted[name]]:
            raise BundleError(
                f"expected the graph to have the {kind} {missing[0]}, got a graph without it; export again"
            )
        if extra := [name for name in got if name not in wanted]:
            raise BundleError(f"expected only {kind}s of the state table, got {extra[0]}; export the bundle again")
    _check_sizes(inference, manifest, prompt)


def _check_sizes(inference: ort.InferenceSession, manifest: Manifest, prompt: bool) -> None:
    width = manifest.model.vocab_size or manifest.model.width
    result = next(node for node in inference.get_outputs() if node.name == manifest.graph.output)
    if result.shape[-1] != width:
        raise BundleError(f"expected {width} outputs as in the manifest, got {result.shape[-1]}; export again")
    tokens = next(node for node in inference.get_inputs() if node.name == manifest.graph.input).shape[1]
    chunk = 1 if manifest.graph.prompt is not None and not prompt else manifest.graph.chunk
    if (isinstance(tokens, int) or prompt) and tokens != chunk:
        raise BundleError(f"expected a chunk of {shown(tokens)} as in the graph, got {chunk}; export again")
    shapes = {node.name: tuple(node.shape[1:]) for node in inference.get_inputs()}
    for row in manifest.state:
        if shapes[row.input_name] != row.graph_shape:
            got_shape = shapes[row.input_name]
            raise BundleError(
                f"expected state {row.name} of shape {row.graph_shape}, got {got_shape} in the graph; export again"
            )
