"""Paths and graphs that do not open, and bundles that do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_runtime.verify import verify_bundle

from ..conftest import BY_NAME
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


def test_a_manifest_of_another_width(bundle_of: Callable[[Case, str], Path], tmp_path: Path) -> None:
    shutil.copytree(bundle_of(BY_NAME["lm-mixed"], "cpu"), tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["vocab_size"] = 4096
    path.write_text(json.dumps(manifest))
    with pytest.raises(xr.BundleError, match="expected 4096 outputs as in the manifest, got 97"):
        xr.load(tmp_path / "bundle")
    with pytest.raises(xr.VerificationError):
        list(verify_bundle(tmp_path / "bundle"))


@pytest.mark.parametrize("bundle", [None, 5, "a" * 5000, "a" * 300, "nul\0byte", b"bytes", [], "\udcff"])
def test_paths_that_are_none(bundle: Any) -> None:
    with pytest.raises(xr.XlstmEdgeError, match=r"expected .*got"):
        xr.load(bundle)


def test_an_exported_bundle_loads_as_it_is(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    bundle = xlstm_edge.export(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "bundle")
    assert np.array_equal(xr.load(bundle).session().step(3), xlstm_edge.load(tmp_path / "bundle").session().step(3))
    assert xlstm_edge.verify(bundle)
    assert xlstm_edge.inspect(bundle)["kind"] == "bundle"
