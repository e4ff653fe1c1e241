"""Test vectors by their documented rules: where they look, what they sum, what they allow."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from xlstm_edge_runtime import VerificationError
from xlstm_edge_runtime.providers import FLOAT16
from xlstm_edge_runtime.vectors import Expected, Vectors, make_inputs, output_sums, positions_of
from xlstm_edge_runtime.verify import _Worst

RNG = np.random.default_rng(5)


def splitmix(count: int, seed: int = 0) -> list[int]:
    """The published generator, in Python's integers."""
    numbers, state, mask = [], seed, (1 << 64) - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        numbers.append(z ^ (z >> 31))
    return numbers


@pytest.mark.parametrize(
    ("chunk", "positions"),
    [
        (1, (0, 2, 3, 7, 15, 24)),
        (8, (0, 2, 3, 7, 15, 24)),
        (16, (0, 2, 7, 15, 31, 40)),
        (64, (0, 2, 31, 63, 127, 136)),
        (128, (0, 2, 63, 127, 255, 264)),
        (4096, (0, 2, 63, 127, 255, 264)),
    ],
)
def test_positions_lie_around_two_chunks(chunk: int, positions: tuple[int, ...]) -> None:
    assert positions_of(chunk) == positions


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 512, 700, 1000])
def test_sums_are_those_of_the_rule(count: int) -> None:
    output = RNG.standard_normal(count)
    number = min(256, count)
    wanted = np.zeros(number)
    for j, random in enumerate(splitmix(count)):
        wanted[j % number] += -output[j] if random >> 63 else output[j]
    for s in range(number):
        wanted[s] /= math.sqrt(len(range(s, count, number)))
    np.testing.assert_allclose(output_sums(output), wanted, rtol=1e-12, atol=1e-12)


def test_inputs_are_those_of_the_rule() -> None:
    assert make_inputs(9, 50, vocab_size=1000, width=3).tolist() == [n % 1000 for n in splitmix(50, 9)]
    vectors = make_inputs(9, 50, vocab_size=None, width=3)
    assert vectors.dtype == np.float32
    assert vectors.ravel().tolist() == [(n >> 55) / 128 - 2 for n in splitmix(150, 9)]
    assert np.ptp(vectors) > 3.5


def expected(**values: Any) -> Expected:
    output = np.arange(8.0)
    ids = np.array([1, 6])
    made = Expected(0, ids, output[ids], output_sums(output), 7.0, 0.0, None)
    return dataclasses.replace(made, **values)


@pytest.mark.parametrize(
    ("error", "allowed"), [(0.0, 1e-5), (5e-7, 1e-5), (2e-6, 2e-5), (5e-4, 5e-3), (1e-3, 1e-2), (0.5, 1e-2)]
)
def test_ten_times_the_measured_float_error_is_allowed(error: float, allowed: float) -> None:
    assert expected(float_error=error).allowed_float == pytest.approx(allowed)


@pytest.mark.parametrize(
    ("error", "allowed"),
    [(0.0, 1e-2), (1e-3, 1e-2), (0.01, 0.025), (0.2, 0.5), (0.479, 1.1975), (0.481, None), (2.0, None)],
)
def test_two_and_a_half_times_the_measured_rounding_is_allowed(error: float, allowed: float | None) -> None:
    got = expected(rounding_error=error).allowed_rounding
    assert got is None if allowed is None else got == pytest.approx(allowed)


def test_differences_are_shares() -> None:
    """Of the range: the largest of a value or a sum. Of the outputs: root mean square over root mean square."""
    output, check = np.arange(8.0), expected()
    assert check.float_difference(output) == check.rounding_difference(output) == 0.0
    for index in range(8):
        for change in (0.7, -0.7):
            changed = output.copy()
            changed[index] += change
            assert check.float_difference(changed) == pytest.approx(0.1)
            assert check.rounding_difference(changed) == pytest.approx(0.7 / np.sqrt(np.square(output).sum()))
    assert check.rounding_difference(-output) == pytest.approx(2.0)
    assert check.rounding_difference(np.zeros(8)) == pytest.approx(1.0)
    value_only = expected(values=np.array([1.0, 6.5]))
    assert value_only.float_difference(output) == pytest.approx(0.5 / 7)


def passes(check: Expected, output: np.ndarray[Any, Any], worst: _Worst | None = None) -> bool:
    try:
        (worst or _Worst()).judge(check, output)
    except VerificationError:
        return False
    return True


def test_outputs_are_judged_by_what_their_weights_allow() -> None:
    output = np.arange(8.0)
    for check in (expected(float_error=1e-4), expected(rounding_error=0.0), expected(rounding_error=0.02)):
        quantized = check.rounding_error is not None
        scale = np.sqrt(np.square(output).sum()) if quantized else 7.0
        allowed = check.allowed_rounding if quantized else check.allowed_float
        assert allowed is not None
        for factor, passed in ((0.0, True), (0.95, True), (1.05, False), (10.0, False)):
            changed = output.copy()
            changed[3] += factor * allowed * scale
            assert passes(check, changed) == passed
        assert not passes(check, output * np.nan)


def test_where_rounding_decides_the_outputs_their_range_is_held() -> None:
    output, check = np.arange(8.0), expected(rounding_error=2.0)
    for factor, passed in ((1, True), (-1, True), (2.9, True), (3.1, False), (0.34, True), (0.33, False), (0, False)):
        assert passes(check, output * factor) == passed
    assert not passes(check, output * np.nan)


def test_sixteen_bits_have_a_bound_of_their_own_and_the_same_likeliest_token() -> None:
    ids, values = np.array([1, 7]), np.array([1.0, 7.0])
    output, check = np.arange(8.0), expected(float_error=1e-9, ids=ids, values=values)
    assert check.likeliest == 7
    for change, passed in ((0.0, True), (0.019, True), (-0.019, True), (0.021, False), (np.nan, False)):
        changed = output.copy()
        changed[3] += change * check.span
        assert passes(check, changed, _Worst(FLOAT16)) == passed
    close = expected(float_error=1e-9, ids=ids, values=values, span=1000.0)
    other = output.copy()
    other[6] = 7.5  # within the bound of such a range, and the largest
    assert not passes(close, other, _Worst(FLOAT16))
    assert passes(close, other, _Worst(FLOAT16, takes_ids=False))  # of vectors, no output is a token
    rounded = expected(rounding_error=0.02)  # of quantized weights as ever
    assert passes(rounded, output, _Worst(FLOAT16))


def test_sixteen_bits_are_told() -> None:
    worst = _Worst(FLOAT16)
    worst.judge(expected(position=15, ids=np.array([7]), values=np.array([7.0])), np.arange(8.0))
    assert str(worst) == "difference 0.0e+00 (allowed 2.0e-02), the same likeliest token; 16 bits, to token 15 only"
    assert "likeliest" not in str(_Worst(FLOAT16, takes_ids=False))


@pytest.mark.parametrize(
    ("steps", "positions"), [(16, [0, 2, 7, 15]), (3, [0, 2]), (1, [0]), (0, [0]), (99, [0, 2, 7, 15, 31])]
)
def test_vectors_are_cut_at_a_position(steps: int, positions: list[int]) -> None:
    whole = Vectors(np.arange(32), tuple(expected(position=p) for p in (0, 2, 7, 15, 31)))
    cut = whole.first(steps)
    assert [e.position for e in cut.expected] == positions
    assert cut.inputs.tolist() == list(range(positions[-1] + 1))


def test_the_worst_is_told() -> None:
    worst, check = _Worst(), expected(float_error=1e-4)
    for change in (0.001, 0.004, 0.002):
        worst.judge(check, np.arange(8.0) + np.array([0, 0, 0, change, 0, 0, 0, 0]))
    assert str(worst) == f"difference {0.004 / 7:.1e} (allowed 1.0e-03)"
