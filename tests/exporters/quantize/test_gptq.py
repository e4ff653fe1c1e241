"""GPTQ against rounding to nearest, and the correction for inputs that carry errors."""

from typing import Any

import numpy as np
import pytest
import torch

from xlstm_edge_exporters.quantize import gptq as gptq_module
from xlstm_edge_exporters.quantize import pieces
from xlstm_edge_exporters.quantize.gptq import corrected, gptq
from xlstm_edge_exporters.quantize.scheme import Scheme
from xlstm_edge_exporters.quantize.sources import round_searched
from xlstm_edge_exporters.weights import loaded
from xlstm_edge_runtime.errors import InputError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [2, 4])
def test_gptq_beats_rounding_on_correlated_inputs(bits: int) -> None:
    columns, scheme = 96, Scheme(bits, 32)
    mix = RNG.normal(size=(columns, columns)) * (RNG.random(columns) ** 3)
    inputs = (RNG.normal(size=(2000, columns)) @ mix.T).astype(np.float32)
    matrix = RNG.normal(size=(40, columns)).astype(np.float32)
    hessian = torch.from_numpy(inputs.T @ inputs)
    exact = inputs @ matrix.T

    def error(packed: Any) -> float:
        return float(((inputs @ scheme.dequantize(packed, columns).T - exact) ** 2).sum())

    assert error(gptq(matrix, hessian, scheme)) < 0.6 * error(round_searched("w", loaded(matrix), scheme))


def test_a_correction_makes_up_for_errors_of_the_inputs() -> None:
    """Outputs on disturbed inputs come nearer to those on the undisturbed ones, on samples the fit never saw."""
    wanted = RNG.normal(size=(4000, 24)).astype(np.float32)
    got = (wanted @ (np.eye(24) + 0.2 * RNG.normal(size=(24, 24)))).astype(np.float32)
    matrix = RNG.normal(size=(7, 24)).astype(np.float32)
    moved = corrected(matrix, *sums(wanted[:2000], got[:2000]))

    def error(weight: np.ndarray[Any, Any]) -> float:
        return float(((got[2000:] @ weight.T - wanted[2000:] @ matrix.T) ** 2).sum())

    assert error(moved) < 0.2 * error(matrix)
    same = corrected(matrix, *sums(wanted, wanted))
    np.testing.assert_array_equal(same, matrix)


def sums(wanted: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a correction is made from: sums over the inputs."""
    return torch.from_numpy(got.T @ got), torch.from_numpy((wanted - got).T @ got)


def test_some_rows_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = RNG.normal(size=(500, 64)).astype(np.float32)
    other = inputs + 0.1 * RNG.normal(size=inputs.shape).astype(np.float32)
    for rows in (30, 90):  # less than the columns, and more
        matrix, scheme, (hessian, cross) = (
            RNG.normal(size=(rows, 64)).astype(np.float32),
            Scheme(4, 32),
            sums(inputs, other),
        )
        whole, moved = gptq(matrix, hessian, scheme), corrected(matrix, hessian, cross)
        with monkeypatch.context() as patch:
            patch.setattr(pieces, "LARGE_PIECE", 7 * 64)
            parts = gptq(matrix, hessian, scheme)
            np.testing.assert_allclose(corrected(matrix, hessian, cross), moved, atol=1e-5)
        assert np.array_equal(parts.data, whole.data)
        assert np.array_equal(parts.scales, whole.scales)


def test_a_nearly_singular_hessian_is_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two directions and next to nothing else: what float32 cannot factor, float64 can."""
    directions = RNG.normal(size=(256, 2))
    hessian = torch.from_numpy((directions @ directions.T).astype(np.float32))
    monkeypatch.setattr(gptq_module, "DAMPING", 3e-6)
    diagonal = float(torch.diagonal(hessian).mean())
    assert torch.linalg.cholesky_ex(hessian + 3e-6 * diagonal * torch.eye(256))[1]  # float32 really cannot
    packed = gptq(RNG.normal(size=(5, 256)).astype(np.float32), hessian, Scheme(4, 32))
    assert np.isfinite(packed.scales).all()


def test_activations_that_are_no_numbers_are_one_sentence() -> None:
    hessian = torch.full((64, 64), torch.nan)
    with pytest.raises(InputError, match=r"expected .* got .*; pass --method rtn"):
        gptq(np.ones((3, 64), np.float32), hessian, Scheme(4, 32))


def test_gptq_without_correlation_is_rounding() -> None:
    scheme, matrix = Scheme(8, 32), RNG.normal(size=(5, 50)).astype(np.float32)
    packed = gptq(matrix, torch.eye(50), scheme)
    assert np.abs(scheme.dequantize(packed, 50) - matrix).max() < 0.6 * np.abs(packed.scales).max()
