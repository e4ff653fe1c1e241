"""Which way a matrix lies: tables as they are, products turned."""

import numpy as np
import pytest

from xlstm_edge_exporters.quantize.orientation import as_canonical, as_matrix, canonical_shape, matrix_shape


@pytest.mark.parametrize(
    ("name", "rows", "columns"), [("embedding.weight", 5, 3), ("head.weight", 5, 3), ("blocks.0.ffn.down.weight", 3, 5)]
)
def test_outputs_are_rows(name: str, rows: int, columns: int) -> None:
    weight = np.arange(15, dtype=np.float32).reshape(
        5, 3
    )  # (inputs, outputs) of a product, (vocabulary, width) of a table
    matrix = as_matrix(name, weight)
    assert matrix.shape == matrix_shape(name, weight.shape) == (rows, columns)
    assert matrix.flags.c_contiguous
    assert canonical_shape(name, rows, columns) == weight.shape
    np.testing.assert_array_equal(as_canonical(name, matrix), weight)
    assert matrix[1, 0] == (weight[0, 1] if name.startswith("blocks") else weight[1, 0])
