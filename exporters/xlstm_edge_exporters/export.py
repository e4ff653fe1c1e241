"""Checkpoint and recipe in, bundle out: choose the plan, calibrate if asked, write."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.manifest import Manifest
from xlstm_edge_runtime.tokenizer import load_tokenizer

from .bundle import write_bundle
from .checkpoints import Checkpoint
from .quantize.budget import spend_budget
from .quantize.calibrate import calibration_batch, quantize_with_gptq
from .quantize.plan import make_plan
from .quantize.scheme import Packed, Scheme
from .quantize.sources import Quantizer, round_searched
from .recipe import Recipe
from .reference import Progress, no_progress
from .special import text_side
from .trace import GraphOptions
from .weights import FloatArray


def export_checkpoint(
    checkpoint: Checkpoint, out: str | Path, recipe: Recipe, *, force: bool = False, progress: Progress = no_progress
) -> Manifest:
    """Write the bundle that `recipe` describes; raises an XlstmEdgeError and writes nothing if anything is wrong."""
    flavour = "ort" if recipe.flavour == "ort" else "portable"
    chunk = recipe.chunk if flavour == "ort" else 1
    options = GraphOptions(flavour=flavour, chunk=chunk, all_logits=recipe.all_logits)  # type: ignore[arg-type]  # one of two
    if recipe.quantize is None:
        return write_bundle(checkpoint, out, options, force=force, progress=progress)
    choices = recipe.quantize_options()
    plan = make_plan(checkpoint.spec, checkpoint.weights, choices)
    quantizer: Quantizer = round_searched
    if recipe.calibrate is not None:
        ids = calibration_batch(read_ids(checkpoint, Path(recipe.calibrate)))
        if recipe.quantize == "mixed":
            fixed = {name for name in plan if choices.by_hand(name, tied=checkpoint.spec.tied)}
            targets = {"mb": recipe.target_mb, "bpw": recipe.target_bpw}
            plan = spend_budget(checkpoint, plan, ids, **targets, fixed=fixed, progress=progress)
        if recipe.chosen_method == "gptq":
            packed = quantize_with_gptq(checkpoint.spec, checkpoint.weights, plan, ids, progress=progress)

            def take(name: str, _matrix: FloatArray, _scheme: Scheme) -> Packed:
                return packed[name]

            quantizer = take
    return write_bundle(
        checkpoint,
        out,
        options,
        plan=plan,
        quantizer=quantizer,
        recipe=recipe.as_dict(),
        force=force,
        progress=progress,
    )


def read_ids(checkpoint: Checkpoint, path: Path) -> NDArray[np.int64]:
    """Token ids of a text file, through the checkpoint's own tokenizer; ids between spaces where it has none."""
    if checkpoint.spec.vocab_size is None:
        raise InputError(
            "expected a model that takes tokens for calibration, came a stack of float vectors; use method rtn"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a UTF-8 text at {path}, came none; check the path") from error
    side = text_side(checkpoint)
    if side.info.kind != "none":
        return np.array(load_tokenizer(side.info.kind, side.file).encode(text), np.int64)
    words = text.split()
    if not all(word.isdecimal() and int(word) < checkpoint.spec.vocab_size for word in words):
        raise InputError(
            f"expected token ids in {path} (the checkpoint has no tokenizer), came text; write ids, spaced"
        )
    return np.array([int(word) for word in words], np.int64)
