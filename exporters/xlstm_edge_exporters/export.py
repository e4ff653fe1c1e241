"""Checkpoint and recipe in, bundle out: choose the plan, calibrate, write."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from xlstm_edge_runtime import __version__
from xlstm_edge_runtime.errors import InputError, shown_path
from xlstm_edge_runtime.manifest import Manifest
from xlstm_edge_runtime.progress import Progress, no_progress

from .bundle import write_bundle
from .calibration import calibration_inputs, calibration_tokens
from .checkpoints import Checkpoint
from .interface import GraphOptions
from .output_folder import refuse_target, work_folder
from .quantize.budget import spend_budget
from .quantize.calibrate import quantize_with_gptq
from .quantize.encodings import ProductEncoding, measure_encodings
from .quantize.plan import Plan, bits_by_hand, integer_products, make_plan, planned_bytes
from .quantize.sources import Quantizer, round_searched
from .quantize.store import Store, finished, stored
from .recipe import A16W8, Recipe
from .targets import TARGETS
from .text_assets import Note, TextAssets, no_note, read_text_assets


def export_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    recipe: Recipe,
    *,
    force: bool = False,
    resume: bool = False,
    papers: Mapping[str, bytes] | None = None,
    progress: Progress = no_progress,
    note: Note = no_note,
) -> Manifest:
    """Write the bundle that `recipe` describes; raises an XlstmEdgeError and writes nothing if anything is wrong.

    With `resume` finished tensors stay beside `out` when the export is interrupted, and the next call goes on from them.
    `papers` are files that go into the bundle as they are: a licence, a model card.
    `note` is told in a line what a user should know of a bundle that was written all the same.
    """
    refuse_target(Path(out), force)
    notes: list[str] = []
    progress("reading text", 0, 0)
    text = read_text_assets(checkpoint, recipe.tokenizer, notes.append)
    if checkpoint.spec.vocab_size is None:
        recipe = recipe.for_vectors()
    TARGETS[recipe.target].admit(checkpoint.spec)
    options = GraphOptions(target=recipe.target, chunk=recipe.chunk_for(checkpoint.spec), all_logits=recipe.all_logits)
    blocks = recipe.quantize not in (None, A16W8) and not options.lowering.compiles_integers
    plan: Plan | None = make_plan(checkpoint.spec, checkpoint.weights, recipe) if blocks else None
    _check_room(checkpoint, Path(out), plan or {}, twice=resume or recipe.calibration is not None)
    with work_folder(Path(out), _key(checkpoint, recipe, text) if resume else None) as work:
        quantizer: Quantizer = round_searched
        encodings = _encodings(checkpoint, recipe, text, work, progress) if recipe.quantize == A16W8 else {}
        if plan is not None:
            plan, quantizer = _quantized(checkpoint, recipe, plan, text, work, resume, progress)
        manifest = write_bundle(
            checkpoint,
            out,
            options,
            plan=plan,
            quantizer=quantizer,
            encodings=encodings,
            recipe=_done(checkpoint, recipe),
            text=text,
            papers=papers,
            chips=recipe.chips,
            ahead_of_time=recipe.ahead_of_time,
            force=force,
            progress=progress,
            note=notes.append,
        )
    for line in notes:
        note(line)
    return manifest


def _quantized(
    checkpoint: Checkpoint, recipe: Recipe, plan: Plan, text: TextAssets, work: Path, resume: bool, progress: Progress
) -> tuple[Plan, Quantizer]:
    """How many bits each tensor gets at last, and what rounds it; finished tensors are kept in the folder `work`."""
    store = Store(work)
    rounded = stored(round_searched, store) if resume else round_searched
    if recipe.calibration is None:
        return plan, rounded
    inputs = calibration_inputs(checkpoint, recipe, text, work, store, progress)
    if recipe.quantize == "mixed":
        fixed = {name for name in plan if bits_by_hand(name, recipe, tied=checkpoint.spec.tied)}
        plan = spend_budget(
            checkpoint, plan, inputs, mb=recipe.target_mb, bpw=recipe.target_bpw, fixed=fixed, progress=progress
        )
    if recipe.chosen_method != "gptq":
        return plan, rounded
    quantize_with_gptq(checkpoint.spec, checkpoint.weights, plan, inputs, store, resume=resume, progress=progress)
    return plan, finished(store)


def _encodings(
    checkpoint: Checkpoint, recipe: Recipe, text: TextAssets, work: Path, progress: Progress
) -> dict[str, ProductEncoding]:
    """Ranges of the activations around every product of integers, measured on the calibration."""
    inputs = calibration_inputs(checkpoint, recipe, text, work, Store(work), progress)
    names = integer_products(checkpoint.spec, checkpoint.weights)
    return measure_encodings(checkpoint.spec, checkpoint.weights, names, inputs, progress)


def _check_room(checkpoint: Checkpoint, out: Path, plan: Plan, *, twice: bool) -> None:
    """InputError before anything long runs, where the weights have no room on the disk (twice: finished tensors stay)."""
    shapes = {name: weight.shape for name, weight in checkpoint.weights.items()}
    needed = planned_bytes(shapes, plan) + (sum(planned_bytes({n: shapes[n]}, plan) for n in plan) if twice else 0)
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise InputError(
            f"expected {needed / 1e9:.2f} GB of free space beside {shown_path(out)}, got {free / 1e9:.2f}; free some, or "
            "choose a bundle on another disk"
        )


def _done(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, object]:
    """The recipe for the manifest, with what was chosen for the model."""
    tokens = {} if recipe.calibration is None else {"calibration_tokens": calibration_tokens(checkpoint.spec, recipe)}
    return recipe.as_dict() | tokens


def _key(checkpoint: Checkpoint, recipe: Recipe, text: TextAssets) -> str:
    """What decides the bytes of finished tensors: they are of no use to an export with another key.

    Besides the files that is what computes: sums depend on versions and on the number of threads.
    """
    files = [recipe.calibration] if recipe.calibration and Path(recipe.calibration).is_file() else []
    stats = [(str(path), *_identity(path)) for path in (*checkpoint.files, *map(Path, files))]
    tokens = asdict(text.special), hashlib.sha256(text.document or b"").hexdigest()
    machine = [version(name) for name in ("numpy", "torch", "onnxruntime")], torch.get_num_threads(), os.cpu_count()
    return hashlib.sha256(json.dumps([__version__, recipe.as_dict(), stats, tokens, machine]).encode()).hexdigest()


def _identity(path: Path) -> tuple[int, int]:
    """Size and time of the last change: enough to see that a file is not the one of before."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns
