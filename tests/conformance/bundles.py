"""The bundles of the conformance files: random models as small as each form of a graph allows."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import xlstm_edge

from ..oracles import tokenizers
from ..oracles.cases import Case, large, v1
from ..oracles.official import make_checkpoint

CHECKPOINTS = {
    "capped": Case("capped", "xlstm_large", large(16, 1, 2, 260)),
    "uncapped": Case("uncapped", "xlstm_large", large(16, 1, 2, 40, gate_soft_cap=None, output_logit_soft_cap=None)),
    "mixed": Case("mixed", "xlstm_lm", v1(16, 2, [1], 340)),
    "stack": Case("stack", "xlstm_stack", v1(12, 2, [1], None, s_num_heads=2, m_num_heads=2)),
}
# What the tokenizer of `mixed` and its training leave beside it: special tokens, and defaults of sampling.
BESIDE = {
    "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
    "generation_config.json": {"do_sample": True, "temperature": 0.8, "top_k": 40, "eos_token_id": [2, 3]},
}
# name -> checkpoint, what it stands for, options of the export
BUNDLES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "capped": ("capped", "xLSTM-Large with soft caps, no stabilizer; tokens are bytes", {"tokenizer": "byte", "chunk": 8}),
    "stabilized": ("uncapped", "xLSTM-Large without caps, stabilized; all logits of a call", {"chunk": 8, "all_logits": True}),
    "mixed": ("mixed", "xLSTM v1, mLSTM and sLSTM; byte-level tokenizer, special tokens, defaults", {"chunk": 8}),
    "integers": (
        "capped",
        "the checkpoint of `capped` in int4 and int8",
        {"tokenizer": "byte", "chunk": 8, "quantize": "int4", "method": "rtn", "block_size": 16, "head_bits": 8},
    ),
    "static": (
        "capped",
        "the checkpoint of `capped` with one token a call, stabilizers less a constant, a second graph for prompts",
        {"tokenizer": "byte", "target": "openvino", "chunk": 4},
    ),
    "vectors": ("stack", "a stack of v1 blocks: float vectors in and out", {"chunk": 8}),
    "web": ("mixed", "the checkpoint of `mixed` for onnxruntime-web", {"target": "web", "chunk": 8}),
}  # fmt: skip


def make_checkpoints(folder: Path) -> dict[str, Path]:
    """Name -> its checkpoint folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the official packages warn about each other
        made = {name: make_checkpoint(case, folder / name) for name, case in CHECKPOINTS.items()}
    tokenizers.byte_level().save(str(made["mixed"] / "tokenizer.json"), pretty=False)
    for name, document in BESIDE.items():
        (made["mixed"] / name).write_text(json.dumps(document))
    return made


def make_bundles(checkpoints: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Name -> its bundle folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, (source, _, options) in BUNDLES.items():
        xlstm_edge.export(checkpoints[source], folder / name, **options)
    return {name: folder / name for name in BUNDLES}
