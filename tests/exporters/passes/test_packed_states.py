"""genai's graph: every state in two tensors a layer, the same numbers as the bundle's graph, also where memory is shared."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from xlstm_edge_exporters.passes.packed_states import NEVER, PAST, PRESENT, layers_of, packed_sizes
from xlstm_edge_runtime import load
from xlstm_edge_runtime.manifest import read_manifest
from xlstm_edge_runtime.opening import open_graph, session_options
from xlstm_edge_runtime.providers import CPU
from xlstm_edge_runtime.state import StateSpec, StateTable

from ...changed_bundles import change_tensor
from ...conftest import BY_NAME, sequence_for
from ...oracles.cases import CASES, Case
from ...oracles.reference import Reference

BundleOf = Callable[[Case, str], Path]
TOKENS = [case for case in CASES if case.family != "xlstm_stack"]
CHUNK = 16  # of the bundles that `bundle_of` exports
SPLITS = [[1] * 20, [CHUNK] * 5, [1, 15, 3, 16, 2, 7], [150], [300, 1, 1]]
FLOAT32 = 1e-4  # of the range of the logits, as tests/README.md says


def genai_graph(bundle: Path, threads: int = 1) -> ort.InferenceSession:
    return open_graph(bundle / "model.genai.onnx", session_options(threads), CPU)


def run(
    session: ort.InferenceSession, calls: Sequence[NDArray[Any]], *, shared: bool
) -> tuple[list[NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Last logits of each call, and the states at the end; with `shared` outputs lie in the memory of the inputs."""
    states = {value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs()[1:]}
    given = {name: array if shared else np.full_like(array, np.nan) for name, array in states.items()}
    logits, seen = np.zeros(session.get_outputs()[0].shape, np.float32), []
    binding = session.io_binding()
    for ids in calls:
        for name, array in states.items():
            other = given[name]
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            binding.bind_output(name.replace(PAST, PRESENT), "cpu", 0, np.float32, other.shape, other.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids[None], np.int64))
        session.run_with_iobinding(binding)
        states, given = given, states
        seen.append(logits[0, 0].copy())
    return seen, states


def cut(ids: NDArray[Any], sizes: Sequence[int]) -> list[NDArray[Any]]:
    return np.split(ids[: sum(sizes)], np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("case", TOKENS, ids=str)
def test_it_computes_the_recurrence_for_calls_of_any_length(
    case: Case, bundle_of: BundleOf, checkpoint_of: Callable[[Case], Path]
) -> None:
    """Beside the one in float64: also where one call is far longer than the bundle's chunk."""
    bundle = bundle_of(case, "genai")
    vocabulary, session = read_manifest(bundle).model.vocab_size, genai_graph(bundle)
    assert vocabulary is not None
    ids = sequence_for(case, 302)
    expected = Reference(checkpoint_of(case)).run(ids)
    for sizes in SPLITS:
        got, _ = run(session, cut(ids, sizes), shared=True)
        for end, logits in zip(np.cumsum(sizes), got, strict=True):
            wanted = expected[end - 1]
            assert np.abs(logits[:vocabulary] - wanted).max() <= FLOAT32 * np.ptp(wanted)


@pytest.mark.parametrize("case", TOKENS, ids=str)
def test_it_is_the_bundle_s_graph_to_the_bit(case: Case, bundle_of: BundleOf) -> None:
    """Its numbers, in other places: logits and states."""
    bundle = bundle_of(case, "genai")
    manifest, ids = read_manifest(bundle), sequence_for(case, 40)
    plain = load(bundle, threads=1, tuned=False).session()
    calls = cut(ids, [CHUNK, 1, 1, CHUNK, 5, 1])
    got, states = run(genai_graph(bundle), calls, shared=False)
    for part, logits in zip(calls, got, strict=True):
        np.testing.assert_array_equal(logits[: manifest.model.vocab_size], plain.prefill(part))
    wanted = manifest.state.to_graph(plain.state)
    for name, array in unpacked(manifest.state, states).items():
        np.testing.assert_array_equal(array, wanted[name])


def unpacked(table: StateTable, states: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The plain graph's states, out of genai's."""
    found = {}
    for index, layer in enumerate(layers_of(table)):
        for kind in ("conv_state", "recurrent_state"):
            flat, start = states[f"{PAST}.{index}.{kind}"].reshape(-1), 0
            for row in layer.rows(kind):
                end = start + int(np.prod(row.shape))
                found[row.name] = flat[start:end].reshape(1, *row.graph_shape)
                start = end
            assert not flat[start:].any()
    assert found.keys() == {row.name for row in table}
    return found


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["lm-mixed", "lm-all-slstm", "large-plain", "large-wide-heads", "large-uncapped"])
def test_states_may_be_written_over_those_that_are_read(name: str, threads: int, bundle_of: BundleOf) -> None:
    """As genai does: the same bits as with memory of their own."""
    bundle, ids = bundle_of(BY_NAME[name], "genai"), sequence_for(BY_NAME[name], 200)
    session = genai_graph(bundle, threads)
    for sizes in SPLITS[:4]:
        apart, states = run(session, cut(ids, sizes), shared=False)
        over, same = run(session, cut(ids, sizes), shared=True)
        np.testing.assert_array_equal(over, apart)
        for name_, array in states.items():
            np.testing.assert_array_equal(same[name_], array)


@pytest.mark.parametrize("case", TOKENS, ids=str)
def test_what_is_written_comes_from_all_that_is_read(case: Case, bundle_of: BundleOf) -> None:
    """One node reads each packed input, and nothing but what follows from it is written in its place; no tensor grows."""
    graph = onnx.load(bundle_of(case, "genai") / "model.genai.onnx", load_external_data=False).graph
    made = {output: node for node in graph.node for output in node.output}
    states = [value.name for value in graph.input if value.name.startswith(PAST)]
    for name in states:
        readers = [node for node in graph.node if name in node.input]
        assert len(readers) == 1
        assert readers[0].op_type in ("Split", "Reshape")  # of a Reshape, which may be no copy, one reads on
        if readers[0].op_type == "Reshape":
            assert Counter(x for node in graph.node for x in node.input)[readers[0].output[0]] == 1
        waiting, seen = [name.replace(PAST, PRESENT)], set[str]()
        while waiting:
            value = waiting.pop()
            if value not in seen and value in made:
                seen.add(value)
                waiting += made[value].input
        assert readers[0].output[0] in seen
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.input}
    assert len({tuple(shapes[name]) for name in states if name.endswith(".conv_state")}) == 1
    assert len({tuple(shapes[name]) for name in states if name.endswith(".recurrent_state")}) == 1
    assert all(shapes[name][0] == 1 for name in shapes)


@pytest.mark.parametrize(("name", "options"), [("lm-mixed", {}), ("lm-mixed", {"quantize": "int8"})])
def test_ids_outside_the_vocabulary_are_an_error(
    name: str, options: dict[str, Any], export_of: Callable[..., Path]
) -> None:
    """A look-up of integers would take any of them, for a row of zeros."""
    bundle = export_of(name, target="genai", chunk=CHUNK, **options)
    vocabulary, session = read_manifest(bundle).model.vocab_size, genai_graph(bundle)
    assert vocabulary is not None
    run(session, [np.array([0, vocabulary - 1])], shared=True)
    for wrong in (vocabulary, -1, -vocabulary, -vocabulary - 1, 2**31 - 1, -(2**31)):
        for ids in ([wrong], [0, wrong], [1, 2, wrong, 3]):
            with pytest.raises(Exception, match="out of data bounds"):
                run(session, [np.array(ids)], shared=True)


def test_batches_are_an_error(bundle_of: BundleOf) -> None:
    """Their padding would go through the states as tokens do."""
    session = genai_graph(bundle_of(BY_NAME["lm-mixed"], "genai"))
    states = {value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs()[1:]}
    with pytest.raises(Exception, match="Got: 2 Expected: 1"):
        session.run(None, {"input_ids": np.array([[1, 2], [3, 4]]), **states})


def test_an_id_that_is_never_picked(export_of: Callable[..., Path]) -> None:
    """Where a model has no token that ends a text, as genai wants one."""
    bundle = export_of("lm-mixed", target="genai", chunk=CHUNK)
    manifest = read_manifest(bundle)
    assert not manifest.special_tokens.stop
    logits = run(genai_graph(bundle), [np.array([1, 2, 3])], shared=True)[0][0]
    assert logits.shape == (97 + 1,)
    assert logits[-1] == np.float32(NEVER)
    shipped = export_of("shipped", target="genai")
    assert run(genai_graph(shipped), [np.array([1])], shared=True)[0][0].shape == (2048,)


def test_logits_of_every_token_become_those_of_the_last(export_of: Callable[..., Path]) -> None:
    every = export_of("lm-mixed", target="genai", chunk=CHUNK, all_logits=True)
    last = export_of("lm-mixed", target="genai", chunk=CHUNK)
    ids = [np.array([5, 9, 2, 7])]
    got, wanted = (run(genai_graph(bundle), ids, shared=True)[0][0] for bundle in (every, last))
    np.testing.assert_allclose(got, wanted, atol=1e-6 * np.ptp(wanted[:-1]))


def test_layers_have_all_states_and_are_level() -> None:
    """A matrix memory a layer; an sLSTM's states where there is most room."""
    cell = [StateSpec(f"blocks.1.{name}", (2, 1, 4)) for name in "ycnm"]
    rows = [StateSpec("blocks.0.C", (2, 3, 4)), StateSpec("blocks.0.n", (2, 3, 1)), *cell]
    rows += [StateSpec("blocks.2.C", (2, 3, 4)), StateSpec("blocks.2.n", (2, 3, 1))]
    layers = layers_of(StateTable(rows))
    assert [[row.name for row in layer.recurrent_state] for layer in layers] == [["blocks.0.C"], ["blocks.2.C"]]
    held = [[row.name for row in layer.conv_state] for layer in layers]
    assert held == [["blocks.0.n", "blocks.1.y", "blocks.1.n"], ["blocks.2.n", "blocks.1.c", "blocks.1.m"]]
    assert packed_sizes(layers) == {"conv_state": 6 + 16, "recurrent_state": 24}
    alone = layers_of(StateTable(cell))
    assert [row.name for row in alone[0].recurrent_state + alone[0].conv_state] == [row.name for row in cell]


def test_an_slstm_begins_as_its_start_value_says(bundle_of: BundleOf, tmp_path: Path) -> None:
    """Input gates below the range of float32's exponential: after a stabilizer of 0 the first token would be 0/0."""
    bundle = Path(shutil.copytree(bundle_of(BY_NAME["lm-all-slstm"], "genai"), tmp_path / "b"))
    heads, width = 6, 8
    for block in (0, 1):

        def close(bias: NDArray[Any]) -> NDArray[Any]:
            gates = bias.copy()
            gates[: 2 * heads * width].reshape(heads, 2, width)[:, 0] -= 200.0
            return gates

        change_tensor(bundle, f"blocks.{block}.mixer.gates.bias", close)
    ids = np.arange(1, 8)
    session = load(bundle, threads=1).session()
    got, _ = run(genai_graph(bundle), [ids[:3], *ids[3:, None]], shared=True)
    wanted = [session.prefill(ids[:3]).copy(), *(session.step(token).copy() for token in ids[3:])]
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(np.stack(got)[:, :-1], wanted)
