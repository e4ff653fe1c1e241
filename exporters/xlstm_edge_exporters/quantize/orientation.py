"""Which way a matrix lies: quantization works on (N, K) = (outputs, inputs), the canonical weights of products are (K, N).

Embedding and head are stored (vocabulary, width), which is (N, K) already: a row of the table is a token's vector, and as
the head it is that token's weights.
"""

from collections.abc import Sequence

from ..weights import FloatArray, permuted

EMBEDDING, HEAD = "embedding.weight", "head.weight"


def is_table(name: str) -> bool:
    """Whether a canonical weight is the embedding or the head."""
    return name in (EMBEDDING, HEAD)


def matrix_shape(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """(N, K) of a canonical weight."""
    first, second = shape
    return (first, second) if is_table(name) else (second, first)


def canonical_shape(name: str, rows: int, columns: int) -> tuple[int, int]:
    """The shape of the canonical weight that is an (N, K) matrix of so many rows and columns."""
    return (rows, columns) if is_table(name) else (columns, rows)


def as_matrix(name: str, array: FloatArray) -> FloatArray:
    """A canonical weight as (N, K), contiguous; a view of a table."""
    return array if is_table(name) else permuted(array, (1, 0))


def as_canonical(name: str, matrix: FloatArray) -> FloatArray:
    """The inverse of `as_matrix`."""
    return matrix if is_table(name) else permuted(matrix, (1, 0))
