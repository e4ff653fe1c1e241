"""Sessions on a real bundle: state, forks, snapshots, bad input, threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xlstm_edge_runtime as xr

from ..conftest import BY_NAME
from ..oracles.cases import Case

ModelOf = Callable[[Case, str], xr.Model]


@pytest.fixture(params=["cpu", "portable"])
def model(request: pytest.FixtureRequest, model_of: ModelOf) -> xr.Model:
    """A v1 model with both kinds of blocks, in each target."""
    return model_of(BY_NAME["lm-mixed"], request.param)


@pytest.fixture
def stack(model_of: ModelOf) -> xr.Model:
    """A bare stack: vectors in, vectors out."""
    return model_of(BY_NAME["stack-mixed"], "cpu")


def test_outputs_are_of_the_right_shape(model: xr.Model, stack: xr.Model) -> None:
    logits = model.session().prefill([5, 17, 3])
    assert (logits.shape, logits.dtype, logits.flags.writeable) == ((97,), np.float32, True)
    hidden = stack.session().step(np.ones(28, np.float32))
    assert (hidden.shape, hidden.dtype) == ((28,), np.float32)


def test_a_reset_session_is_a_fresh_one(model: xr.Model) -> None:
    session = model.session()
    first = session.prefill([1, 2, 3]).copy()
    session.prefill([9] * 40)
    session.reset()
    assert session.tokens == 0
    assert np.array_equal(session.prefill([1, 2, 3]), first)


def test_a_fork_goes_its_own_way(model: xr.Model) -> None:
    session = model.session()
    session.prefill([1, 2, 3])
    branch = session.fork()
    assert branch.tokens == 3
    expected = session.step(4).copy()
    branch.step(90)
    again = model.session()
    again.prefill([1, 2, 3])
    assert np.array_equal(again.step(4), expected)
    assert not np.array_equal(branch.step(4), session.step(4))


def test_a_saved_state_continues_bit_equal(model: xr.Model, tmp_path: Path) -> None:
    session, other = model.session(), model.session()
    session.prefill(range(30))
    session.save(tmp_path / "state")
    other.load(tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    for token in (5, 6, 7):
        assert np.array_equal(session.step(token), other.step(token))
    assert other.tokens == session.tokens == 33


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("spoil", [damage, Path.unlink, lambda p: p.write_bytes(b"no"), lambda p: p.write_bytes(b"")])
def test_a_damaged_snapshot_changes_nothing(spoil: Callable[[Path], Any], model: xr.Model, tmp_path: Path) -> None:
    session = model.session()
    expected = session.prefill([1, 2]).copy()
    session.save(tmp_path / "state")
    spoil(tmp_path / "state")
    fresh = model.session()
    with pytest.raises(xr.StateError, match="expected"):
        fresh.load(tmp_path / "state")
    assert np.array_equal(fresh.prefill([1, 2]), expected)


def test_a_snapshot_of_another_checkpoint_is_refused(model: xr.Model, stack: xr.Model, tmp_path: Path) -> None:
    model.session().save(tmp_path / "state")
    with pytest.raises(xr.StateError, match="another"):
        stack.session().load(tmp_path / "state")


BAD_TOKENS: list[Any] = [
    [97], [-1], [1.5], ["a"], [[1, 2]], [True], [2**70], "abc", None, [None], [10**5000], [[]] * 9,
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_TOKENS, ids=range(len(BAD_TOKENS)))
def test_bad_tokens_are_refused_and_change_nothing(bad: Any, model: xr.Model) -> None:
    session = model.session()
    with pytest.raises(xr.InputError, match="expected"):
        session.prefill(bad)
    assert session.tokens == 0
    assert np.array_equal(session.prefill([3]), model.session().prefill([3]))


@pytest.mark.parametrize(
    "bad", [np.ones(27), np.ones((2, 28)), np.full(28, np.nan), "x"], ids=["short", "2d", "nan", "text"]
)
def test_bad_vectors_are_refused(bad: Any, stack: xr.Model) -> None:
    with pytest.raises(xr.InputError, match="expected"):
        stack.session().step(bad)


def test_an_empty_prompt_is_refused(model: xr.Model) -> None:
    with pytest.raises(xr.InputError, match="at least one token"):
        model.session().prefill([])


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_bad_thread_counts_are_refused(threads: Any, bundle_of: Callable[[Case, str], Path]) -> None:
    with pytest.raises(xr.InputError, match="threads"):
        xr.load(bundle_of(BY_NAME["lm-mixed"], "cpu"), threads=threads)


def test_a_missing_provider_is_refused(bundle_of: Callable[[Case, str], Path]) -> None:
    with pytest.raises(xr.InputError, match="NoSuchProvider"):
        xr.load(bundle_of(BY_NAME["lm-mixed"], "cpu"), provider="NoSuchProvider")


def test_sessions_in_threads_do_not_disturb_each_other(model: xr.Model) -> None:
    def run(seed: int) -> np.ndarray[Any, Any]:
        session, rng = model.session(), np.random.default_rng(seed)
        for token in rng.integers(0, 97, 60):
            output = session.step(int(token))
        return output.copy()

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_generation_streams_events_and_continues(model: xr.Model) -> None:
    session = model.session()
    *tokens, finish = session.generate([5, 17], max_tokens=10, temperature=0.8, seed=1)
    assert isinstance(finish, xr.Finish)
    assert finish.usage == xr.Usage(2, 10)
    assert session.tokens == 12
    again = model.session().generate([5, 17], max_tokens=10, temperature=0.8, seed=1)
    assert [t.id for t in tokens] == [t.id for t in again if isinstance(t, xr.Token)]


def test_text_needs_a_tokenizer(model: xr.Model) -> None:
    with pytest.raises(xr.InputError, match="without"):
        model.stream("hello")


def test_mapped_weights_compute_the_same(model: xr.Model) -> None:
    expected = model.session().prefill(range(40))
    got = xr.load(model.folder, threads=1, mapped=True).session().prefill(range(40))
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.ptp(expected))
