"""Gates near their caps, where a lowering could saturate."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_exporters.targets import TARGETS

from ...conftest import BY_NAME, sequence_for
from ...gates import with_gates
from ...oracles.cases import Case
from ...oracles.official import official_step

CheckpointOf = Callable[[Case], Path]
# Biases before the soft cap of 15: 14 comes to 11.0, 75 to 14.999, 200 to what float32 cannot tell from 15.
GATES = [(8, -12), (8, -20), (12, 10), (-12, 3), (14, -3), (75, 75), (75, -75), (-75, 75), (-75, -75), (200, -200)]


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize(("igate", "fgate"), GATES)
def test_gates_near_their_caps(
    igate: float, fgate: float, target: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """Small decays meet large gains: a decay that loses its digits is seen here."""
    case = BY_NAME["large-plain"]
    folder = with_gates(checkpoint_of(case), tmp_path / "checkpoint", igate=igate, fgate=fgate)
    sequence = sequence_for(case, 60)
    expected = official_step(case, folder, sequence, "float64")
    assert expected is not None
    xlstm_edge.export(folder, tmp_path / "bundle", target=target)
    session = xr.load(tmp_path / "bundle", threads=1).session()
    for token, wanted in zip(sequence, expected, strict=True):
        assert np.abs(session.step(int(token)) - wanted).max() <= 1e-4 * np.ptp(wanted)


@pytest.mark.parametrize("target", ["cpu", "portable", "qnn", "openvino"])
@pytest.mark.parametrize(("factor", "igate"), [(8, 10), (60, 200), (60, 40)])
def test_gates_that_move_at_their_caps(
    factor: int,
    igate: float,
    target: str,
    checkpoint_of: CheckpointOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The true normalizer is then far below what a memory holds at other times: no lower bound may stand in for it."""
    case = BY_NAME["large-plain"]
    folder = with_gates(checkpoint_of(case), tmp_path / "checkpoint", igate=igate, factor=factor)
    sequence = sequence_for(case, 40)
    expected = official_step(case, folder, sequence, "float64")
    assert expected is not None
    monkeypatch.setattr(TARGETS[target], "check", lambda *_, **__: [])  # what float16 makes of it is not asked here
    calls = min(8, TARGETS[target].longest_chunk)
    xlstm_edge.export(folder, tmp_path / "bundle", target=target, chunk=calls)
    allowed = 5e-4 if TARGETS[target].half else 1e-4  # float16's smallest number stands in for smaller ones
    session = xr.load(tmp_path / "bundle", threads=1).session()
    for token, wanted in zip(sequence, expected, strict=True):
        assert np.abs(session.step(int(token)) - wanted).max() <= allowed * np.ptp(wanted)
    session.reset()
    for end in range(calls, len(sequence) + 1, calls):
        output, wanted = session.prefill(sequence[end - calls : end]), expected[end - 1]
        assert np.abs(output - wanted).max() <= allowed * np.ptp(wanted)
