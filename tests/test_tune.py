"""Tuning: the same outputs, remembered here, ignored elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_runtime import tune

from .command import Command, assert_one_sentence
from .conftest import BY_NAME
from .oracles.cases import Case


@pytest.fixture(params=[None, "int4"])
def bundle(request: pytest.FixtureRequest, checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> Path:
    xlstm_edge.export(checkpoint_of(BY_NAME["b-plain"]), tmp_path / "bundle", quantize=request.param)
    return tmp_path / "bundle"


def test_a_tuned_bundle_computes_the_same(bundle: Path, command: Command) -> None:
    before = xr.load(bundle, threads=1).session().prefill(range(100)).copy()
    facts = json.loads(command("tune", bundle, "--json").out)
    assert facts["threads"] >= 1
    assert facts["prepacked"] == bool(xr.load(bundle).manifest.quantization)
    model = xr.load(bundle)
    assert model.chunk == facts["chunk"]
    assert facts["spin"] in tune.SPINS
    assert facts["in_place"] == bool(model.aliased)
    np.testing.assert_allclose(model.session().prefill(range(100)), before, atol=2e-3 * np.ptp(before))
    assert command("verify", bundle).code == 0
    assert "decode per second" in command("tune", bundle).out


@pytest.mark.parametrize("spoil", ["cpu", "json", "missing", "size", "threads"])
def test_a_tuning_that_does_not_fit_is_ignored(spoil: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = tune.tune_bundle(bundle)
    record = bundle / "tuned" / "tuned.json"
    assert tune.read_tuning(bundle, xr.load(bundle).manifest) == tuning
    if spoil == "cpu":
        monkeypatch.setattr(tune, "cpu_key", lambda: "another processor")
    elif spoil == "json":
        record.write_text("{")
    elif spoil == "missing":
        for path in (bundle / "tuned").iterdir():
            path.unlink()
    elif spoil == "size":
        document = json.loads(record.read_text())
        record.write_text(json.dumps(document | {"files": {"tuned.json": "1"}}))
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"threads": 0}))
    model = xr.load(bundle)
    assert tune.read_tuning(bundle, model.manifest) is None
    assert model.chunk == model.manifest.graph.chunk


@pytest.mark.parametrize("bundle", ["int4"], indirect=True)
def test_a_full_disk_is_one_sentence(bundle: Path, command: Command) -> None:
    resource = pytest.importorskip("resource", reason="POSIX only")
    before, limits = sorted(bundle.iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        result = command("tune", bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_sentence(result, 2)
    assert sorted(bundle.iterdir()) == before


def test_tuning_nothing(tmp_path: Path, command: Command) -> None:
    assert_one_sentence(command("tune", tmp_path), 2)


@pytest.mark.parametrize("spin", [-1, 1.5, True, 10**6])
def test_bad_spins(spin: object, bundle: Path) -> None:
    with pytest.raises(xr.InputError, match="spin"):
        xr.load(bundle, spin=spin)  # type: ignore[arg-type]  # wrong on purpose
