"""Hold a bundle against the checkpoint it came from: all it took from there, and the float64 reference on its weights."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from xlstm_edge_runtime.errors import VerificationError, shown
from xlstm_edge_runtime.layout import COMPANIONS
from xlstm_edge_runtime.loading import load
from xlstm_edge_runtime.manifest import Manifest
from xlstm_edge_runtime.manifest_sections import A_SCALE_AN_OUTPUT
from xlstm_edge_runtime.opening import Settings
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.vectors import Vectors
from xlstm_edge_runtime.verify import Check, compare_outputs, verify_stored

from .bundle import describe, rounding_of, target_weights
from .checkpoints import Checkpoint
from .graph_diff import check_structure
from .interface import GraphOptions
from .prompt_graph import check_shared, traced_prompts
from .quantize.activations import PARTS, QuantizeActivations, output_axis, read_encodings
from .quantize.check import WeightCheck
from .quantize.encodings import rounded_weight
from .quantize.read import read_schemes, read_weights
from .quantize.rewrite import DATA, SCALES, TABLE, QuantizeGraph
from .quantize.scheme import Scheme
from .text_assets import no_note, read_text_assets
from .trace import trace
from .vectors import make_vectors
from .weights import FloatArray, Weights

FARTHEST_ROUNDED = 0.1  # of the range of an output, by the encodings of activations
SEED = 7  # other inputs than those of the bundle's own vectors
TEXT = ("tokenizer", "special_tokens")
OF_THE_CHECKPOINT = "family model graph tokenizer special_tokens sampling state minimum_runtime".split()


def verify_against(
    folder: str | Path,
    checkpoint: Checkpoint,
    *,
    tokenizer: str | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Iterator[Check]:
    """Yield each passed check; VerificationError in one sentence for the first that fails.

    `tokenizer` is what the export was told; None: the checkpoint's own.
    """
    folder, model = Path(folder), load(folder, threads=threads)
    manifest = model.manifest
    options = _options(manifest)
    yield Check("source", _same_source(manifest, checkpoint, tokenizer))
    graph = folder / manifest.graph.file
    schemes = read_schemes(graph)
    encodings = read_encodings(ir.load(graph))
    if schemes != _schemes(manifest) or sorted(encodings) != _integer_names(manifest):
        raise VerificationError(
            "expected the graph to quantize as the manifest says, got other bits or block sizes; export the bundle again"
        )
    yield Check("structure", _same_graph(manifest, checkpoint, graph, schemes))
    if manifest.graph.prompt is not None:
        yield Check("structure, prompts", _same_prompts(manifest, checkpoint, graph, folder / manifest.graph.prompt))
    if options.lowering.forms(manifest):
        yield Check(f"structure, {options.target}", _same_companions(manifest, checkpoint, folder, schemes))
    stored, wanted = read_weights(graph), target_weights(checkpoint, options)
    yield Check("tensors", _same_weights(wanted, stored, schemes, manifest.quantization.calibrated, encodings))
    stored = options.lowering.canonical_weights(checkpoint.spec, stored)
    marks, rounded = rounding_of(schemes, encodings)
    vectors = make_vectors(
        checkpoint.spec, stored, marks, rounded=rounded, chunk=manifest.graph.chunk, seed=SEED, progress=progress
    )
    if encodings:
        _check_rounding(vectors)
    for check in compare_outputs(model, vectors):
        yield Check(f"reference, {check.name}", check.detail)
    del model  # one set of weights in memory at a time
    for check in verify_stored(folder, manifest, Settings(threads=threads), vectors):
        yield Check(f"reference, {check.name}", check.detail)


def _check_rounding(vectors: Vectors) -> None:
    """VerificationError where the encodings of activations make another model of it."""
    if (worst := max(expected.rounding_error or 0.0 for expected in vectors.expected)) > FARTHEST_ROUNDED:
        raise VerificationError(
            f"expected activations rounded to within {FARTHEST_ROUNDED:.0%} of the outputs' range, got {worst:.1%}; export the "
            "bundle again, with a --calibrate text like the model's own"
        )


def _same_source(manifest: Manifest, checkpoint: Checkpoint, tokenizer: str | None) -> str:
    """Everything that an export takes from the checkpoint, text included, is what the manifest says."""
    text = read_text_assets(checkpoint, tokenizer)
    made = describe(checkpoint, _options(manifest), text, dict(manifest.files), manifest.quantization)
    if made.source != manifest.source:
        raise VerificationError(
            f"expected the checkpoint that the bundle was exported from, got {checkpoint.folder} with another hash; "
            "export it again"
        )
    wanted, got = json.loads(made.to_json()), json.loads(manifest.to_json())
    for section in OF_THE_CHECKPOINT:
        if wanted[section] != got[section]:
            hint = "pass --tokenizer as at the export" if section in TEXT else "export the bundle again"
            raise VerificationError(f"expected {_difference(section, wanted[section], got[section])}; {hint}")
    if text.document is not None:
        wanted_hash, entry = hashlib.sha256(text.document).hexdigest(), manifest.files[text.info.file or ""]
        if (len(text.document), wanted_hash) != (entry.bytes, entry.sha256):
            raise VerificationError(
                f"expected {text.info.file} as it is beside the checkpoint, got another; export the bundle again"
            )
    return f"checkpoint hash {manifest.source[:12]}... is the bundle's, as are family, dimensions, text and state table"


def _options(manifest: Manifest) -> GraphOptions:
    graph = manifest.graph
    return GraphOptions(target=graph.target, chunk=graph.chunk, all_logits=graph.all_logits)


def _schemes(manifest: Manifest) -> dict[str, Scheme]:
    """Of the tensors in blocks."""
    tensors = manifest.quantization.tensors
    return {name: Scheme(t.bits, t.block_size) for name, t in tensors.items() if t.block_size != A_SCALE_AN_OUTPUT}


def _integer_names(manifest: Manifest) -> list[str]:
    """The tensors with a scale an output."""
    return sorted(n for n, t in manifest.quantization.tensors.items() if t.block_size == A_SCALE_AN_OUTPUT)


def _same_graph(manifest: Manifest, checkpoint: Checkpoint, graph: Path, schemes: Mapping[str, Scheme]) -> str:
    """The operators are those that tracing the checkpoint gives; which weights they read is part of that."""
    model = trace(checkpoint.spec, _options(manifest).step)
    if schemes:
        QuantizeGraph(dict(schemes))(model)
    QuantizeActivations(_integer_names(manifest))(model)
    weights = _stored_names(manifest, checkpoint, schemes)
    return f"{check_structure(model, ir.load(graph), weights):,} operators as the checkpoint traces"


def _same_companions(manifest: Manifest, checkpoint: Checkpoint, folder: Path, schemes: Mapping[str, Scheme]) -> str:
    """What the target's own runtime opens is what the bundle's graph makes, over the same weights."""
    target, weights = _options(manifest).lowering, _stored_names(manifest, checkpoint, schemes)
    files, forms = target.companions(folder, manifest, no_note), target.forms(manifest)
    if odd := sorted((files.keys() - manifest.files.keys()) | ((COMPANIONS & manifest.files.keys()) - files.keys())):
        raise VerificationError(
            f"expected {odd[0]} where an export writes it, got other files; export the bundle again"
        )
    if forms != manifest.compiled:
        raise VerificationError(
            "expected the forms that an export makes, got others in the manifest; export the bundle again"
        )
    for name, data in files.items():
        if name in {entry.file for entry in forms.values()}:
            wanted, got = ir.from_proto(onnx.ModelProto.FromString(data)), ir.load(folder / name)
            check_structure(wanted, got, weights)
            check_shared(ir.load(folder / manifest.graph.file), got, weights)
        elif (folder / name).read_bytes() != data:
            raise VerificationError(f"expected {name} as an export writes it, got another; export the bundle again")
    return f"{len(files)} files as the bundle's graph makes them, over the same weights"


def _same_prompts(manifest: Manifest, checkpoint: Checkpoint, graph: Path, prompt: Path) -> str:
    """The same of the graph for prompts, which reads the weights of the other."""
    wanted, got = traced_prompts(checkpoint.spec, _options(manifest), _integer_names(manifest)), ir.load(prompt)
    weights = _weight_names(manifest, checkpoint)
    count = check_structure(wanted, got, weights)
    check_shared(ir.load(graph), got, weights)
    return f"{count:,} operators as the checkpoint traces, over the same weights"


def _stored_names(manifest: Manifest, checkpoint: Checkpoint, schemes: Mapping[str, Scheme]) -> set[str]:
    """The same, and those of weights in blocks."""
    blocks = {name + part for name in schemes for part in (DATA, SCALES, TABLE)}
    return _weight_names(manifest, checkpoint) | blocks


def _weight_names(manifest: Manifest, checkpoint: Checkpoint) -> set[str]:
    """Initializers that hold weights, or integers of them with a scale an output."""
    integers = (name + part for name in _integer_names(manifest) for part in PARTS)
    return {*target_weights(checkpoint, _options(manifest)), *integers}


def _difference(section: str, wanted: Any, got: Any) -> str:
    """The first member that differs, in words."""
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        key = next(key for key in sorted({*wanted, *got}) if wanted.get(key) != got.get(key))
        return f"{section} {key} {_text(wanted.get(key))} as in the checkpoint, got {_text(got.get(key))}"
    return f"{section} {_text(wanted)} as in the checkpoint, got {_text(got)}"


def _text(value: Any) -> str:
    """For a message; both sides were read in closed terms, so lists may be shown."""
    return shown(json.dumps(value)) if isinstance(value, (list, Mapping)) else shown(value)


def _same_weights(
    wanted: Weights, stored: Weights, schemes: Mapping[str, Scheme], calibrated: bool, integers: Collection[str] = ()
) -> str:
    """float32 tensors are equal to the checkpoint's, quantized ones as near as their scheme can be, block by block."""
    judge = WeightCheck(calibrated=calibrated)
    for name, weight in wanted.items():
        original = _as_rounded(name, weight.load()) if name in integers else weight.load()
        got = stored[name].load() if name in stored else None
        if got is None or got.shape != original.shape or (name not in schemes and not np.array_equal(got, original)):
            raise VerificationError(
                f"expected {name} as in the checkpoint, got another tensor; export the bundle again"
            )
        if name in schemes:
            judge.take(name, original, got, schemes[name])
    text = f"{len(wanted) - len(schemes) - len(integers)} float32 tensors equal"
    text += f", {len(integers)} of 8 bits as they are rounded" if integers else ""
    return text if not schemes else f"{text}, {len(schemes)} quantized: {judge}"


def _as_rounded(name: str, array: FloatArray) -> FloatArray:
    """What a weight of 8 bits with a scale an output is: there is one right rounding."""
    axis = output_axis(name)
    integers, scales = rounded_weight(array, axis)
    return integers.astype(np.float32) * np.expand_dims(scales, 1 - axis)
