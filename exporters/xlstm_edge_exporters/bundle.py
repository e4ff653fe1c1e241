"""Write a bundle: the graph, its weights one tensor at a time, vectors, tokenizer, manifest; all of it or nothing.

Everything goes into a temporary folder beside the target, which is renamed at the end. Whatever interrupts the export
(an error, Ctrl-C) leaves neither a half-written bundle nor the temporary folder.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from xlstm_edge_runtime import __version__
from xlstm_edge_runtime.errors import CheckpointError, InputError
from xlstm_edge_runtime.manifest import MANIFEST, Dimensions, FileEntry, GraphInfo, Manifest, file_entry

from .checkpoints import Checkpoint
from .checkpoints.files import sha256
from .data import save_graph
from .quantize.plan import Plan
from .quantize.read import read_weights
from .quantize.rewrite import QuantizeGraph
from .quantize.sources import Load, Quantizer, quantized_sources, round_to_nearest
from .reference import Progress, iterate_names, no_progress
from .spec import MLSTM, SLSTM, ModelSpec, UpMLSTM
from .special import TextSide, text_side
from .trace import GraphOptions, graph_states, input_name, output_name, trace
from .vectors import make_vectors, write_vectors
from .weights import FloatArray, Weight

GRAPH, VECTORS = "model.onnx", "vectors.json"
MINIMUM_ONNXRUNTIME = {"ort": "1.26", "portable": "1.17"}
KINDS = {UpMLSTM: "mlstm", MLSTM: "mlstm", SLSTM: "slstm"}


def write_bundle(
    checkpoint: Checkpoint,
    out: str | Path,
    options: GraphOptions,
    *,
    plan: Plan | None = None,
    quantizer: Quantizer = round_to_nearest,
    recipe: Mapping[str, Any] | None = None,
    text: TextSide | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Export `checkpoint` to the folder `out`; refuses an existing one unless `force` and it is a bundle itself.

    `plan` names the tensors to quantize, `quantizer` does it, `recipe` goes into the manifest to say how, `text` is
    the tokenizer with what belongs to it (None: what the checkpoint has beside it).
    """
    out = Path(out).resolve()
    _refuse_target(out, force)
    _audit(checkpoint)
    text = text or text_side(checkpoint)
    with _temporary(out) as folder:
        progress("trace", 0, 1)
        model = trace(checkpoint.spec, options)
        progress("trace", 1, 1)
        write_graph(model, checkpoint, folder, progress, plan=plan, quantizer=quantizer)
        stored = read_weights(folder / GRAPH)
        groups = {name: scheme.group for name, scheme in (plan or {}).items()}
        write_vectors(folder / VECTORS, make_vectors(checkpoint.spec, stored, groups, progress=progress))
        if text.document is not None and text.info.file is not None:
            (folder / text.info.file).write_bytes(text.document)
        files = {path.name: file_entry(path) for path in sorted(folder.iterdir())}
        manifest = describe(checkpoint, options, text, files, _quantization(plan or {}, recipe or {}))
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        _replace(folder, out)
    return manifest


def write_graph(
    model: ir.Model,
    checkpoint: Checkpoint,
    folder: Path,
    progress: Progress = no_progress,
    *,
    plan: Plan | None = None,
    quantizer: Quantizer = round_to_nearest,
) -> None:
    """Save the traced model with its weights as external data, reading and checking one tensor at a time."""
    weights, plan = checkpoint.weights, plan or {}
    if plan:
        QuantizeGraph(plan)(model)
    checked = {name: Weight(weight.shape, partial(_finite, name, weight)) for name, weight in weights.items()}
    sources: dict[str, Load] = {name: w.load for name, w in checked.items() if name not in plan}
    quantized, aliases = quantized_sources(checked, plan, quantizer, tied=checkpoint.spec.tied)
    save_graph(model, sources | quantized, folder / GRAPH, aliases=aliases, progress=progress)


def describe(
    checkpoint: Checkpoint,
    options: GraphOptions,
    text: TextSide,
    files: dict[str, FileEntry],
    quantization: Mapping[str, Any],
) -> Manifest:
    """The manifest of a finished folder."""
    spec = checkpoint.spec
    return Manifest(
        family=spec.family,
        producer=f"xlstm-edge {__version__}",
        onnxruntime=MINIMUM_ONNXRUNTIME[options.flavour],
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
            flavour=options.flavour,
            opset=options.opset,
            input=input_name(spec),
            output=output_name(spec),
            chunk=options.chunk,
            all_logits=options.all_logits,
        ),
        tokenizer=text.info,
        special_tokens=text.special,
        state=graph_states(spec, options),
        files=files,
        sampling=text.sampling,
        quantization=quantization,
    )


def count_parameters(spec: ModelSpec) -> int:
    """Number of weights, a tied matrix counted once."""
    return sum(prod(shape) for _, shape in iterate_names(spec))


def _quantization(plan: Plan, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """How the tensors were quantized: the recipe, and what it came to for each."""
    tensors = {name: {"bits": scheme.bits, "group": scheme.group} for name, scheme in plan.items()}
    return {"recipe": dict(recipe), "tensors": tensors} if plan else {}


def _audit(checkpoint: Checkpoint) -> None:
    """Every canonical parameter has a weight of its shape, and no weight is left over: a loader's own check."""
    wanted = dict(iterate_names(checkpoint.spec))
    came = {name: weight.shape for name, weight in checkpoint.weights.items()}
    if wanted != came:
        odd = sorted(name for name in wanted.keys() | came.keys() if wanted.get(name) != came.get(name))
        raise CheckpointError(f"expected the loader to fill each parameter, came a mismatch at {odd[:4]}; report this")


def _finite(name: str, weight: Weight) -> FloatArray:
    array = weight.load()
    if not np.isfinite(array).all():
        raise CheckpointError(f"expected finite weights, came NaN or infinity in {name}; train or download it again")
    return array


def _refuse_target(out: Path, force: bool) -> None:
    if not out.exists():
        if not out.parent.is_dir():
            raise InputError(f"expected the folder {out.parent} for the bundle, came none; make it first")
        return
    if not force:
        raise InputError(f"expected a new path for the bundle, came {out}, which exists; pass --force to replace it")
    if not (out / MANIFEST).is_file():
        raise InputError(f"expected --force to replace a bundle, came {out}, which is none; remove it yourself")


@contextlib.contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    folder = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        folder.mkdir()
    except OSError as error:
        raise InputError(f"expected to write beside {out}, came {error.strerror}; choose another path") from error
    try:
        yield folder
    except OSError as error:
        raise InputError(
            f"expected to write the bundle to {out}, came {error.strerror or error}; free space or move"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(folder: Path, out: Path) -> None:
    """Rename into place; an old bundle is moved aside first, so that no moment has half of each."""
    if out.exists():
        old = folder.with_suffix(".old")
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old)
    else:
        folder.rename(out)
