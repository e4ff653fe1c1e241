"""Write a bundle: the graph, its weights one tensor at a time, vectors, tokenizer, manifest; all of it or nothing.

Everything goes into a temporary folder beside the target, which takes its place at the end. Whatever interrupts the export
(an error, Ctrl-C) leaves neither a half-written bundle nor the temporary folder; what a killed process leaves is removed
by the next export.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from xlstm_edge_runtime import __version__
from xlstm_edge_runtime.errors import CheckpointError
from xlstm_edge_runtime.layout import GRAPH, MANIFEST, PROMPT_GRAPH, VECTORS
from xlstm_edge_runtime.manifest import Dimensions, FileEntry, GraphInfo, Manifest, file_entry
from xlstm_edge_runtime.manifest_sections import A_SCALE_AN_OUTPUT, CompiledGraph, Quantization, TensorQuantization
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import StateSpec, StateTable

from .checkpoints import Checkpoint
from .checkpoints.files import sha256
from .external_data import save_graph
from .interface import GraphOptions, graph_states, input_name, output_name
from .output_folder import placed, refuse_target
from .prompt_graph import write_prompt_graph
from .quantize.activations import QuantizeActivations, integer_sources
from .quantize.encodings import Encoded, ProductEncoding
from .quantize.plan import Plan
from .quantize.read import read_weights
from .quantize.rewrite import QuantizeGraph
from .quantize.sources import Load, Quantizer, quantized_sources, round_to_nearest
from .reference import Variant, iterate_names, run_variants
from .relative_gates import OFFSET
from .spec import MLSTM, SLSTM, ModelSpec, UpMLSTM
from .text_assets import Note, TextAssets, no_note, read_text_assets
from .trace import trace
from .vectors import make_vectors, vectors_json
from .weights import FloatArray, Weight, Weights

KINDS = {UpMLSTM: "mlstm", MLSTM: "mlstm", SLSTM: "slstm"}


def write_bundle(
    checkpoint: Checkpoint,
    out: str | Path,
    options: GraphOptions,
    *,
    plan: Plan | None = None,
    quantizer: Quantizer = round_to_nearest,
    encodings: Mapping[str, ProductEncoding] | None = None,
    recipe: Mapping[str, Any] | None = None,
    text: TextAssets | None = None,
    papers: Mapping[str, bytes] | None = None,
    chips: Sequence[str] = (),
    ahead_of_time: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
    note: Note = no_note,
) -> Manifest:
    """Export `checkpoint` to the folder `out`; refuses an existing one unless `force` and it is a bundle itself.

    `plan` names the tensors to quantize, `quantizer` does it, `recipe` goes into the manifest to say how, `text` is
    the tokenizer with what belongs to it (None: what the checkpoint has beside it), `papers` files to add as they
    are, `chips` what the target is compiled for; `ahead_of_time` adds the form of the target's own runtime.
    """
    refuse_target(Path(out), force)
    out = Path(out).resolve()
    _audit(checkpoint)
    text = text or read_text_assets(checkpoint)
    with placed(out, force) as folder:
        progress("tracing", 0, 0)
        model = trace(checkpoint.spec, options.step)
        write_graph(
            model, checkpoint, folder, progress, options=options, plan=plan, quantizer=quantizer, encodings=encodings
        )
        prompt = (
            write_prompt_graph(checkpoint.spec, options, folder / GRAPH, encodings or ())
            if options.has_prompts
            else None
        )
        table = states_of(checkpoint, options)
        for line in _checked(folder / GRAPH, prompt, checkpoint, options, table, bool(encodings), progress):
            note(line)
        stored = options.lowering.canonical_weights(checkpoint.spec, read_weights(folder / GRAPH))
        marks, rounded = rounding_of(plan or {}, encodings or {})
        vectors = make_vectors(checkpoint.spec, stored, marks, rounded=rounded, chunk=options.chunk, progress=progress)
        (folder / VECTORS).write_text(vectors_json(vectors), encoding="utf-8")
        if text.document is not None and text.info.file is not None:
            (folder / text.info.file).write_bytes(text.document)
        for name, data in (papers or {}).items():
            (folder / name).write_bytes(data)
        compiled: Mapping[str, CompiledGraph] = {}
        if chips or ahead_of_time:
            family, quantize = checkpoint.spec.family, (recipe or {}).get("quantize")
            compiled = options.lowering.compile(folder / GRAPH, table, family, quantize, chips, progress, prompt=prompt)
            _note_prompts(options, note)
        quantization = _quantization(plan or {}, encodings or {}, recipe or {})
        compiled = {**compiled, **_companions(folder, checkpoint, options, text, quantization, note)}
        progress("hashing", 0, 0)
        files = {path.name: file_entry(path) for path in sorted(folder.iterdir())}
        manifest = describe(checkpoint, options, text, files, quantization, compiled)
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _note_prompts(options: GraphOptions, note: Note) -> None:
    """Where prompts are, if the form that was compiled has no room for them."""
    if options.has_prompts and not options.lowering.compiles_prompts:
        note(f"the form of {options.target}'s own runtime takes single tokens; {PROMPT_GRAPH} is for onnxruntime")


def write_graph(
    model: ir.Model,
    checkpoint: Checkpoint,
    folder: Path,
    progress: Progress = no_progress,
    *,
    options: GraphOptions | None = None,
    plan: Plan | None = None,
    quantizer: Quantizer = round_to_nearest,
    encodings: Mapping[str, ProductEncoding] | None = None,
) -> Path:
    """Save the traced model with the target's weights as external data, one tensor at a time, each checked; its file."""
    weights, plan = target_weights(checkpoint, options or GraphOptions()), plan or {}
    if plan:
        QuantizeGraph(plan)(model)
    checked = {name: Weight(weight.shape, partial(_finite, name, weight)) for name, weight in weights.items()}
    encodings = encodings or {}
    if encodings:
        QuantizeActivations(list(encodings))(model)
    sources: dict[str, Load] = {n: w.load for n, w in checked.items() if n not in plan and n not in encodings}
    sources |= integer_sources(checked, encodings)
    quantized, aliases = quantized_sources(checked, plan, quantizer, tied=checkpoint.spec.tied)
    save_graph(model, sources | quantized, folder / GRAPH, aliases=aliases, progress=progress)
    return folder / GRAPH


def describe(
    checkpoint: Checkpoint,
    options: GraphOptions,
    text: TextAssets,
    files: dict[str, FileEntry],
    quantization: Quantization,
    compiled: Mapping[str, CompiledGraph] | None = None,
) -> Manifest:
    """The manifest of a finished folder."""
    spec = checkpoint.spec
    return Manifest(
        family=spec.family,
        producer=f"xlstm-edge {__version__}",
        onnxruntime=options.lowering.onnxruntime,
        source=sha256(checkpoint.files),
        model=Dimensions(
            width=spec.width,
            vocab_size=spec.vocab_size,
            blocks=tuple(KINDS[type(block.mixer)] for block in spec.blocks),
            parameters=count_parameters(spec),
            tied=spec.tied,
            context_length=spec.context_length,
        ),
        graph=GraphInfo(
            file=GRAPH,
            target=options.target,
            opset=options.lowering.opset,
            input=input_name(spec),
            output=output_name(spec),
            chunk=options.chunk,
            all_logits=options.all_logits,
            prompt=PROMPT_GRAPH if options.has_prompts else None,
        ),
        tokenizer=text.info,
        special_tokens=text.special,
        state=states_of(checkpoint, options),
        files=files,
        sampling=text.sampling,
        quantization=quantization,
        compiled=compiled or {},
    )


def _companions(
    folder: Path,
    checkpoint: Checkpoint,
    options: GraphOptions,
    text: TextAssets,
    quantization: Quantization,
    note: Note,
) -> Mapping[str, CompiledGraph]:
    """Write what the target's own runtime wants beside the graph, and hold it to that; its entries for the manifest."""
    target, draft = options.lowering, describe(checkpoint, options, text, {}, quantization)
    for name, data in target.companions(folder, draft, note).items():
        (folder / name).write_bytes(data)
    target.check_companions(folder, draft)
    return target.forms(draft)


def _checked(
    graph: Path,
    prompt: Path | None,
    checkpoint: Checkpoint,
    options: GraphOptions,
    table: StateTable,
    integers: bool,
    progress: Progress,
) -> list[str]:
    """What the target has to say of the graph, beside the checkpoint in float32; of integers, beside the weights they are."""
    weights = checkpoint.weights
    if integers:
        weights = options.lowering.canonical_weights(checkpoint.spec, read_weights(graph))

    def reference(inputs: NDArray[np.generic]) -> NDArray[np.float64]:
        variants = {"float32": Variant(torch.float32)}
        return run_variants(checkpoint.spec, weights, inputs, variants)["float32"]

    parameters = count_parameters(checkpoint.spec)
    return options.lowering.check(graph, table, parameters, reference, integers, progress, prompt=prompt)


def target_weights(checkpoint: Checkpoint, options: GraphOptions) -> Weights:
    """The weights that the target's graph reads."""
    return options.lowering.weights(checkpoint.spec, checkpoint.weights)


def states_of(checkpoint: Checkpoint, options: GraphOptions) -> StateTable:
    """The state table of the target's graph, with what it holds stabilizers short of."""
    weights = target_weights(checkpoint, options)
    return StateTable([_with_offset(row, weights) for row in graph_states(checkpoint.spec, options)])


def _with_offset(row: StateSpec, weights: Weights) -> StateSpec:
    """The constants of relative gates, where the row is a stabilizer of such."""
    block, _, tensor = row.name.rpartition(".")
    offset = weights.get(f"{block}.mixer.{OFFSET}") if tensor == "m" else None
    return row if offset is None else replace(row, offset=tuple(float(x) for x in offset.load().reshape(-1)))


def count_parameters(spec: ModelSpec) -> int:
    """Number of weights as the checkpoint has them: a tied matrix once, a norm's that went into a matrix as well."""
    folded = sum(b.mixer.v_width for b in spec.blocks if isinstance(b.mixer, MLSTM) and not b.mixer.head_norm.weight)
    return folded + sum(prod(shape) for _, shape in iterate_names(spec))


def _quantization(plan: Plan, encodings: Collection[str], recipe: Mapping[str, Any]) -> Quantization:
    """How the tensors were quantized: the recipe, and what it came to for each."""
    tensors = {name: TensorQuantization(scheme.bits, scheme.block_size) for name, scheme in plan.items()}
    tensors |= {name: TensorQuantization(8, A_SCALE_AN_OUTPUT) for name in encodings}
    return Quantization(dict(recipe), tensors) if tensors else Quantization()


def rounding_of(
    plan: Plan, encodings: Mapping[str, ProductEncoding]
) -> tuple[Mapping[str, Any], Mapping[str, Variant] | None]:
    """(what is known of quantized weights, the variants that round like it) for `make_vectors`."""
    if encodings:
        return encodings, {"encoded": Variant(torch.float32, Encoded)}
    return {name: scheme.block_size for name, scheme in plan.items()}, None


def _audit(checkpoint: Checkpoint) -> None:
    """Every canonical parameter has a weight of its shape, and no weight is left over: a loader's own check."""
    wanted = dict(iterate_names(checkpoint.spec))
    got = {name: weight.shape for name, weight in checkpoint.weights.items()}
    if wanted != got:
        odd = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
        raise CheckpointError(f"expected the loader to fill each parameter, got a mismatch at {odd[:4]}; report this")


def _finite(name: str, weight: Weight) -> FloatArray:
    array = weight.load()
    if not np.isfinite(array).all():
        raise CheckpointError(f"expected finite weights, got NaN or infinity in {name}; train or download it again")
    return array
