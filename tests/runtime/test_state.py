"""The state table: split heads, initial values, and states that do not belong to it."""

import numpy as np
import pytest

from xlstm_edge_runtime import StateError
from xlstm_edge_runtime.state import SLSTM_INITIAL_M, SMALL_INITIAL_M, StateSpec, StateTable, in_other_form

TABLE = StateTable([
    StateSpec("blocks.0.C", (2, 3, 64)).with_head_splits(4),
    StateSpec("blocks.0.n", (2, 3, 1)),
    StateSpec("blocks.1.y", (2, 1, 5)),
    StateSpec("blocks.1.m", (2, 1, 5), SLSTM_INITIAL_M),
])  # fmt: skip


def test_split_heads_merge_to_what_they_were() -> None:
    row = StateSpec("blocks.0.C", (2, 3, 64)).with_head_splits(4)
    merged = np.arange(2 * 2 * 3 * 64, dtype=np.float32).reshape(2, 2, 3, 64)
    held = row.to_graph(merged)
    assert (row.graph_shape, row.shape, row.nbytes) == ((8, 3, 16), (2, 3, 64), 4 * 2 * 3 * 64)
    np.testing.assert_array_equal(held[1, 5], merged[1, 1, :, 16:32])  # second head, second part
    np.testing.assert_array_equal(row.from_graph(held), merged)


def test_the_initial_state_is_what_the_graph_takes() -> None:
    initial = TABLE.initial(2)
    assert {name: array.shape for name, array in initial.items()} == TABLE.initial_shapes(2)
    assert initial["blocks.0.C"].shape == (2, 8, 3, 16)
    assert (initial["blocks.1.m"] == np.float32(SLSTM_INITIAL_M)).all()
    merged = TABLE.from_graph(TABLE.initial())
    TABLE.check(merged)
    assert sum(array.nbytes for array in merged.values()) == TABLE.nbytes


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "dtype"])
def test_a_state_of_another_model_is_refused(change: str) -> None:
    state = TABLE.from_graph(TABLE.initial())
    if change == "missing":
        del state["blocks.1.y"]
    elif change == "unknown":
        state["blocks.2.y"] = state["blocks.1.y"]
    else:
        array = state["blocks.0.C"]
        state["blocks.0.C"] = array[..., :-1] if change == "shape" else array.astype(np.float64)
    with pytest.raises(StateError, match="expected"):
        TABLE.check(state)


def test_two_tensors_of_one_name_are_no_table() -> None:
    with pytest.raises(StateError, match="distinct"):
        StateTable([StateSpec("C", (1,)), StateSpec("C", (1,))])


def test_a_graph_may_hold_a_stabilizer_less_a_constant_a_head() -> None:
    row = StateSpec("blocks.0.m", (1, 3), 0.0, 1, (10.0, -8.5, 0.25))
    seen = np.array([[[11.0, -8.0, 0.0]]], np.float32)
    np.testing.assert_array_equal(row.to_graph(seen), [[[1.0, 0.5, -0.25]]])
    np.testing.assert_array_equal(row.from_graph(row.to_graph(seen)), seen)


def test_a_start_value_of_float16_is_the_least() -> None:
    """A stabilizer that has seen nothing is -1e30 elsewhere, which float16 does not hold."""
    row = StateSpec("blocks.1.m", (2, 1, 2), SMALL_INITIAL_M)
    held = row.to_graph(np.full((1, 2, 1, 2), SLSTM_INITIAL_M, np.float32))
    assert (held == SMALL_INITIAL_M).all()
    wide = StateSpec("blocks.1.m", (2, 1, 2), SLSTM_INITIAL_M)
    assert (wide.to_graph(held) == SMALL_INITIAL_M).all()


BOUNDED = StateTable([StateSpec("blocks.0.C", (2, 3, 4)), StateSpec("blocks.0.n", (2, 3, 1)), *TABLE[2:]])


def test_the_two_forms_of_a_table() -> None:
    other = BOUNDED.other_form()
    assert [row.name for row in other] == [
        "blocks.0.C", "blocks.0.n", "blocks.0.m", "blocks.1.y", "blocks.1.m",
    ]  # fmt: skip
    assert other[2].shape == (1, 2)
    assert [(row.name, row.shape) for row in other.other_form()] == [(row.name, row.shape) for row in BOUNDED]


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 3.3e6])
def test_a_memory_with_a_stabilizer_and_back(size: float) -> None:
    """What is remembered is C exp(m), and no number of the stabilized one is large."""
    rng = np.random.default_rng(0)
    state = {name: rng.standard_normal(array.shape).astype(np.float32) for name, array in BOUNDED.initial().items()}
    for name in ("blocks.0.C", "blocks.0.n"):
        state[name] *= np.float32(size)
    stabilized = in_other_form(state, BOUNDED.other_form())
    assert stabilized.keys() == {row.name for row in BOUNDED.other_form()}
    assert np.abs(stabilized["blocks.0.n"]).max() <= 1.0 + 1e-5
    assert (stabilized["blocks.0.m"] >= 0).all()
    factor = np.exp(stabilized["blocks.0.m"]).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(stabilized["blocks.0.C"] * factor, state["blocks.0.C"], rtol=1e-5)
    back = in_other_form(stabilized, BOUNDED)
    for name, array in state.items():
        np.testing.assert_allclose(back[name], array, rtol=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        [("x", ()), ("x", ())],
        [("x.scale", (1, 2))],
        [("b.m.offset", (1, 2))],
        [("b.C", (2, 3, 4))],
        [("b.C", ()), ("b.n", (2, 3, 1))],
        [("b.C", (2, 3, 4)), ("b.n", ())],
        [("b.C", (2, 3, 4)), ("b.n", (3, 3, 1))],
        [("b.C", (2, 3, 4)), ("b.n", (2, 3, 1)), ("b.m", (2, 1))],
    ],
    ids=str,
)
def test_rows_that_do_not_agree_are_no_table(rows: list[tuple[str, tuple[int, ...]]]) -> None:
    with pytest.raises(StateError, match="the state table is damaged"):
        StateTable([StateSpec(name, shape) for name, shape in rows])


def test_rows_that_look_like_a_memory_and_are_none_stay() -> None:
    """The normalizer of an sLSTM cell, and names that merely end in the same letters."""
    rows = [("b.n", (2, 1, 5)), ("b.m", (2, 1, 5)), ("rescale", (1,)), ("C", (1,))]
    assert len(StateTable([StateSpec(name, shape) for name, shape in rows])) == len(rows)
