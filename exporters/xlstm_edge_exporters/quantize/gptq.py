"""GPTQ: round a matrix column by column, and let the columns not yet rounded make up for each error.

Frantar et al., arXiv:2210.17323, with static groups (scales are fixed beforehand, so they need no zero points and stay in
the layout that MatMulNBits reads) and the columns of largest activation first.
"""

import numpy as np
import torch
from torch import Tensor

from ..weights import FloatArray
from .scheme import Packed, Scheme

DAMPING = 0.01  # of the mean of the Hessian's diagonal: keeps directions that the calibration never saw invertible
BLOCK = 128


def gptq(matrix: FloatArray, hessian: Tensor, scheme: Scheme) -> Packed:
    """Integers of `matrix` (N, K) that minimize the error of its outputs; `hessian` (K, K) = sum of x x^T over inputs."""
    columns = matrix.shape[1]
    scales = _scales(matrix, hessian, scheme)
    order = torch.argsort(torch.diagonal(hessian), descending=True)
    column_scales = torch.from_numpy(scales).repeat_interleave(scheme.group, 1)[:, :columns][:, order]
    weight = torch.from_numpy(np.array(matrix, np.float32))[:, order]
    integers = _round_columns(weight, _inverse_root(hessian, order), column_scales, scheme.half)
    restored = torch.empty_like(integers)
    restored[:, order] = integers
    # Padding columns hold the integer that means 0; they meet no input.
    padded = np.full((len(matrix), scheme.groups(columns) * scheme.group), scheme.half, np.uint8)
    padded[:, :columns] = restored.numpy()
    return scheme.pack(padded.reshape(len(matrix), -1, scheme.group), scales)


def _scales(matrix: FloatArray, hessian: Tensor, scheme: Scheme) -> FloatArray:
    """Searched scales, columns weighted by how strongly the calibration excites them."""
    importance = torch.diagonal(hessian).numpy().astype(np.float32)[None]
    return scheme.best_scales(scheme.grouped(matrix), scheme.grouped(importance / max(float(importance.mean()), 1e-30)))


def _inverse_root(hessian: Tensor, order: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped Hessian, float32."""
    h = hessian.to(torch.float64)[order][:, order]
    mean = torch.diagonal(h).mean().clamp_min(1e-12)
    h = h + torch.eye(len(h), dtype=h.dtype) * (DAMPING * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    root: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return root.to(torch.float32)


def _round_columns(weight: Tensor, root: Tensor, scales: Tensor, half: int) -> Tensor:
    """Integers (N, K) uint8; errors inside a block of columns spread at once, beyond it once a block."""
    weight, columns = weight.clone(), weight.shape[1]
    integers = torch.empty(weight.shape, dtype=torch.uint8)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty(len(weight), end - start)
        for j in range(start, end):
            q = torch.clamp(torch.round(weight[:, j] / scales[:, j]), -half, half - 1)
            integers[:, j] = (q + half).to(torch.uint8)
            error = (weight[:, j] - q * scales[:, j]) / root[j, j]
            weight[:, j:end] -= error[:, None] * root[j, j:end]
            errors[:, j - start] = error
        weight[:, end:] -= errors @ root[start:end, end:]
    return integers
