"""GPTQ: round a matrix column by column, and let the columns not yet rounded make up for each error.

Frantar et al., arXiv:2210.17323, with static blocks (scales are fixed beforehand, so they need no zero points and stay in
the layout that MatMulNBits reads) and the columns of largest activation first. Before that the matrix may be moved to
where it makes up for errors that its inputs already carry (Li et al., arXiv:2504.02692).
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from xlstm_edge_runtime.errors import InputError

from ..weights import FloatArray
from .pieces import large_parts
from .rounding import search_scales
from .scheme import Packed, Scheme

DAMPING = 0.01  # of the mean of the Hessian's diagonal: keeps directions that the calibration never saw invertible
CORRECTION_DAMPING = 0.1  # a correction is learnt from the calibration alone, so it is held back more
GRAM = 512  # columns of a Hessian at a time
BLOCK = 32  # columns whose errors spread at once; few enough for them to stay in the cache


def gptq(matrix: FloatArray, hessian: Tensor, scheme: Scheme) -> Packed:
    """Integers of `matrix` (N, K) that minimize the error of its outputs; `hessian` (K, K) = sum of x x^T over inputs.

    Rows do not depend on each other: some at a time, so that little memory is needed beside the Hessian.
    """
    rows, columns = matrix.shape
    blocks = scheme.blocks_per_row(columns)
    data = np.empty((rows, blocks, scheme.block_size * scheme.bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    order = torch.argsort(torch.diagonal(hessian), descending=True)
    root = _inverse_root(hessian, order)
    for part in large_parts(rows, columns):
        packed = _gptq_rows(matrix[part], torch.diagonal(hessian), root, order, scheme)
        data[part], scales[part] = packed.data, packed.scales
    return Packed(data, scales)


def _gptq_rows(matrix: FloatArray, strength: Tensor, root: Tensor, order: Tensor, scheme: Scheme) -> Packed:
    """The same for some rows; `strength` (K,) is the Hessian's diagonal, `root` and `order` those of `_inverse_root`."""
    scales, columns = _scales(matrix, strength, scheme), matrix.shape[1]
    by_block = torch.from_numpy(np.ascontiguousarray(scales.T))
    weight = torch.from_numpy(matrix).T.contiguous()[order]
    integers = _round_columns(weight, root, by_block, order // scheme.block_size, scheme.zero_point)
    restored = torch.empty_like(integers)
    restored[order] = integers
    # Padding columns hold the integer that means 0; they meet no input.
    padded = np.full((len(matrix), scheme.blocks_per_row(columns) * scheme.block_size), scheme.zero_point, np.uint8)
    padded[:, :columns] = restored.T.contiguous().numpy()
    return scheme.pack(padded.reshape(len(matrix), -1, scheme.block_size), scales)


def gram(inputs: Tensor) -> Tensor:
    """The sum of x x^T over inputs (S, K): (K, K), of which one half is computed and the other a copy."""
    columns = inputs.shape[1]
    result = torch.empty(columns, columns)
    for start in range(0, columns, GRAM):
        end = min(start + GRAM, columns)
        result[start:end, start:] = inputs[:, start:end].T @ inputs[:, start:]
        result[end:, start:end] = result[start:end, end:].T
        square = result[start:end, start:end]  # whose halves a kernel may sum in two orders
        square.copy_(torch.triu(square) + torch.triu(square, 1).T)
    return result


def corrected(matrix: FloatArray, hessian: Tensor, wanted: Tensor, got: Tensor) -> FloatArray:
    """`matrix` (N, K) moved so that with inputs `got` (S, K) its outputs are nearest those it had with inputs `wanted` (S, K).

    `hessian` (K, K) is the `gram` of `got`.
    """
    rows, columns = matrix.shape
    result, lost = torch.from_numpy(np.array(matrix, np.float32)), wanted - got
    if rows < columns:  # the side with less to solve first: what changes in each row, or a unit of weight of all rows
        change = got.T @ (lost @ result.T)
        del lost  # as large as what comes next
        return result.add_(_solved(hessian, change).T).numpy()
    shared = _solved(hessian, got.T @ lost).T
    for part in large_parts(rows, columns):
        result[part] += result[part] @ shared
    return result.numpy()


def _solved(hessian: Tensor, right: Tensor) -> Tensor:
    """The damped Hessian's inverse times `right` (K, M), in its place."""
    with _damped(hessian, CORRECTION_DAMPING) as damped:
        root = _factor(damped)
    torch.linalg.solve_triangular(root, right, upper=False, out=right)
    torch.linalg.solve_triangular(root.mT, right, upper=True, out=right)
    return right


def _scales(matrix: FloatArray, strength: Tensor, scheme: Scheme) -> FloatArray:
    """Searched scales, columns weighted by how strongly the calibration excites them."""
    importance = strength.numpy().astype(np.float32)
    return search_scales(matrix, scheme, importance / max(float(importance.mean()), 1e-30))


def _inverse_root(hessian: Tensor, order: Tensor) -> Tensor:
    """U with U^T U the inverse of the damped Hessian, its rows and columns in this order, upper triangular, float32.

    With the last row and column first, a Cholesky factor L of H is one of the other kind the other way round, and so is its
    inverse: U is the inverse of L turned back. That is half the work of inverting H and factoring the inverse.
    """
    backwards = order.flip(0)
    with _damped(hessian[backwards[:, None], backwards], DAMPING) as damped:
        root = _factor(damped)
    del damped
    inverse = torch.eye(len(root))
    torch.linalg.solve_triangular(root, inverse, upper=False, out=inverse)
    del root  # as large as what is made next
    return inverse.flip(0, 1)


def _factor(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor, float32; by way of float64 where the matrix is too near to singular for float32.

    InputError for one that is not positive definite at all: activations overflowed, or are no numbers.
    """
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        exact, failed = torch.linalg.cholesky_ex(matrix.to(torch.float64))
        root = exact.to(torch.float32)
    if failed:
        raise InputError(
            "expected activations to calibrate on that float32 holds, got others; pass --method rtn, which needs none"
        )
    return root


@contextlib.contextmanager
def _damped(hessian: Tensor, share: float) -> Iterator[Tensor]:
    """The matrix with a share of its diagonal's mean added to the diagonal, for a while: a copy would be as large."""
    diagonal = torch.diagonal(hessian)
    before = diagonal.clone()
    try:
        diagonal.add_(share * before.mean().clamp_min(1e-12))
        yield hessian
    finally:
        diagonal.copy_(before)


def _round_columns(weight: Tensor, root: Tensor, scales: Tensor, blocks: Tensor, zero_point: int) -> Tensor:
    """Integers (K, N) uint8 of `weight` (K, N), whose rows are the matrix's columns and lie together in memory; used up.

    Row k is on the scales (N,) of block `blocks[k]`. Errors inside a block of columns spread at once, beyond it once a block.
    """
    columns, rows, scales_of = len(weight), weight.unbind(), scales.unbind()
    strengths, block_of = torch.diagonal(root).tolist(), blocks.tolist()
    integers = torch.empty(weight.shape, dtype=torch.uint8)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        values, errors = torch.empty(end - start, weight.shape[1]), torch.empty(end - start, weight.shape[1])
        # Few small operations a column: calling one costs more than what it does.
        for j, q, error in zip(range(start, end), values, errors, strict=True):
            scale = scales_of[block_of[j]]
            torch.div(rows[j], scale, out=q).round_().clamp_(-zero_point, zero_point - 1)
            torch.addcmul(rows[j], q, scale, value=-1, out=error).div_(strengths[j])
            weight[j:end].addr_(root[j, j:end], error, alpha=-1)
        integers[start:end] = values.add_(zero_point)
        weight[end:].addmm_(root[start:end, end:].T, errors, alpha=-1)
    return integers
