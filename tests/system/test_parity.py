"""The parity ladder: numpy float64 recurrence -> canonical torch model -> exported graph, for every case.

(`test_oracles.py` ties the recurrence to the official packages.) Bounds are shares of the output's range.
"""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from xlstm_edge_exporters.checkpoints import Checkpoint
from xlstm_edge_exporters.reference import run_reference
from xlstm_edge_runtime import Model, load
from xlstm_edge_runtime.state import State

from ..conftest import BY_NAME, sequence_for
from ..oracles.cases import CASES, Case
from ..oracles.reference import Reference

FLOAT64 = 1e-6  # weights are folded in float32 (1 + w, / cap); everything after it is float64
FLOAT32 = 1e-4
LENGTH = 100  # more than six chunks of 16
GREEDY = 256
NEAR_TIE = 2e-5  # of the range: where the two best logits are closer than float32 resolves, either may win
SPLITS = {
    "ones": [1],
    "threes": [3],
    "sevens": [7],
    "one and a half chunks": [24],
    "chunk": [16],
    "mixed": [1, 16, 5, 40, 2],
}
Outputs = NDArray[np.floating]
NAMES = [case.name for case in CASES]

ModelOf = Callable[[Case, str], Model]
CheckpointOf = Callable[[Case], Path]
BundleOf = Callable[[Case, str], Path]


def largest(got: Outputs, expected: Outputs) -> float:
    """Largest difference as a share of the expected outputs' range."""
    return float(np.abs(got - expected).max() / np.ptp(expected))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_equals_numpy(case: Case, checkpoint_of: CheckpointOf, opened: Callable[[Case], Checkpoint]) -> None:
    sequence = sequence_for(case, LENGTH)
    reference, checkpoint = Reference(checkpoint_of(case)), opened(case)
    run = run_reference(checkpoint.spec, checkpoint.weights, sequence)
    assert largest(run.outputs, reference.run(sequence)) <= FLOAT64
    for index, block in enumerate(reference.blocks):  # states mean the same: q carries the scale, not k
        for name in ("C", "n", "m", "y", "c"):
            if hasattr(block.cell, name) and f"blocks.{index}.{name}" in run.state:
                got, wanted = run.state[f"blocks.{index}.{name}"], getattr(block.cell, name)
                atol = 1e-5 * np.abs(wanted).max()
                np.testing.assert_allclose(got.reshape(-1), wanted.reshape(-1), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("case", [case for case in CASES if case.family in ("xlstm_large", "xlstm_hf")], ids=str)
def test_the_reference_keeps_the_stabilizer_that_graphs_leave_out(
    case: Case, opened: Callable[[Case], Checkpoint], model_of: ModelOf
) -> None:
    """Its cell is the official one; the memory without a stabilizer is exp(m) times its own."""
    sequence, checkpoint, model = sequence_for(case, 20), opened(case), model_of(case, "cpu")
    run, session = run_reference(checkpoint.spec, checkpoint.weights, sequence), model.session()
    session.prefill(sequence)
    state = session.state
    for index, block in enumerate(checkpoint.spec.blocks):
        m = run.state[f"blocks.{index}.m"]
        assert (f"blocks.{index}.m" in state) != block.mixer.bounded
        factor = np.exp(m).reshape(1, -1, 1, 1) if block.mixer.bounded else 1.0
        for name in ("C", "n"):
            wanted = run.state[f"blocks.{index}.{name}"] * factor
            atol = 1e-5 * np.abs(wanted).max()
            np.testing.assert_allclose(state[f"blocks.{index}.{name}"], wanted, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    "name", ["lm-mixed", "lm-five-heads", "stack-slstm", "large-three-heads", "large-wide-heads", "hf-one-head"]
)
def test_more_threads_than_one(name: str, threads: int, checkpoint_of: CheckpointOf, bundle_of: BundleOf) -> None:
    case = BY_NAME[name]
    sequence, model = sequence_for(case, LENGTH), load(bundle_of(case, "cpu"), threads=threads)
    expected, session = Reference(checkpoint_of(case)).run(sequence), model.session()
    got = np.stack([np.array(session.step(token)) for token in sequence])
    assert largest(got, expected) <= FLOAT32
    for length in (1, 5, 16, 37, LENGTH):
        assert largest(model.session().prefill(sequence[:length]), expected[length - 1]) <= FLOAT32


@pytest.mark.parametrize("target", ["cpu", "portable", "coreml"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_equal_numpy(case: Case, target: str, checkpoint_of: CheckpointOf, model_of: ModelOf) -> None:
    check_steps(case, target, checkpoint_of, model_of)


@pytest.mark.parametrize("target", ["web", "qnn", "openvino"])
@pytest.mark.parametrize("name", ["lm-mixed", "large-plain", "large-uncapped", "stack-slstm"])
def test_steps_of_targets_that_share_a_lowering(
    name: str, target: str, checkpoint_of: CheckpointOf, model_of: ModelOf
) -> None:
    check_steps(BY_NAME[name], target, checkpoint_of, model_of)


def check_steps(case: Case, target: str, checkpoint_of: CheckpointOf, model_of: ModelOf) -> None:
    """Single steps of a bundle are those of the float64 recurrence."""
    sequence, session = sequence_for(case, LENGTH), model_of(case, target).session()
    got = np.stack([session.step(token).copy() for token in sequence])
    assert largest(got, Reference(checkpoint_of(case)).run(sequence)) <= FLOAT32
    assert session.tokens == LENGTH


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_chunking_equals_steps(case: Case, split: str, model_of: ModelOf) -> None:
    sequence, model = sequence_for(case, LENGTH), model_of(case, "cpu")
    stepped, chunked = model.session(), model.session()
    for token in sequence:
        expected = stepped.step(token)
    start = 0
    for size in cycle(SPLITS[split]):
        got = chunked.prefill(sequence[start : start + size])
        start += size
        if start >= LENGTH:
            break
    assert largest(got, expected) <= FLOAT32
    states, wanted = chunked.state, stepped.state
    for name, array in wanted.items():
        np.testing.assert_allclose(states[name], array, rtol=1e-3, atol=1e-4 * max(1.0, np.abs(array).max()))


@pytest.mark.parametrize("case", [case for case in CASES if case.family != "xlstm_stack"], ids=str)
def test_greedy_tokens_equal_numpy(case: Case, checkpoint_of: CheckpointOf, model_of: ModelOf) -> None:
    reference, session = Reference(checkpoint_of(case)), model_of(case, "cpu").session()
    token, equal = 1, 0
    for _ in range(GREEDY):
        expected, got = reference.step(token), session.step(token)
        token = int(expected.argmax())
        second = np.partition(expected, -2)[-2]
        near_tie = expected[token] - second < NEAR_TIE * np.ptp(expected)
        assert int(got.argmax()) == token or near_tie
        equal += int(got.argmax()) == token
    assert equal >= GREEDY - 2


@pytest.mark.parametrize("name", ["lm-mixed", "lm-three-heads", "large-plain", "stack-slstm", "hf-one-head"])
def test_ten_thousand_steps_stay_on_the_reference(name: str, checkpoint_of: CheckpointOf, model_of: ModelOf) -> None:
    case, length = BY_NAME[name], 10_000
    sequence = sequence_for(case, length)
    reference, session = Reference(checkpoint_of(case)), model_of(case, "cpu").session()
    size = session.nbytes
    for start in range(0, length, 500):
        part = sequence[start : start + 500]
        for token in part[:100]:
            got = session.step(token)
        got = session.prefill(part[100:])
        for token in part:
            expected = reference.step(token)
        assert np.isfinite(got).all()
        assert largest(got, expected) <= FLOAT32
    assert session.nbytes == size == sum(array.nbytes for array in session.state.values())


MOVES = [("cpu", "portable"), ("portable", "cpu"), ("cpu", "coreml"), ("coreml", "cpu"), ("coreml", "coreml")]


@pytest.mark.parametrize(("target", "other"), MOVES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["lm-mixed", "lm-wide-head", "large-three-heads", "large-wide-heads"])
def test_state_moves_between_targets(
    name: str, dtype: str, target: str, other: str, model_of: ModelOf, tmp_path: Path
) -> None:
    """Also between a memory with a stabilizer and one without: what is remembered is C exp(m)."""
    case = BY_NAME[name]
    sequence = sequence_for(case, 40)
    first, second = model_of(case, target).session(), model_of(case, other).session()
    first.prefill(sequence[:30])
    first.save(tmp_path / "state.safetensors", dtype=dtype)
    second.load(tmp_path / "state.safetensors")
    assert second.tokens == 30
    if dtype == "float32" and (target == other or "coreml" not in (target, other)):
        assert all(np.array_equal(array, second.state[name]) for name, array in first.state.items())
    wanted, got = remembered(first.state), remembered(second.state)
    rounding = 1e-5 if dtype == "float32" else 2.0**-10
    for tensor, array in wanted.items():
        np.testing.assert_allclose(got[tensor], array, rtol=1e-4, atol=rounding * (np.abs(array).max() + 1e-30))
    tolerance = FLOAT32 if dtype == "float32" else 1e-2
    assert largest(second.prefill(sequence[30:]), first.prefill(sequence[30:])) <= tolerance


def remembered(state: State) -> State:
    """Matrix memories and normalizers without their stabilizer; everything else but stabilizers as it is."""
    made = {name: array for name, array in state.items() if not name.endswith(".m")}
    for name, m in state.items():
        block = name.removesuffix(".m")
        if name.endswith(".m") and f"{block}.C" in state:
            factor = np.exp(m.reshape(1, -1, 1, 1))
            made |= {f"{block}.{tensor}": state[f"{block}.{tensor}"] * factor for tensor in ("C", "n")}
    return made
