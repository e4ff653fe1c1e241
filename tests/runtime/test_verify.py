"""A bundle that was changed does not pass its own checks; a healthy one does."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_runtime import session
from xlstm_edge_runtime.vectors import Expected, Vectors, positions_of
from xlstm_edge_runtime.verify import _ends_of_calls

from ..changed_bundles import (
    change_tensor,
    from_another_layer,
    on,
    one_step_up,
    swapped,
    tensors,
    without_a_bias,
    zero_points,
)
from ..command import Command, assert_one_sentence
from ..conftest import BY_NAME
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]
Array = np.ndarray[Any, Any]


Change = Callable[[Path], object]


MUTATIONS: dict[str, Change] = {
    "two scales of a row swapped": on("mixer.out.weight.scales", swapped((3, 0), (3, 1))),
    "two scales of a column swapped": on("ffn.down.weight.scales", swapped((1, 1), (2, 1)), 11),
    "two scales of the head swapped": on("head.weight.scales", swapped((17, 0), (99, 0))),
    "two groups swapped": on("ffn.gate_up.weight.data", swapped((5, 0), (5, 1)), 5),
    "two rows of a matrix swapped": on("mixer.qkvo.weight.data", swapped(0, 1)),
    "two rows of the embedding swapped": on("embedding.weight.table", swapped(slice(0, 150), slice(150, 300))),
    "integers a step too high": on("ffn.gate_up.weight.data", one_step_up, 7),
    "zero points": zero_points,
    "another layer": from_another_layer,
    "a bias dropped": without_a_bias,
    "a bias of zeros": on("mixer.gates.bias", np.zeros_like),
    "a norm of ones": on("ffn_norm.weight", np.ones_like, 3),
}  # fmt: skip
SHIPPED_TOO: dict[str, Change] = {
    "two scales of a column swapped": on("mixer.down.weight.scales", swapped((1, 1), (2, 1)), 2),
    "two groups swapped": on("mixer.up.weight.data", swapped((5, 0), (5, 1)), 3),
    "integers a step too high": on("ffn.gate_up.weight.data", one_step_up),
    "another layer": lambda f: change_tensor(f, tensors(f, "mixer.down.weight.scales")[1], lambda a: a[::-1]),
    "a bias of zeros": on("mixer.gates.bias", np.zeros_like),
}


@pytest.mark.parametrize("name", ["deep", "shipped"])
def test_healthy_quantized_bundles_pass(name: str, int4_bundle: Callable[[str], Path], command: Command) -> None:
    for threads in (1, 2, 3):
        assert command("verify", int4_bundle(name), "--threads", threads).code == 0


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_deep_bundle_that_was_changed_is_seen(
    name: str, int4_bundle: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    bundle = Path(shutil.copytree(int4_bundle("deep"), tmp_path / "bundle"))
    MUTATIONS[name](bundle)
    xr.load(bundle, threads=1)  # nothing that hashes, sizes or shapes could show
    assert_one_sentence(command("verify", bundle), 1)


@pytest.mark.parametrize("name", SHIPPED_TOO)
def test_a_trained_bundle_that_was_changed_is_seen(
    name: str, int4_bundle: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    bundle = Path(shutil.copytree(int4_bundle("shipped"), tmp_path / "bundle"))
    SHIPPED_TOO[name](bundle)
    xr.load(bundle, threads=1)
    assert_one_sentence(command("verify", bundle), 1)


BROKEN_RUNTIMES: dict[str, Callable[[Array, int], Array]] = {
    "zeros for longer calls": lambda output, length: output * (length <= 12),
    "zeros for full chunks": lambda output, length: output * (length != 64),
    "zeros for odd rests": lambda output, length: output * (length in (1, 3, 32, 64)),
    "zeros for single tokens": lambda output, length: output * (length > 1),
    "half of it for longer calls": lambda output, length: output * (1.0 if length < 30 else 0.5),
    "not a number": lambda output, length: output + (np.nan if length == 64 else 0),
    "two outputs exchanged": lambda output, _length: output[[1, 0, *range(2, len(output))]],
}  # fmt: skip


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", BROKEN_RUNTIMES)
def test_a_runtime_that_computes_something_else_is_seen(
    name: str, quantized: bool, int4_bundle: Callable[[str], Path], mixed_bundle: Path, command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = session.Session._run

    def broken(self: session.Session, inputs: Any, length: int) -> Array:
        return BROKEN_RUNTIMES[name](np.array(run(self, inputs, length)), length).astype(np.float32)

    monkeypatch.setattr(session.Session, "_run", broken)
    assert_one_sentence(command("verify", int4_bundle("shipped") if quantized else mixed_bundle), 1)


def test_a_long_chunk_is_run_in_whole(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command,
    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    xlstm_edge.export(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "bundle", chunk=300)
    assert command("verify", tmp_path / "bundle").code == 0
    run = session.Session._run
    monkeypatch.setattr(session.Session, "_run", lambda s, i, n: np.array(run(s, i, n)) * (n != 300))
    assert_one_sentence(command("verify", tmp_path / "bundle"), 1)


def test_a_snapshot_that_restores_something_else_is_seen(
    mixed_bundle: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = session.Session.load

    def badly(self: session.Session, path: Any) -> None:
        load(self, path)
        for array in self._sets[self._current].values():
            np.multiply(array, np.float32(1.01), out=array)

    monkeypatch.setattr(session.Session, "load", badly)
    result = command("verify", mixed_bundle)
    assert_one_sentence(result, 1)
    assert "restored" in result.err


@pytest.mark.parametrize("chunk", range(2, 65))
def test_prompts_are_judged_after_a_whole_call_whatever_its_length(chunk: int) -> None:
    """Where only a few tokens are looked at: at the end of calls if a vector is there, else a few tokens later."""
    positions = positions_of(chunk)
    nothing = np.zeros(1)
    expected = [Expected(p, nothing.astype(np.int64), nothing, nothing, 1.0, 0.0, None) for p in positions]
    judged = _ends_of_calls(Vectors(np.zeros(positions[-1] + 1, np.int64), tuple(expected)), chunk).expected
    assert judged
    assert all(e.position + 1 >= chunk for e in judged)
