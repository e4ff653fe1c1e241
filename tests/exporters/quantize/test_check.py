"""Quantized weights against the checkpoint, block by block, calibrated or not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.quantize import pieces
from xlstm_edge_exporters.quantize.check import Limits, within_limits
from xlstm_edge_exporters.quantize.read import read_schemes, read_weights
from xlstm_edge_exporters.quantize.scheme import Scheme
from xlstm_edge_exporters.quantize.sources import round_searched, round_to_nearest
from xlstm_edge_exporters.verify import _same_weights
from xlstm_edge_exporters.weights import loaded
from xlstm_edge_runtime.manifest import read_manifest

from ...changed_bundles import change_tensor, edit_json, on, one_step_up, rehash, swapped, tensors
from ...command import Command, assert_one_sentence
from ...conftest import SHIPPED
from ...oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


Change = Callable[[Path], object]


def with_new_vectors(folder: Path) -> None:
    """Vectors of the changed weights: a forger's, who has the exporter."""
    from xlstm_edge_exporters.quantize.read import read_schemes, read_weights
    from xlstm_edge_exporters.vectors import make_vectors, vectors_json

    graph, spec = folder / "model.onnx", open_checkpoint(SHIPPED).spec
    groups = {name: scheme.block_size for name, scheme in read_schemes(graph).items()}
    (folder / "vectors.json").write_text(vectors_json(make_vectors(spec, read_weights(graph), groups, chunk=64)))
    rehash(folder)


def test_gptq_holds_against_its_checkpoint_and_foreign_groups_do_not(tmp_path: Path, command: Command) -> None:
    bundle = tmp_path / "bundle"
    xlstm_edge.export(SHIPPED, bundle, quantize="int4", calibrate=SHIPPED / "calibration.txt", calibration_tokens=2048)
    assert command("verify", bundle, "--against", SHIPPED).code == 0
    on("ffn.gate_up.weight.data", swapped(5, 6))(bundle)
    with_new_vectors(bundle)
    assert_one_sentence(command("verify", bundle, "--against", SHIPPED), 1)


def stretched(factor: float) -> Change:
    """Every scale of the bundle larger or smaller."""
    return lambda f: [change_tensor(f, name, lambda a: a * np.float32(factor)) for name in tensors(f, ".scales")]


def shaken(folder: Path) -> None:
    """Every scale another factor from 0.4 to 1.6."""
    rng = np.random.default_rng(0)
    for name in tensors(folder, ".scales"):
        change_tensor(folder, name, lambda a: a * rng.uniform(0.4, 1.6, a.shape).astype(np.float32))


CLAIMS: dict[str, Change] = {
    "scales half as large again": stretched(1.5),
    "scales a tenth smaller": stretched(0.9),
    "scales shaken": shaken,
    "scales of other columns": lambda f: change_tensor(f, tensors(f, "mixer.down.weight.scales")[1], lambda a: a[::-1]),
    "integers a step too high": on("ffn.gate_up.weight.data", one_step_up),
    "two groups swapped": on("mixer.up.weight.data", swapped((5, 0), (5, 1)), 3),
}


def claimed(folder: Path, change: Change | None) -> Path:
    """A bundle that says it was calibrated, with a change."""
    edit_json(folder / "manifest.json", lambda m: m["quantization"]["recipe"].update(calibrate="x.txt"))
    if change is not None:
        change(folder)
        rehash(folder)
    return folder


def judge(folder: Path) -> None:
    """What `verify --against` does with the tensors."""
    graph, manifest = folder / "model.onnx", read_manifest(folder)
    _same_weights(
        open_checkpoint(SHIPPED).weights, read_weights(graph), read_schemes(graph), manifest.quantization.calibrated
    )


def test_an_honest_bundle_may_say_that_it_was_calibrated(int4_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    judge(claimed(Path(shutil.copytree(int4_bundle("shipped"), tmp_path / "bundle")), None))


@pytest.mark.parametrize("name", CLAIMS)
def test_to_say_that_it_was_calibrated_excuses_nothing(
    name: str, int4_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = claimed(Path(shutil.copytree(int4_bundle("shipped"), tmp_path / "bundle")), CLAIMS[name])
    with pytest.raises(xr.VerificationError, match="bits allow"):
        judge(bundle)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("part", [pieces.LARGE_PIECE, 500])
def test_a_poor_calibration_goes_no_further_than_verify_allows(
    part: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece, or some rows at a time."""
    monkeypatch.setattr(pieces, "LARGE_PIECE", part)
    rng = np.random.default_rng(bits)
    scheme = Scheme(bits, 32)
    matrix = rng.standard_normal((24, 100)).astype(np.float32)
    matrix[3, :32], matrix[4] = 0, 0
    noise = rng.standard_normal(matrix.shape).astype(np.float32)
    far = round_to_nearest("x", loaded(matrix * np.float32(1.4) + noise), scheme)
    mixed = round_to_nearest("x", loaded(matrix), scheme)
    mixed.scales[7, 1] *= -3
    nearest = round_searched("x", loaded(matrix), scheme)
    for packed in (far, mixed):
        kept = within_limits("x", matrix, packed, scheme)
        got, rounded = (scheme.dequantize(one, 100) for one in (kept, nearest))
        limits = Limits(scheme)
        assert not limits.take(matrix, got, rounded).any()
        assert not limits.whole
    assert np.array_equal(kept.scales[8], mixed.scales[8])  # a row that was right stays
    assert not np.array_equal(kept.scales[7], mixed.scales[7])
