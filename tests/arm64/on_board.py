"""Runs on a board, without torch: proves each bundle, and writes down what it computes.

on_board.py FOLDER: each folder in it that holds a manifest is verified, and what it computes goes into FOLDER/BUNDLE.npz.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np

import xlstm_edge_runtime as xr
from xlstm_edge_runtime.verify import verify_bundle

TOKENS, GENERATED = 70, 12  # beyond a chunk of 64


def look(bundle: Path) -> dict[str, object]:
    """Checks passed, outputs step by step and in chunks, and ids sampled with a seed."""
    checks = [check.name for check in verify_bundle(bundle, threads=1)]
    model = xr.load(bundle, threads=1)
    ids = np.arange(TOKENS) * 7 % model.output_width
    session = model.session()
    steps = np.stack([session.step(int(token)) for token in ids])
    chunks = model.session().prefill(ids)
    events = model.session().generate(
        [int(token) for token in ids[:5]],
        max_tokens=GENERATED,
        temperature=0.8,
        top_k=40,
        top_p=0.95,
        seed=7,
        stop_ids=(),
    )
    sampled = [event.id for event in events if isinstance(event, xr.Token)]
    np.savez(bundle.with_suffix(".npz"), steps=steps[[0, 31, TOKENS - 1]], chunks=chunks, sampled=sampled)
    return {"checks": checks, "sampled": sampled}


def main(folder: Path) -> None:
    """Every bundle; a line of JSON."""
    bundles = sorted(path.parent for path in folder.glob("*/manifest.json"))
    print(json.dumps({"machine": platform.machine(), "bundles": {path.name: look(path) for path in bundles}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
