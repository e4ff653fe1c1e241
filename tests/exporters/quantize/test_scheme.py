"""Blocks of integers: rounding, packing, the layout that onnxruntime reads, searched scales."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from xlstm_edge_exporters.quantize.scheme import BITS, BLOCK_SIZES, BLOCK_SIZES_OF_2_BITS, Scheme
from xlstm_edge_exporters.quantize.sources import round_searched, round_to_nearest
from xlstm_edge_exporters.weights import loaded
from xlstm_edge_runtime import InputError
from xlstm_edge_runtime.integers import to_float

RNG = np.random.default_rng(0)


SCHEMES = [(bits, group) for bits in BITS for group in BLOCK_SIZES if bits != 2 or group in BLOCK_SIZES_OF_2_BITS]


@given(st.sampled_from([s for s in SCHEMES if s[1] <= 64]), st.integers(1, 5), st.integers(1, 150), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rounding_error_is_at_most_half_a_step(sizes: tuple[int, int], rows: int, columns: int, seed: int) -> None:
    bits, group = sizes
    scheme, matrix = Scheme(bits, group), np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    packed = round_to_nearest("w", loaded(matrix), scheme)
    assert packed.data.shape == (rows, -(-columns // group), group * bits // 8)
    steps = np.repeat(np.abs(packed.scales), group, 1)[:, :columns]
    error = np.abs(scheme.dequantize(packed, columns) - matrix)
    # The end of the range that reaches less far may clip by one whole step.
    assert (error <= steps * 1.0001).all()
    assert (error <= steps * 0.5001).mean() > 0.5
    assert packed.data.nbytes + packed.scales.nbytes == scheme.nbytes(rows, columns)


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_lossless(bits: int) -> None:
    scheme = Scheme(bits, 32)
    integers = RNG.integers(0, 2**bits, (3, 2, 32)).astype(np.uint8)
    packed = scheme.pack(integers, np.ones((3, 2), np.float32))
    assert np.array_equal(scheme.dequantize(packed, 64) + scheme.zero_point, integers.reshape(3, 64))


def test_a_zero_matrix_stays_zero() -> None:
    packed = round_to_nearest("w", loaded(np.zeros((2, 40), np.float32)), Scheme(4, 32))
    assert not Scheme(4, 32).dequantize(packed, 40).any()


@pytest.mark.parametrize(("bits", "group"), SCHEMES)
@pytest.mark.parametrize(("rows", "columns"), [(24, 256), (7, 48), (10, 50), (33, 200)])
def test_onnxruntime_reads_the_layout(bits: int, group: int, rows: int, columns: int) -> None:
    """The operator in full precision mode computes what `dequantize` says, also for a last group that is not full."""
    scheme, matrix = Scheme(bits, group), RNG.normal(size=(rows, columns)).astype(np.float32)
    packed = round_to_nearest("w", loaded(matrix), scheme)
    x = RNG.normal(size=(2, columns)).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", K=columns, N=rows, bits=bits, block_size=group
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, rows])],
        [onnx.numpy_helper.from_array(packed.data, "q"), onnx.numpy_helper.from_array(packed.scales, "s")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    got = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, x @ scheme.dequantize(packed, columns).T, atol=2e-4, rtol=1e-4)


def test_searched_scales_beat_plain_ones() -> None:
    scheme, matrix = Scheme(4, 32), (RNG.normal(size=(64, 128)) ** 3).astype(np.float32)
    plain, searched = (
        scheme.dequantize(f("w", loaded(matrix), scheme), 128) for f in (round_to_nearest, round_searched)
    )
    assert ((searched - matrix) ** 2).sum() < 0.97 * ((plain - matrix) ** 2).sum()


@pytest.mark.parametrize("bad", [(3, 32), (2, 16), (2, 256), (4, 48)], ids=str)
def test_bad_schemes(bad: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        Scheme(*bad)


def test_scales_of_a_damaged_file_are_no_warning() -> None:
    """Whoever compares the outputs refuses them in a sentence."""
    data = np.zeros((1, 1, 16), np.uint8)
    assert np.isinf(to_float(data, np.array([[3e38]], np.float32), 4)).all()
