"""What `verify` must see: bundles whose files agree with their hashes and still compute, read or state something else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.quantize.check import held, too_far
from xlstm_edge_exporters.quantize.read import read_schemes, read_weights
from xlstm_edge_exporters.quantize.rewrite import QuantizeGraph
from xlstm_edge_exporters.quantize.scheme import Scheme
from xlstm_edge_exporters.quantize.sources import round_searched
from xlstm_edge_exporters.structure import check_structure
from xlstm_edge_exporters.trace import GraphOptions, trace
from xlstm_edge_exporters.verify import _same_weights
from xlstm_edge_runtime import alias, session, vectors
from xlstm_edge_runtime.graph_file import external_files
from xlstm_edge_runtime.manifest import file_entry, read_manifest

from .command import Command, assert_one_sentence
from .conftest import BY_NAME, SHIPPED, sequence_for
from .oracles.cases import Case, large
from .oracles.official import make_checkpoint

CheckpointOf = Callable[[Case], Path]
Array = np.ndarray[Any, Any]


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files again, as a forger would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: asdict(file_entry(folder / name)) for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def change_tensor(folder: Path, name: str, change: Callable[[Array], Array]) -> None:
    """Write another tensor in the place of one of the graph's, and agree on its hash."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(t for t in graph.graph.initializer if t.name == name)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tensor.external_data:
        place = {entry.key: entry.value for entry in tensor.external_data}
        data = np.memmap(folder / "model.onnx.data", dtype, "r+", offset=int(place["offset"]), shape=tuple(tensor.dims))
        changed = change(np.array(data))
        assert not np.array_equal(changed, data)
        data[...] = changed
        data.flush()
    else:
        changed = change(np.array(numpy_helper.to_array(tensor)))
        tensor.CopyFrom(numpy_helper.from_array(changed, name))
        onnx.save(graph, folder / "model.onnx")
    rehash(folder)


def change_graph(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    change(graph)
    onnx.save(graph, folder / "model.onnx")
    rehash(folder)


def swapped(first: Any, second: Any) -> Callable[[Array], Array]:
    """Exchange the entries at two places."""

    def change(array: Array) -> Array:
        array[first], array[second] = array[second].copy(), array[first].copy()
        return array

    return change


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name -> a bundle in int4: `shipped`, or `deep` of 24 random blocks, whose outputs rounding alone moves far."""
    folder = tmp_path_factory.mktemp("made")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            case = Case("deep", "B", large(64, 24, 4, 300, use_bias=True))
            source = make_checkpoint(case, folder / "checkpoint") if name == "deep" else SHIPPED
            xlstm_edge.export(source, folder / name, quantize="int4")
        return folder / name

    return make


Change = Callable[[Path], object]


def tensors(folder: Path, ending: str) -> list[str]:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return [tensor.name for tensor in graph.initializer if tensor.name.endswith(ending)]


def on(ending: str, change: Callable[[Array], Array], index: int = 0) -> Change:
    """Change a tensor whose name ends so, of those the one at `index`."""
    return lambda folder: change_tensor(folder, tensors(folder, ending)[index], change)


def from_another_layer(folder: Path) -> None:
    """One block's matrix in the place of another's, integers and scales."""
    for ending in ("ffn.down.weight.data", "ffn.down.weight.scales"):
        first, second = tensors(folder, ending)[:2]
        graph = onnx.load(folder / "model.onnx")
        other = next(numpy_helper.to_array(t) for t in graph.graph.initializer if t.name == first)
        change_tensor(folder, second, lambda _, other=other: other)  # type: ignore[misc]  # mypy: a lambda's default


def one_step_up(array: Array) -> Array:
    """Integers of one row one step higher, as a wrong zero point has it."""
    low, high = array[2] & 0x0F, array[2] >> 4
    array[2] = np.minimum(low + 1, 15) | (np.minimum(high + 1, 15) << 4)
    return array


def zero_points(folder: Path) -> None:
    """An explicit zero point of 7 where the exporter means 8."""

    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
        scales = next(t for t in model.graph.initializer if t.name == node.input[2])
        rows, groups = scales.dims
        model.graph.initializer.append(
            numpy_helper.from_array(np.full((rows, -(-groups // 2)), 0x77, np.uint8), "zero_points")
        )
        rest = list(node.input[4:])
        del node.input[3:]
        node.input.extend(["zero_points", *rest])

    change_graph(folder, change)


def without_a_bias(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "MatMulNBits" and len(n.input) == 6)
        del node.input[3:]

    change_graph(folder, change)


MUTATIONS: dict[str, Change] = {
    "two scales of a row swapped": on("mixer.out.weight.scales", swapped((3, 0), (3, 1))),
    "two scales of a column swapped": on("ffn.down.weight.scales", swapped((1, 1), (2, 1)), 11),
    "two scales of the head swapped": on("head.weight.scales", swapped((17, 0), (99, 0))),
    "two groups swapped": on("ffn.gate_up.weight.data", swapped((5, 0), (5, 1)), 5),
    "two rows of a matrix swapped": on("mixer.qkvo.weight.data", swapped(0, 1)),
    "two rows of the embedding swapped": on("embedding.weight.table", swapped(slice(0, 150), slice(150, 300))),
    "integers a step too high": on("ffn.gate_up.weight.data", one_step_up, 7),
    "zero points": zero_points,
    "another layer": from_another_layer,
    "a bias dropped": without_a_bias,
    "a bias of zeros": on("mixer.gates.bias", np.zeros_like),
    "a norm of ones": on("ffn_norm.weight", np.ones_like, 3),
}  # fmt: skip
SHIPPED_TOO: dict[str, Change] = {
    "two scales of a column swapped": on("mixer.down.weight.scales", swapped((1, 1), (2, 1)), 2),
    "two groups swapped": on("mixer.up.weight.data", swapped((5, 0), (5, 1)), 3),
    "integers a step too high": on("ffn.gate_up.weight.data", one_step_up),
    "another layer": lambda f: change_tensor(f, tensors(f, "mixer.down.weight.scales")[1], lambda a: a[::-1]),
    "a bias of zeros": on("mixer.gates.bias", np.zeros_like),
}


@pytest.mark.parametrize("name", ["deep", "shipped"])
def test_healthy_quantized_bundles_pass(name: str, made: Callable[[str], Path], command: Command) -> None:
    for threads in (1, 2, 3):
        assert command("verify", made(name), "--threads", threads).code == 0


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_deep_bundle_that_was_changed_is_seen(
    name: str, made: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    bundle = Path(shutil.copytree(made("deep"), tmp_path / "bundle"))
    MUTATIONS[name](bundle)
    xr.load(bundle, threads=1)  # nothing that hashes, sizes or shapes could show
    assert_one_sentence(command("verify", bundle), 1)


@pytest.mark.parametrize("name", SHIPPED_TOO)
def test_a_trained_bundle_that_was_changed_is_seen(
    name: str, made: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    bundle = Path(shutil.copytree(made("shipped"), tmp_path / "bundle"))
    SHIPPED_TOO[name](bundle)
    xr.load(bundle, threads=1)
    assert_one_sentence(command("verify", bundle), 1)


BROKEN_RUNTIMES: dict[str, Callable[[Array, int], Array]] = {
    "zeros for longer calls": lambda output, length: output * (length <= 12),
    "zeros for full chunks": lambda output, length: output * (length != 64),
    "zeros for odd rests": lambda output, length: output * (length in (1, 3, 32, 64)),
    "zeros for single tokens": lambda output, length: output * (length > 1),
    "half of it for longer calls": lambda output, length: output * (1.0 if length < 30 else 0.5),
    "not a number": lambda output, length: output + (np.nan if length == 64 else 0),
    "two outputs exchanged": lambda output, _length: output[[1, 0, *range(2, len(output))]],
}  # fmt: skip


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", BROKEN_RUNTIMES)
def test_a_runtime_that_computes_something_else_is_seen(
    name: str, quantized: bool, made: Callable[[str], Path], bundle_64: Path, command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = session.Session._run

    def broken(self: session.Session, inputs: Any, length: int) -> Array:
        return BROKEN_RUNTIMES[name](np.array(run(self, inputs, length)), length).astype(np.float32)

    monkeypatch.setattr(session.Session, "_run", broken)
    assert_one_sentence(command("verify", made("shipped") if quantized else bundle_64), 1)


@pytest.fixture(scope="module")
def bundle_64(checkpoint_of: CheckpointOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32 with the default chunk, mLSTM and sLSTM blocks."""
    folder = tmp_path_factory.mktemp("float") / "bundle"
    xlstm_edge.export(checkpoint_of(BY_NAME["a1-mixed"]), folder)
    return folder


@pytest.fixture
def bundle(bundle_64: Path, tmp_path: Path) -> Path:
    """A good bundle to be spoiled."""
    return Path(shutil.copytree(bundle_64, tmp_path / "bundle"))


def test_a_long_chunk_is_run_in_whole(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command,
    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    xlstm_edge.export(checkpoint_of(BY_NAME["a1-mixed"]), tmp_path / "bundle", chunk=300)
    assert command("verify", tmp_path / "bundle").code == 0
    run = session.Session._run
    monkeypatch.setattr(session.Session, "_run", lambda s, i, n: np.array(run(s, i, n)) * (n != 300))
    assert_one_sentence(command("verify", tmp_path / "bundle"), 1)


def test_a_snapshot_that_restores_something_else_is_seen(
    bundle_64: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = session.Session.load

    def badly(self: session.Session, path: Any) -> None:
        load(self, path)
        for array in self._sets[self._current].values():
            np.multiply(array, np.float32(1.01), out=array)

    monkeypatch.setattr(session.Session, "load", badly)
    result = command("verify", bundle_64)
    assert_one_sentence(result, 1)
    assert "restored" in result.err


STATED: dict[str, Callable[[dict[str, Any]], object]] = {
    "any float difference": lambda v: [c.update(float_error=1e9) for c in v["checks"]],
    "any rounding": lambda v: [c.update(rounding_error=1e9) for c in v["checks"]],
    "rounding of float32 weights": lambda v: [c.update(rounding_error=1.0) for c in v["checks"]],
    "an endless range": lambda v: [c.update(range=1e40) for c in v["checks"]],
    "no checks": lambda v: v.update(checks=[]),
    "one check": lambda v: v.update(checks=v["checks"][:1]),
    "twelve tokens": lambda v: v.update(length=12, checks=[c for c in v["checks"] if c["position"] < 12]),
    "another key": lambda v: v.update(tolerance=1e9),
    "no sums": lambda v: [c.update(sums=[]) for c in v["checks"]],
    "no values": lambda v: [c.update(ids=[], values=[]) for c in v["checks"]],
    "an id beyond the vocabulary": lambda v: v["checks"][0]["ids"].__setitem__(0, 97),
    "a value of text": lambda v: v["checks"][0]["values"].__setitem__(0, "1"),
    "half a token": lambda v: v.update(length=137.0),
    "a negative seed": lambda v: v.update(seed=-1),
}


@pytest.mark.parametrize("name", STATED)
def test_vectors_that_allow_too_much_are_refused(name: str, bundle: Path, command: Command) -> None:
    edit_json(bundle / "vectors.json", STATED[name])
    rehash(bundle)
    assert_one_sentence(command("verify", bundle), 1)


def test_what_a_bundle_states_is_clipped(bundle: Path, command: Command) -> None:
    """The largest error that may be stated still allows a hundredth of the range at most."""
    edit_json(bundle / "vectors.json", lambda v: [c.update(float_error=1.0) for c in v["checks"]])
    on("mixer.gates.bias", np.zeros_like)(bundle)
    assert_one_sentence(command("verify", bundle), 1)
    read = vectors.read_vectors(bundle, xr.load(bundle).manifest)
    assert {e.allowed_float for e in read.expected} == {vectors.MOST_FLOAT}


def test_test_inputs_follow_from_their_rule() -> None:
    """splitmix64's published first outputs after seed 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert vectors.make_inputs(1234567, 5, vocab_size=2**31 - 1, width=1).tolist() == [n % (2**31 - 1) for n in known]
    assert vectors.make_inputs(1234567, 1, vocab_size=None, width=5)[0].tolist() == [(n >> 55) / 128 - 2 for n in known]


def test_every_output_counts(bundle: Path) -> None:
    read = vectors.read_vectors(bundle, xr.load(bundle).manifest)
    model = xr.load(bundle, threads=1)
    output = np.array(model.session().prefill(read.inputs[:1]), np.float64)
    assert read.expected[0].float_difference(output) < vectors.LEAST_FLOAT
    for index in range(len(output)):
        changed = output.copy()
        changed[index] += 1e-3 * read.expected[0].span
        assert read.expected[0].float_difference(changed) > vectors.LEAST_FLOAT


# Which files a graph reads


def locations(folder: Path) -> list[onnx.StringStringEntryProto]:
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    return [entry for t in graph.graph.initializer for entry in t.external_data if entry.key == "location"]


def test_the_walk_finds_what_onnx_finds(bundle: Path, made: Callable[[str], Path]) -> None:
    for folder in (bundle, made("shipped")):
        names = list(external_files((folder / "model.onnx").read_bytes()))
        assert names == [entry.value for entry in locations(folder)] != []


def relocated(value: str, key: str = "location") -> Change:
    def change(model: onnx.ModelProto) -> None:
        entry = next(t for t in model.graph.initializer if t.external_data).external_data[0]
        entry.key, entry.value = key, value

    return lambda folder: (shutil.copyfile(folder / "model.onnx.data", folder / "other"), change_graph(folder, change))


def hidden_in_a_node(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        node = onnx.helper.make_node("Constant", [], [tensor.name])
        node.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, node)

    change_graph(folder, change)


def twice_in_an_entry(folder: Path) -> None:
    """A second value, which protobuf readers take, behind the first."""
    graph = (folder / "model.onnx").read_bytes()
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    entry = next(t for t in model.graph.initializer if t.external_data).external_data[0].SerializeToString()
    marker = b"\x6a" + bytes([len(entry)]) + entry
    place = graph.index(marker)
    # The entry grows by three bytes; a filler field of the graph behind the model would not: so change the name inside.
    inside = b"\x0a\x08location\x12\x0amodel.onnx\x12\x03abc"
    assert len(inside) == len(entry) == 27
    (folder / "model.onnx").write_bytes(graph[: place + 2] + inside + graph[place + 2 + len(entry) :])
    rehash(folder)


OUTSIDE: dict[str, Change] = {
    "a file that is not listed": relocated("other"),
    "an absolute path": relocated("/etc/passwd"),
    "a path upwards": relocated("../bundle/model.onnx.data"),
    "a path through here": relocated("./model.onnx.data"),
    "nothing": relocated(""),
    "a long name": relocated("a" * 300),
    "a constant's data": hidden_in_a_node,
    "two values": twice_in_an_entry,
    "data left out of the manifest": lambda f: edit_json(
        f / "manifest.json", lambda m: m["files"].pop("model.onnx.data")
    ),
    "no graph": lambda f: ((f / "model.onnx").write_bytes(b"\xff" * 40), rehash(f)),
    "an empty graph": lambda f: ((f / "model.onnx").write_bytes(b""), rehash(f)),
    "half a graph": lambda f: (
        (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:2000]), rehash(f),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_graph_reads_only_what_the_manifest_lists(name: str, bundle: Path, command: Command) -> None:
    OUTSIDE[name](bundle)
    with pytest.raises(xr.BundleError):
        xr.load(bundle)
    assert_one_sentence(command("verify", bundle), 1)


@pytest.mark.parametrize(("flavour", "chunk"), [("ort", 65), ("ort", 4096), ("portable", 2)])
def test_a_chunk_beyond_the_graph_is_refused(
    flavour: Any, chunk: int, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    xlstm_edge.export(checkpoint_of(BY_NAME["a1-mixed"]), tmp_path / "bundle", flavour=flavour)
    edit_json(tmp_path / "bundle" / "manifest.json", lambda m: m["graph"].update(chunk=chunk))
    with pytest.raises(xr.BundleError, match="chunk"):
        xr.load(tmp_path / "bundle")


# State in place


def test_in_place_is_used_and_proven(made: Callable[[str], Path]) -> None:
    model = xr.load(made("deep"), threads=2)
    assert model.aliased == {row.name for row in model.manifest.state}
    assert alias.proven_aliases(model) == model.aliased


def test_in_place_leaves_out_cells_that_read_their_output_late(bundle: Path) -> None:
    """One sLSTM cell among mLSTM ones does not cost the others their place."""
    model = xr.load(bundle, threads=2)
    states = {row.name for row in model.manifest.state}
    slstm = {name for name in states if f"{name.rpartition('.')[0]}.y" in states}
    assert slstm
    assert model.aliased == states - slstm != set()


def stepped(model: xr.Model, tokens: Any) -> list[Array]:
    stream = model.session()
    return [np.array(stream.prefill(token[None])) for token in tokens]


def test_a_graph_that_reads_its_state_late_is_not_run_in_place(bundle: Path) -> None:
    """The old memory is read once more, after the new one was written."""
    reads_late(bundle)
    model, tokens = xr.load(bundle), sequence_for(BY_NAME["a1-mixed"], 6)
    assert model.aliased == frozenset()
    expected = stepped(model, tokens)
    model.aliased = alias.alias_candidates(model)
    assert not np.array_equal(stepped(model, tokens), expected)  # or this test would show nothing
    model.aliased = frozenset()
    fed = model.manifest.state.initial()
    for token, came in zip(tokens, expected, strict=True):
        feeds = {model.manifest.graph.input: np.array([[token]])}
        feeds |= {row.input_name: fed[row.name] for row in model.manifest.state}
        outputs = model.inference.run(None, feeds)
        fed = dict(zip(fed, outputs[1:], strict=True))
        assert np.array_equal(came, outputs[0][0])


def reads_late(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        last = (
            graph.node[-1] if "logits" in graph.node[-1].output else next(n for n in graph.node if "logits" in n.output)
        )
        last.output[list(last.output).index("logits")] = "logits_before"
        add = onnx.helper.make_node
        graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "late_axes"))
        graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "late_zero"))
        graph.node.extend(
            [
                # needs the logits, so it cannot run before them, and sums the old memory
                add("Gather", ["logits_before", "late_zero"], ["late_column"], axis=1),
                add("Mul", ["late_column", "late_column"], ["late_square"]),
                add("Reshape", ["late_square", "late_shape"], ["late_gate"]),
                add("Mul", ["past.blocks.0.C", "late_gate"], ["late_memory"]),
                add("ReduceMean", ["late_memory", "late_axes"], ["late_sum"], keepdims=0),
                add("Unsqueeze", ["late_sum", "late_one"], ["late_sums"]),
                add("Add", ["logits_before", "late_sums"], ["logits"]),
            ]
        )
        graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 1, 1], np.int64), "late_shape"))
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "late_one"))

    change_graph(folder, change)


def test_a_proof_in_place_holds_for_what_it_was_made_on(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(made("shipped"), tmp_path / "bundle"))
    tuning = xlstm_edge_tune(bundle)
    assert tuning.in_place
    tried: list[str] = []
    prove = alias.proven_aliases

    def watched(model: xr.Model) -> frozenset[str]:
        tried.append("tried")
        return prove(model)

    monkeypatch.setattr("xlstm_edge_runtime.model.proven_aliases", watched)
    xr.load(bundle)
    xr.load(bundle, threads=tuning.threads)
    assert not tried  # remembered
    xr.load(bundle, threads=tuning.threads + 1)
    xr.load(bundle, tuned=False)
    assert len(tried) == 2


def xlstm_edge_tune(folder: Path) -> Any:
    from xlstm_edge_runtime.tune import tune_bundle

    return tune_bundle(folder)


@pytest.mark.parametrize("length", [2, 16, 63, 64, 65, 130])
def test_chunks_do_not_write_in_place(length: int, made: Callable[[str], Path]) -> None:
    """Whatever the length, the result is that of two buffers."""
    model = xr.load(made("shipped"), threads=2)
    tokens = np.arange(length + 3) * 7 % 2048
    first = model.session()
    came = [np.array(first.prefill(part)) for part in (tokens[:3], tokens[3:], tokens[:1])]
    assert model.aliased
    model.aliased = frozenset()
    second = model.session()
    wanted = [np.array(second.prefill(part)) for part in (tokens[:3], tokens[3:], tokens[:1])]
    assert np.array_equal(came, wanted)
    assert all(np.array_equal(a, b) for a, b in zip(first.state.values(), second.state.values(), strict=True))


# Against the checkpoint


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "family": lambda m: m.update(family="B"),
    "source": lambda m: m["source"].update(sha256="0" * 64),
    "parameters": lambda m: m["model"].update(parameters=1),
    "context length": lambda m: m["model"].update(context_length=7),
    "tied": lambda m: m["model"].update(tied=not m["model"]["tied"]),
    "kinds of blocks": lambda m: m["model"].update(blocks=["slstm"] * 6),
    "opset": lambda m: m["graph"].update(opset=17),
    "bos": lambda m: m["special_tokens"].update(bos=3),
    "add_bos": lambda m: m["special_tokens"].update(add_bos=not m["special_tokens"]["add_bos"]),
    "pad": lambda m: m["special_tokens"].update(pad=5),
    "stop": lambda m: m["special_tokens"].update(stop=[9]),
    "sampling": lambda m: m.update(sampling={"temperature": 0.3}),
    "older onnxruntime": lambda m: m["minimum_runtime"].update(onnxruntime="1.2"),
    "bits": lambda m: next(iter(m["quantization"]["tensors"].values())).update(bits=8),
    "initial state": lambda m: m["state"]["tensors"][0].update(initial=0.5),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_manifest_that_is_not_the_checkpoint_s(
    name: str, made: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    bundle = Path(shutil.copytree(made("shipped"), tmp_path / "bundle"))
    edit_json(bundle / "manifest.json", FORGED[name])
    assert_one_sentence(command("verify", bundle, "--against", SHIPPED), 1)


def test_a_tokenizer_that_is_not_the_checkpoint_s(
    made: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    assert command("verify", made("shipped"), "--against", SHIPPED).code == 0
    bundle = Path(shutil.copytree(made("shipped"), tmp_path / "bundle"))
    text = (bundle / "tokenizer.json").read_text()
    (bundle / "tokenizer.json").write_text(text + "\n")
    rehash(bundle)
    assert command("verify", bundle).code == 0
    assert_one_sentence(command("verify", bundle, "--against", SHIPPED), 1)


def with_new_vectors(folder: Path) -> None:
    """Vectors of the changed weights: a forger's, who has the exporter."""
    from xlstm_edge_exporters.quantize.read import read_schemes, read_weights
    from xlstm_edge_exporters.vectors import make_vectors, vectors_json

    graph, spec = folder / "model.onnx", open_checkpoint(SHIPPED).spec
    groups = {name: scheme.group for name, scheme in read_schemes(graph).items()}
    (folder / "vectors.json").write_text(vectors_json(make_vectors(spec, read_weights(graph), groups, chunk=64)))
    rehash(folder)


@pytest.mark.parametrize("name", SHIPPED_TOO)
def test_changed_weights_with_vectors_of_their_own(
    name: str, made: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    bundle = Path(shutil.copytree(made("shipped"), tmp_path / "bundle"))
    SHIPPED_TOO[name](bundle)
    with_new_vectors(bundle)
    assert command("verify", bundle).code == 0
    result = command("verify", bundle, "--against", SHIPPED)
    assert_one_sentence(result, 1)
    assert "weight" in result.err or "bias" in result.err


@pytest.mark.parametrize(
    "options",
    [{"quantize": "int8"}, {"quantize": "int4", "group_size": 16, "keep": {"blocks.1.*": 8}},
     {"quantize": "int4", "keep": {"blocks.*": 2}}],
    ids=str,
)  # fmt: skip
def test_healthy_exports_hold_against_their_checkpoint(options: dict[str, Any], tmp_path: Path) -> None:
    xlstm_edge.export(SHIPPED, tmp_path / "bundle", **options)
    names = [check.name for check in xlstm_edge.verify(tmp_path / "bundle", against=SHIPPED)]
    assert {"tensors", "reference, step", "reference, chunk", "reference, weights"} <= set(names)


def test_gptq_holds_against_its_checkpoint_and_foreign_groups_do_not(tmp_path: Path, command: Command) -> None:
    bundle = tmp_path / "bundle"
    xlstm_edge.export(SHIPPED, bundle, quantize="int4", calibrate=SHIPPED / "calibration.txt")
    assert command("verify", bundle, "--against", SHIPPED).code == 0
    on("ffn.gate_up.weight.data", swapped(5, 6))(bundle)
    with_new_vectors(bundle)
    assert_one_sentence(command("verify", bundle, "--against", SHIPPED), 1)


def stretched(factor: float) -> Change:
    """Every scale of the bundle larger or smaller."""
    return lambda f: [change_tensor(f, name, lambda a: a * np.float32(factor)) for name in tensors(f, ".scales")]


def shaken(folder: Path) -> None:
    """Every scale another factor from 0.4 to 1.6."""
    rng = np.random.default_rng(0)
    for name in tensors(folder, ".scales"):
        change_tensor(folder, name, lambda a: a * rng.uniform(0.4, 1.6, a.shape).astype(np.float32))


CLAIMS: dict[str, Change] = {
    "scales half as large again": stretched(1.5),
    "scales a tenth smaller": stretched(0.9),
    "scales shaken": shaken,
    "scales of other columns": lambda f: change_tensor(f, tensors(f, "mixer.down.weight.scales")[1], lambda a: a[::-1]),
    "integers a step too high": on("ffn.gate_up.weight.data", one_step_up),
    "two groups swapped": on("mixer.up.weight.data", swapped((5, 0), (5, 1)), 3),
}


def claimed(folder: Path, change: Change | None) -> Path:
    """A bundle that says it was calibrated, with a change."""
    edit_json(folder / "manifest.json", lambda m: m["quantization"]["recipe"].update(calibrate="x.txt"))
    if change is not None:
        change(folder)
        rehash(folder)
    return folder


def judge(folder: Path) -> None:
    """What `verify --against` does with the tensors."""
    graph, manifest = folder / "model.onnx", read_manifest(folder)
    _same_weights(
        open_checkpoint(SHIPPED).weights, read_weights(graph), read_schemes(graph), manifest.quantization["recipe"]
    )


def test_an_honest_bundle_may_say_that_it_was_calibrated(made: Callable[[str], Path], tmp_path: Path) -> None:
    judge(claimed(Path(shutil.copytree(made("shipped"), tmp_path / "bundle")), None))


@pytest.mark.parametrize("name", CLAIMS)
def test_to_say_that_it_was_calibrated_excuses_nothing(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = claimed(Path(shutil.copytree(made("shipped"), tmp_path / "bundle")), CLAIMS[name])
    with pytest.raises(xr.VerificationError, match="bits allow"):
        judge(bundle)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_poor_calibration_goes_no_further_than_verify_allows(bits: int) -> None:
    rng = np.random.default_rng(bits)
    scheme = Scheme(bits, 32)
    matrix = rng.standard_normal((24, 100)).astype(np.float32)
    matrix[3, :32], matrix[4] = 0, 0
    far = scheme.quantize(matrix * np.float32(1.4) + rng.standard_normal(matrix.shape).astype(np.float32))
    mixed = scheme.quantize(matrix)
    mixed.scales[7, 1] *= -3
    nearest = round_searched("x", matrix, scheme)
    for packed in (far, mixed):
        kept = held("x", matrix, packed, scheme)
        came, rounded = (scheme.dequantize(one, 100) for one in (kept, nearest))
        groups, whole = too_far(matrix, came, rounded, scheme)
        assert not groups.any()
        assert not whole
    assert np.array_equal(kept.scales[8], mixed.scales[8])  # a row that was right stays
    assert not np.array_equal(kept.scales[7], mixed.scales[7])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_model_calibrated_on_next_to_nothing_holds(
    bits: int, checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(" ".join(map(str, np.random.default_rng(1).integers(0, 3, 300))))
    checkpoint = checkpoint_of(BY_NAME["a1-mixed"])
    options: dict[str, Any] = {
        "quantize": "int4",
        "calibrate": tmp_path / "text",
        "group_size": 32,
        "keep": {"*": bits},
    }
    xlstm_edge.export(checkpoint, tmp_path / "bundle", **options)
    assert any(check.name == "tensors" for check in xlstm_edge.verify(tmp_path / "bundle", against=checkpoint))


def rewired(change: Callable[[onnx.GraphProto], object]) -> Change:
    """Another graph over the same weights."""

    def write(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model.graph)
        onnx.save(model, folder / "model.onnx")
        rehash(folder)

    return write


def another_table(graph: onnx.GraphProto) -> None:
    """The embedding's operator reads another matrix; the true one stays, unused."""
    gather = next(node for node in graph.node if node.op_type == "Gather" and node.input[0] == "embedding.weight")
    true = next(tensor for tensor in graph.initializer if tensor.name == "embedding.weight")
    other = onnx.TensorProto()
    other.CopyFrom(true)
    other.name = gather.input[0] = "table"
    place = next(entry for entry in other.external_data if entry.key == "offset")
    place.value = str(int(place.value) + 64)
    graph.initializer.append(other)


def other_attribute(name: str, factor: float) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        attribute = next(a for node in graph.node for a in node.attribute if a.name == name)
        attribute.f *= factor

    return change


REWIRED: dict[str, Callable[[onnx.GraphProto], object]] = {
    "another table": another_table,
    "an epsilon a little larger": other_attribute("epsilon", 1.001),
    "an operator twice": lambda g: g.node.insert(0, g.node[0]),
    "an initializer that nothing reads": lambda g: g.initializer.append(
        numpy_helper.from_array(np.zeros(3, np.float32), "more")
    ),
}


@pytest.mark.parametrize("name", REWIRED)
def test_a_graph_that_joins_the_weights_otherwise(name: str, tmp_path: Path, command: Command) -> None:
    xlstm_edge.export(SHIPPED, tmp_path / "bundle")
    rewired(REWIRED[name])(tmp_path / "bundle")
    result = command("verify", tmp_path / "bundle", "--against", SHIPPED)
    assert_one_sentence(result, 1)


def test_a_tied_matrix_is_one(tmp_path: Path, checkpoint_of: CheckpointOf, command: Command) -> None:
    """The table that is looked up is right; the one that is multiplied is not."""
    checkpoint = checkpoint_of(BY_NAME["c-tied"])
    xlstm_edge.export(checkpoint, tmp_path / "bundle", quantize="int8")
    assert command("verify", tmp_path / "bundle", "--against", checkpoint).code == 0

    def apart(graph: onnx.GraphProto) -> None:
        table = next(tensor for tensor in graph.initializer if tensor.name == "embedding.weight.table")
        place = next(entry for entry in table.external_data if entry.key == "offset")
        place.value = str(int(place.value) + 1)

    rewired(apart)(tmp_path / "bundle")
    assert_one_sentence(command("verify", tmp_path / "bundle", "--against", checkpoint), 1)


@pytest.mark.parametrize("options", [{}, {"quantize": "int4", "group_size": 32}, {"flavour": "portable"}], ids=str)
@pytest.mark.parametrize("case", [BY_NAME[name] for name in ("a1-mixed", "b-wide-heads", "c-tied")], ids=str)
def test_every_graph_is_the_one_that_is_traced_again(
    case: Case, options: dict[str, Any], checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(checkpoint_of(case))
    xlstm_edge.export(checkpoint_of(case), tmp_path / "bundle", chunk=16, **options)
    graph, schemes = ir.load(tmp_path / "bundle" / "model.onnx"), read_schemes(tmp_path / "bundle" / "model.onnx")
    flavour = options.get("flavour", "ort")
    traced = trace(checkpoint.spec, GraphOptions(flavour=flavour, chunk=16 if flavour == "ort" else 1))
    if schemes:
        QuantizeGraph(schemes)(traced)
    names = {*checkpoint.weights, *(name + part for name in schemes for part in (".data", ".scales", ".table"))}
    assert check_structure(traced, graph, names) == len(graph.graph)
