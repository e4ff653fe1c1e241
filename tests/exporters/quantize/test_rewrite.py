"""Quantized graphs: every large product rewritten, tied integers once, outputs those of the stored weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import xlstm_edge
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.ops.rounded import Rounded, by_block
from xlstm_edge_exporters.quantize.read import read_weights
from xlstm_edge_exporters.reference import Variant, run_variants
from xlstm_edge_runtime import load
from xlstm_edge_runtime.manifest import read_manifest

from ...conftest import BY_NAME, sequence_for
from ...oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


QUANTIZED = [
    ("lm-mixed", {"quantize": "int8"}),
    ("lm-mixed", {"quantize": "int4", "method": "rtn", "block_size": 16}),
    ("lm-one-head", {"quantize": "int4", "method": "rtn", "head_bits": 8, "block_size": 16}),
    ("lm-three-heads", {"quantize": "int8", "keep": {"blocks.0.*": 4}}),
    ("stack-mixed", {"quantize": "int8"}),
    ("large-three-heads", {"quantize": "int4", "method": "rtn", "embedding_bits": 8}),
    ("large-plain", {"quantize": "int4", "method": "rtn", "block_size": 64, "all_logits": True}),
    ("hf-tied", {"quantize": "int4", "method": "rtn"}),
    ("large-plain", {"quantize": "int4", "method": "rtn", "keep": {"blocks.*": 2}}),
    (
        "lm-mixed",
        {
            "quantize": "int4",
            "method": "rtn",
            "block_size": 64,
            "keep": {"blocks.*": 2},
            "head_bits": 2,
            "embedding_bits": 8,
        },
    ),
    ("hf-one-head", {"quantize": "int8", "block_size": 128, "head_bits": 2}),
    ("lm-hf-mlstm", {"quantize": "int8"}),  # tied, and the width is no whole group
]


@pytest.mark.parametrize(("name", "options"), QUANTIZED, ids=str)
def test_a_quantized_bundle_computes_with_the_weights_it_holds(
    name: str, options: dict[str, Any], checkpoint_of: CheckpointOf, export_of: Callable[..., Path]
) -> None:
    case, bundle = BY_NAME[name], export_of(name, chunk=16, **options)
    checks = {check.name for check in xlstm_edge.verify(bundle, against=checkpoint_of(case), threads=1)}
    assert {"weights", "tensors", "reference, step", "reference, chunk", "reference, weights"} <= checks
    checkpoint, stored = open_checkpoint(checkpoint_of(case)), read_weights(bundle / "model.onnx")
    assert {n: w.shape for n, w in stored.items()} == {n: w.shape for n, w in checkpoint.weights.items()}
    sequence = sequence_for(case, 40)
    tensors = read_manifest(bundle).quantization.tensors
    groups = {tensor: entry.block_size for tensor, entry in tensors.items()}
    way = {"rounded": Variant(ops=partial(Rounded, by_block))}
    expected = run_variants(checkpoint.spec, stored, sequence, way, marks=groups)["rounded"]
    session = load(bundle, threads=1).session()
    errors = [np.abs(session.step(t) - e).max() / np.ptp(e) for t, e in zip(sequence, expected, strict=True)]
    # Exact but for activations on a rounding border, which float32 and float64 may see on different sides.
    assert np.median(errors) <= 1e-4
    assert max(errors) <= 0.02
    for tensor, scheme in tensors.items():
        matrix, original = stored[tensor].load(), checkpoint.weights[tensor].load()
        relative = np.linalg.norm(matrix - original) / np.linalg.norm(original)
        assert relative < {8: 0.01, 4: 0.14, 2: 0.6}[scheme.bits]


def test_all_matrix_products_of_large_weights_are_quantized(export_of: Callable[..., Path]) -> None:
    bundle = export_of("large-three-heads", quantize="int4", method="rtn")
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 2 * 4 + 1
    assert {a.i for node in nodes for a in node.attribute if a.name == "accuracy_level"} == {4}
    assert sum(len(node.input) == 6 for node in nodes) == 2 * 4  # the biases went into the nodes
    left = [node.input[1] for node in graph.node if node.op_type in ("MatMul", "FusedMatMul")]
    assert left
    assert all("gates" in name or name.startswith("constant.") for name in left)  # constants repeat numbers per head


def test_tied_integers_are_stored_once(export_of: Callable[..., Path]) -> None:
    bundle = export_of("lm-hf-tied", quantize="int4", method="rtn")
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    places = {
        i.name: {e.key: e.value for e in i.external_data}
        for i in graph.initializer
        if i.name.startswith("embedding.weight.")
    }
    assert places["embedding.weight.table"] == places["embedding.weight.data"]
    assert len(places) == 3
