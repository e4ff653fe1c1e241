"""A tuning that is damaged is seen, and not used."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import xlstm_edge_runtime as xr
from xlstm_edge_runtime.manifest import file_entry

from ..command import Command, assert_one_sentence


@pytest.fixture
def tuned(int4_bundle: Callable[[str], Path], tmp_path: Path, command: Command) -> Path:
    shutil.copytree(int4_bundle("shipped"), tmp_path / "bundle")
    assert command("tune", tmp_path / "bundle").code == 0
    return tmp_path / "bundle"


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_damaged_tuning_is_seen_and_not_used(name: str, tuned: Path, command: Command) -> None:
    expected = np.array(xr.load(tuned, tuned=False).session().prefill(range(90)))
    assert xr.load(tuned).tuning is not None
    path = tuned / "tuned" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert_one_sentence(command("verify", tuned), 1)
    model = xr.load(tuned)
    assert model.tuning is None
    assert np.array_equal(model.session().prefill(range(90)), expected)


def test_a_tuned_graph_that_does_not_open_is_not_used(tuned: Path, command: Command) -> None:
    expected = np.array(xr.load(tuned, tuned=False).session().prefill(range(90)))
    (tuned / "tuned" / "model.onnx").write_bytes(bytes(100))
    record = json.loads((tuned / "tuned" / "tuned.json").read_text())
    record["files"]["model.onnx"] = asdict(file_entry(tuned / "tuned" / "model.onnx"))
    (tuned / "tuned" / "tuned.json").write_text(json.dumps(record))
    model = xr.load(tuned)
    assert model.tuning is None
    assert np.array_equal(model.session().prefill(range(90)), expected)
    assert_one_sentence(command("verify", tuned), 1)
