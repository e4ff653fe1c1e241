"""Checkpoint and recipe in, bundle out: choose the plan, calibrate if asked, write."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.manifest import Manifest
from xlstm_edge_runtime.progress import Progress, no_progress

from .bundle import write_bundle
from .checkpoints import Checkpoint
from .quantize.budget import spend_budget
from .quantize.calibrate import calibration_batch, quantize_with_gptq
from .quantize.plan import Plan, bits_by_hand, make_plan
from .quantize.scheme import Packed, Scheme
from .quantize.sources import Quantizer, round_searched
from .recipe import Recipe, read_calibration
from .text_assets import Note, TextAssets, no_note, read_text_assets
from .trace import GraphOptions
from .weights import FloatArray

LONGEST_ID = 20  # digits


def export_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    recipe: Recipe,
    *,
    force: bool = False,
    progress: Progress = no_progress,
    note: Note = no_note,
) -> Manifest:
    """Write the bundle that `recipe` describes; raises an XlstmEdgeError and writes nothing if anything is wrong.

    `note` is told in a line what a user should know of a bundle that was written all the same.
    """
    notes: list[str] = []
    progress("reading text", 0, 0)
    text = read_text_assets(checkpoint, recipe.tokenizer, notes.append)
    flavour = "ort" if recipe.flavour == "ort" else "portable"
    chunk = recipe.chunk if flavour == "ort" else 1
    options = GraphOptions(flavour=flavour, chunk=chunk, all_logits=recipe.all_logits)  # type: ignore[arg-type]  # one of two
    plan: Plan | None = None
    quantizer: Quantizer = round_searched
    if recipe.quantize is not None:
        plan, quantizer = _quantized(checkpoint, recipe, text, progress)
    manifest = write_bundle(
        checkpoint,
        out,
        options,
        plan=plan,
        quantizer=quantizer,
        recipe=recipe.as_dict(),
        text=text,
        force=force,
        progress=progress,
    )
    for line in notes:
        note(line)
    return manifest


def _quantized(checkpoint: Checkpoint, recipe: Recipe, text: TextAssets, progress: Progress) -> tuple[Plan, Quantizer]:
    """How many bits each tensor gets, and what rounds it."""
    plan = make_plan(checkpoint.spec, checkpoint.weights, recipe)
    if recipe.calibrate is None:
        return plan, round_searched
    ids = calibration_batch(read_ids(checkpoint, Path(recipe.calibrate), text))
    if recipe.quantize == "mixed":
        fixed = {name for name in plan if bits_by_hand(name, recipe, tied=checkpoint.spec.tied)}
        plan = spend_budget(
            checkpoint, plan, ids, mb=recipe.target_mb, bpw=recipe.target_bpw, fixed=fixed, progress=progress
        )
    if recipe.chosen_method != "gptq":
        return plan, round_searched
    packed = quantize_with_gptq(checkpoint.spec, checkpoint.weights, plan, ids, progress=progress)

    def take(name: str, _matrix: FloatArray, _scheme: Scheme) -> Packed:
        return packed[name]

    return plan, take


def read_ids(checkpoint: Checkpoint, path: Path, side: TextAssets | None = None) -> NDArray[np.int64]:
    """Token ids of a text file, as the exported model would be given them; ids between spaces without a tokenizer."""
    if checkpoint.spec.vocab_size is None:
        raise InputError(
            "expected a model that takes tokens for calibration, got a stack of float vectors; use method rtn"
        )
    text = read_calibration(path)
    side = side or read_text_assets(checkpoint)
    vocab = checkpoint.spec.vocab_size
    if side.info.kind != "none":
        return np.array(side.encode(text, vocab), np.int64)
    words = text.split()
    if not all(word.isascii() and word.isdecimal() and len(word) < LONGEST_ID and int(word) < vocab for word in words):
        raise InputError(f"expected token ids in {path} (the checkpoint has no tokenizer), got text; write ids, spaced")
    return np.array([int(word) for word in words], np.int64)
