"""State in place: used where it is proven, and nowhere else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xlstm_edge_runtime as xr
from xlstm_edge_runtime import in_place

from ..changed_bundles import reads_late
from ..conftest import BY_NAME, sequence_for
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]
Array = np.ndarray[Any, Any]


# State in place


def test_in_place_is_used_and_proven(int4_bundle: Callable[[str], Path]) -> None:
    model = xr.load(int4_bundle("deep"), threads=2)
    assert model.in_place == {row.name for row in model.manifest.state}
    assert in_place.prove_in_place(model) == model.in_place


def test_in_place_leaves_out_cells_that_read_their_output_late(bundle: Path) -> None:
    """One sLSTM cell among mLSTM ones does not cost the others their place."""
    model = xr.load(bundle, threads=2)
    states = {row.name for row in model.manifest.state}
    slstm = {name for name in states if f"{name.rpartition('.')[0]}.y" in states}
    assert slstm
    assert model.in_place == states - slstm != set()


def stepped(model: xr.Model, tokens: Any) -> list[Array]:
    stream = model.session()
    return [np.array(stream.prefill(token[None])) for token in tokens]


def test_a_graph_that_reads_its_state_late_is_not_run_in_place(bundle: Path) -> None:
    """The old memory is read once more, after the new one was written."""
    reads_late(bundle)
    model, tokens = xr.load(bundle), sequence_for(BY_NAME["lm-mixed"], 6)
    assert model.in_place == frozenset()
    expected = stepped(model, tokens)
    model.in_place = in_place.in_place_candidates(model.manifest.state)
    assert not np.array_equal(stepped(model, tokens), expected)  # or this test would show nothing
    model.in_place = frozenset()
    fed = model.manifest.state.initial()
    for token, got in zip(tokens, expected, strict=True):
        feeds = {model.manifest.graph.input: np.array([[token]])}
        feeds |= {row.input_name: fed[row.name] for row in model.manifest.state}
        outputs = model.inference.run(None, feeds)
        fed = dict(zip(fed, outputs[1:], strict=True))
        assert np.array_equal(got, outputs[0][0])


def test_a_proof_in_place_holds_for_what_it_was_made_on(
    int4_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(int4_bundle("shipped"), tmp_path / "bundle"))
    tuning = xlstm_edge_tune(bundle)
    assert tuning.in_place
    tried: list[str] = []
    prove = in_place.prove_in_place

    def watched(model: xr.Model) -> frozenset[str]:
        tried.append("tried")
        return prove(model)

    monkeypatch.setattr("xlstm_edge_runtime.loading.prove_in_place", watched)
    xr.load(bundle)
    xr.load(bundle, threads=tuning.threads)
    assert not tried  # remembered
    xr.load(bundle, threads=tuning.threads + 1)
    xr.load(bundle, tuned=False)
    assert len(tried) == 2


def xlstm_edge_tune(folder: Path) -> Any:
    from xlstm_edge_runtime.tune import tune_bundle

    return tune_bundle(folder)


@pytest.mark.parametrize("length", [2, 16, 63, 64, 65, 130])
def test_chunks_do_not_write_in_place(length: int, int4_bundle: Callable[[str], Path]) -> None:
    """Whatever the length, the result is that of two buffers."""
    model = xr.load(int4_bundle("shipped"), threads=2)
    tokens = np.arange(length + 3) * 7 % 2048
    first = model.session()
    got = [np.array(first.prefill(part)) for part in (tokens[:3], tokens[3:], tokens[:1])]
    assert model.in_place
    model.in_place = frozenset()
    second = model.session()
    wanted = [np.array(second.prefill(part)) for part in (tokens[:3], tokens[3:], tokens[:1])]
    assert np.array_equal(got, wanted)
    assert all(np.array_equal(a, b) for a, b in zip(first.state.values(), second.state.values(), strict=True))
