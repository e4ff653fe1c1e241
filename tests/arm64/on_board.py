"""Runs on a board, without torch: proves each bundle, and writes down what it computes.

on_board.py FOLDER: each folder in it that holds a manifest is verified, and what it computes goes into FOLDER/BUNDLE.npz.
The sampler is held to the golden ids, which do not depend on any model.
"""

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xlstm_edge_runtime as xr
from xlstm_edge_runtime.float_graph import write_float_graph
from xlstm_edge_runtime.hardware import multiplies_integers
from xlstm_edge_runtime.manifest import read_manifest
from xlstm_edge_runtime.rates import open_trial
from xlstm_edge_runtime.sampling import Sampler, SamplingOptions
from xlstm_edge_runtime.vectors import read_vectors
from xlstm_edge_runtime.verify import float_pass, verify_bundle

GOLDEN = Path(__file__).parent.parent / "golden" / "sampling.json"
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
    in_float = in_float_weights(bundle) if model.manifest.quantization else None
    return {"checks": checks, "sampled": sampled, "float": in_float}


def in_float_weights(bundle: Path) -> str:
    """What a pass over the vectors with float weights says; VerificationError if it is not as near as float32 comes."""
    with tempfile.TemporaryDirectory() as name:
        write_float_graph(bundle / "model.onnx", Path(name))
        return float_pass(open_trial(bundle, Path(name), 1, 20), read_vectors(bundle, read_manifest(bundle)))


def golden() -> int:
    """How many golden sampling cases came out as they must: all, or an error."""
    cases: list[dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    for case in cases:
        got = golden_ids(case)
        if got != case["ids"]:
            raise SystemExit(f"expected {case['ids']}, got {got}")
    return len(cases)


def golden_ids(case: dict[str, Any]) -> list[int]:
    """What the sampler gives for a golden case."""
    options = {**case["options"], "seed": int(case["options"]["seed"])}
    options["logit_bias"] = {int(token): bias for token, bias in options.get("logit_bias", {}).items()}
    sampler = Sampler(SamplingOptions(**options), case["vocab"], prompt=case["prompt"])
    return [sampler(golden_logits(case["vocab"], case["salt"], step)) for step in range(len(case["ids"]))]


def golden_logits(vocab: int, salt: int, step: int) -> NDArray[np.float32]:
    """The logits of a golden case, from integers alone, as the golden file says."""
    values = np.arange(vocab, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(salt * 40503 + step * 97)
    return ((values % np.uint64(1 << 32) >> np.uint64(16)).astype(np.float64) / 4096 - 8).astype(np.float32)


def main(folder: Path) -> None:
    """Every bundle; a line of JSON."""
    bundles = sorted(path.parent for path in folder.glob("*/manifest.json"))
    found = {
        "machine": platform.machine(),
        "integers": multiplies_integers(),
        "golden": golden(),
        "bundles": {path.name: look(path) for path in bundles},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
