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
    column_scales = torch.from_numpy(scales).T.repeat_interleave(scheme.block_size, 0)[:columns][order]
    weight = torch.from_numpy(np.array(matrix.T, np.float32, order="C"))[order]
    integers = _round_columns(weight, _inverse_root(hessian, order), column_scales, scheme.zero_point)
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
    root = torch.linalg.cholesky(_damped(hessian.to(torch.float64), CORRECTION_DAMPING))
    moved = torch.cholesky_solve(cross.T.to(torch.float64), root).T.to(
        torch.float32
    )  # (K, K): correction a unit of weight
    original = torch.from_numpy(np.array(matrix, np.float32))
    result: FloatArray = (original + original @ moved).numpy()
    return result


def _scales(matrix: FloatArray, hessian: Tensor, scheme: Scheme) -> FloatArray:
    """Searched scales, columns weighted by how strongly the calibration excites them."""
    importance = torch.diagonal(hessian).numpy().astype(np.float32)
    return search_scales(matrix, scheme, importance / max(float(importance.mean()), 1e-30))


def _inverse_root(hessian: Tensor, order: Tensor) -> Tensor:
    """U with U^T U the inverse of the damped Hessian, upper triangular, float32.

    With the last row and column first, its Cholesky factor is upper triangular the other way round: H = R R^T, and U is
    the inverse of R. That is half the work of inverting H and factoring the inverse.
    """
    h = _damped(hessian.to(torch.float64)[order][:, order], DAMPING)
    root = torch.linalg.cholesky(h.flip(0, 1)).flip(0, 1)
    unit = torch.eye(len(h), dtype=h.dtype)
    inverse: Tensor = torch.linalg.solve_triangular(root, unit, upper=True)
    return inverse.to(torch.float32)


def _damped(hessian: Tensor, share: float) -> Tensor:
    mean = torch.diagonal(hessian).mean().clamp_min(1e-12)
    return hessian + torch.eye(len(hessian), dtype=hessian.dtype) * (share * mean)


def _round_columns(weight: Tensor, root: Tensor, scales: Tensor, zero_point: int) -> Tensor:
    """Integers (K, N) uint8 of `weight` (K, N), whose rows are the matrix's columns and lie together in memory.

    Errors inside a block of columns spread at once, beyond it once a block.
    """
    weight, columns = weight.clone(), len(weight)
    integers = torch.empty(weight.shape, dtype=torch.uint8)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty(end - start, weight.shape[1])
        for j in range(start, end):
            q = torch.clamp(torch.round(weight[j] / scales[j]), -zero_point, zero_point - 1)
            integers[j] = (q + zero_point).to(torch.uint8)
            errors[j - start] = (weight[j] - q * scales[j]) / root[j, j]
            weight[j:end] -= root[j, j:end, None] * errors[j - start]
        weight[end:] -= root[start:end, end:].T @ errors
    return integers
