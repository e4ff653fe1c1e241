"""GPTQ: round a matrix column by column, and let the columns not yet rounded make up for each error.

Frantar et al., arXiv:2210.17323, with static blocks (scales are fixed beforehand, so they need no zero points and stay in
the layout that MatMulNBits reads) and the columns of largest activation first. Before that the matrix may be moved to
where it makes up for errors that its inputs already carry (Li et al., arXiv:2504.02692).
"""

import numpy as np
import torch
from torch import Tensor

from ..weights import FloatArray
from .rounding import search_scales
from .scheme import Packed, Scheme

DAMPING = 0.01  # of the mean of the Hessian's diagonal: keeps directions that the calibration never saw invertible
CORRECTION_DAMPING = 0.1  # a correction is learnt from the calibration alone, so it is held back more
BLOCK = 32  # columns whose errors spread at once; few enough for them to stay in the cache


def gptq(matrix: FloatArray, hessian: Tensor, scheme: Scheme) -> Packed:
    """Integers of `matrix` (N, K) that minimize the error of its outputs; `hessian` (K, K) = sum of x x^T over inputs."""
    columns = matrix.shape[1]
    scales = _scales(matrix, hessian, scheme)
    order = torch.argsort(torch.diagonal(hessian), descending=True)
    root, by_block = _inverse_root(hessian, order), torch.from_numpy(np.ascontiguousarray(scales.T))
    weight = torch.from_numpy(np.ascontiguousarray(matrix.T))[order]
    integers = _round_columns(weight, root, by_block, order // scheme.block_size, scheme.zero_point)
    restored = torch.empty_like(integers)
    restored[order] = integers
    # Padding columns hold the integer that means 0; they meet no input.
    padded = np.full((len(matrix), scheme.blocks_per_row(columns) * scheme.block_size), scheme.zero_point, np.uint8)
    padded[:, :columns] = restored.numpy().T
    return scheme.pack(padded.reshape(len(matrix), -1, scheme.block_size), scales)


def corrected(matrix: FloatArray, hessian: Tensor, cross: Tensor) -> FloatArray:
    """`matrix` (N, K) moved so that with the inputs it gets its outputs are nearest those it had with the inputs of before.

    `hessian` (K, K) is the sum of x x^T over the inputs x it gets, `cross` the sum of (w - x) x^T with w those of before.
    """
    root = _factor(_damped(hessian, CORRECTION_DAMPING))
    weight = torch.from_numpy(np.array(matrix, np.float32))
    if len(matrix) < matrix.shape[1]:  # the side with less to solve first
        change = torch.cholesky_solve((weight @ cross).T, root).T
    else:
        change = weight @ torch.cholesky_solve(cross.T, root).T
    result: FloatArray = weight.add_(change).numpy()
    return result


def _scales(matrix: FloatArray, hessian: Tensor, scheme: Scheme) -> FloatArray:
    """Searched scales, columns weighted by how strongly the calibration excites them."""
    importance = torch.diagonal(hessian).numpy().astype(np.float32)
    return search_scales(matrix, scheme, importance / max(float(importance.mean()), 1e-30))


def _inverse_root(hessian: Tensor, order: Tensor) -> Tensor:
    """U with U^T U the inverse of the damped Hessian, its rows and columns in this order, upper triangular, float32.

    With the last row and column first, a Cholesky factor L of H is one of the other kind the other way round, and so is its
    inverse: U is the inverse of L turned back. That is half the work of inverting H and factoring the inverse.
    """
    backwards = order.flip(0)
    root = _factor(_damped(hessian[backwards][:, backwards], DAMPING))
    inverse = torch.eye(len(root))
    torch.linalg.solve_triangular(root, inverse, upper=False, out=inverse)
    return inverse.flip(0, 1)


def _factor(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor, float32; by way of float64 where the matrix is too near to singular for float32."""
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        root = torch.linalg.cholesky(matrix.to(torch.float64)).to(torch.float32)
    return root


def _damped(hessian: Tensor, share: float) -> Tensor:
    """A copy with a share of the diagonal's mean added to the diagonal."""
    damped = hessian.clone()
    damped.diagonal().add_(share * torch.diagonal(hessian).mean().clamp_min(1e-12))
    return damped


def _round_columns(weight: Tensor, root: Tensor, scales: Tensor, blocks: Tensor, zero_point: int) -> Tensor:
    """Integers (K, N) uint8 of `weight` (K, N), whose rows are the matrix's columns and lie together in memory; used up.

    Row k is on the scales (N,) of block `blocks[k]`. Errors inside a block of columns spread at once, beyond it once a block.
    """
    columns = len(weight)
    integers = torch.empty(weight.shape, dtype=torch.uint8)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty(end - start, weight.shape[1])
        for j in range(start, end):
            scale, error = scales[blocks[j]], errors[j - start]
            q = torch.clamp(torch.round(weight[j] / scale), -zero_point, zero_point - 1)
            integers[j] = (q + zero_point).to(torch.uint8)
            torch.div(weight[j] - q * scale, root[j, j], out=error)
            weight[j:end].addr_(root[j, j:end], error, alpha=-1)
        weight[end:].addmm_(root[start:end, end:].T, errors, alpha=-1)
    return integers
