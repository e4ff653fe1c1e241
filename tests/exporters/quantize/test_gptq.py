"""GPTQ against rounding to nearest, and the correction for inputs that carry errors."""

from typing import Any

import numpy as np
import pytest
import torch

from xlstm_edge_exporters.quantize import gptq as gptq_module
from xlstm_edge_exporters.quantize import pieces
from xlstm_edge_exporters.quantize.gptq import CORRECTION_DAMPING, corrected, gptq, gram
from xlstm_edge_exporters.quantize.scheme import Scheme
from xlstm_edge_exporters.quantize.sources import round_searched
from xlstm_edge_exporters.weights import loaded
from xlstm_edge_runtime.errors import InputError

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


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
    moved = corrected_for(matrix, wanted[:2000], got[:2000])

    def error(weight: np.ndarray[Any, Any]) -> float:
        return float(((got[2000:] @ weight.T - wanted[2000:] @ matrix.T) ** 2).sum())

    assert error(moved) < 0.2 * error(matrix)
    np.testing.assert_array_equal(corrected_for(matrix, wanted, wanted), matrix)


def corrected_for(matrix: Array, wanted: Array, got: Array) -> Array:
    """The correction for these inputs."""
    before, after = torch.from_numpy(wanted), torch.from_numpy(got)
    return corrected(matrix, gram(after), before, after)


@pytest.mark.parametrize("rows", [16, 40])
def test_a_correction_is_the_solution_of_least_squares(rows: int) -> None:
    """Fewer rows than columns, and more: damped normal equations in float64."""
    wanted, matrix = RNG.normal(size=(300, 24)), RNG.normal(size=(rows, 24)).astype(np.float32)
    got = wanted + 0.3 * RNG.normal(size=wanted.shape)
    damped = got.T @ got
    damped += CORRECTION_DAMPING * np.diag(damped).mean() * np.eye(24)
    expected = matrix + np.linalg.solve(damped, got.T @ (wanted - got) @ matrix.T).T
    moved = corrected_for(matrix, wanted.astype(np.float32), got.astype(np.float32))
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_half_a_hessian_is_computed_and_all_of_it_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlstm_edge_exporters.quantize.gptq.GRAM", 16)
    inputs = RNG.normal(size=(50, 41)).astype(np.float32)
    found = gram(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(found, inputs.T.astype(np.float64) @ inputs, atol=1e-4)
    assert np.array_equal(found, found.T)


def test_some_rows_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = RNG.normal(size=(500, 64)).astype(np.float32)
    other = inputs + 0.1 * RNG.normal(size=inputs.shape).astype(np.float32)
    for rows in (30, 90):  # less than the columns, and more
        matrix, scheme, hessian = (
            RNG.normal(size=(rows, 64)).astype(np.float32),
            Scheme(4, 32),
            gram(torch.from_numpy(other)),
        )
        whole, moved = gptq(matrix, hessian, scheme), corrected_for(matrix, inputs, other)
        with monkeypatch.context() as patch:
            patch.setattr(pieces, "LARGE_PIECE", 7 * 64)
            parts = gptq(matrix, hessian, scheme)
            np.testing.assert_allclose(corrected_for(matrix, inputs, other), moved, atol=1e-5)
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
