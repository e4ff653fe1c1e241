"""The state table: split heads, initial values, and states that do not belong to it."""

import numpy as np
import pytest

from xlstm_edge_runtime import StateError
from xlstm_edge_runtime.state import SLSTM_INITIAL_M, StateSpec, StateTable

TABLE = StateTable([
    StateSpec("blocks.0.C", (2, 3, 64)).with_head_splits(4),
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
