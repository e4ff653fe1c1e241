"""What quantizers learn from: text that the model writes, files of text and of vectors."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xlstm_edge
from xlstm_edge_exporters import export
from xlstm_edge_exporters.bundle import write_graph
from xlstm_edge_exporters.calibration import FEWEST_TOKENS, TOKENS, calibration_tokens, read_vectors
from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.interface import GraphOptions, graph_states
from xlstm_edge_exporters.quantize.orientation import matrix_shape
from xlstm_edge_exporters.quantize.plan import make_plan
from xlstm_edge_exporters.quantize.scheme import Packed
from xlstm_edge_exporters.quantize.self_text import write_text, written_in_place
from xlstm_edge_exporters.quantize.store import Store
from xlstm_edge_exporters.recipe import Recipe
from xlstm_edge_exporters.reference import run_reference
from xlstm_edge_exporters.text_assets import read_text_assets
from xlstm_edge_exporters.trace import trace
from xlstm_edge_runtime import InputError
from xlstm_edge_runtime.in_place import in_place_candidates
from xlstm_edge_runtime.manifest import read_manifest
from xlstm_edge_runtime.opening import CPU, open_graph, session_options

from ..changed_bundles import reads_late
from ..command import Command, assert_nothing_written, assert_one_sentence
from ..conftest import BY_NAME, SHIPPED, sequence_for
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


@pytest.mark.parametrize("name", ["lm-mixed", "large-plain"])
def test_what_a_model_writes_is_drawn_from_its_own_distribution(
    name: str, opened: Callable[[Case], Checkpoint], tmp_path: Path
) -> None:
    """How often the float64 reference would draw the tokens that were drawn, against how often it should on average."""
    checkpoint, options = opened(BY_NAME[name]), GraphOptions(chunk=1)
    graph = write_graph(trace(checkpoint.spec, options), checkpoint, tmp_path)
    states = graph_states(checkpoint.spec, options)
    ids = write_text(graph, states, streams=12, length=60, start=3)
    assert ids.shape == (12, 60)
    assert (ids[:, 0] == 3).all()
    assert len({row.tobytes() for row in ids}) == 12
    assert np.array_equal(ids, write_text(graph, states, streams=12, length=60, start=3))
    surprise, entropy = [], []
    for row in ids:
        outputs = run_reference(checkpoint.spec, checkpoint.weights, row).outputs[:-1]
        log_p = outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)
        surprise.append(-log_p[np.arange(len(log_p)), row[1:]])
        entropy.append(-(np.exp(log_p) * log_p).sum(1))
    difference = np.concatenate(surprise) - np.concatenate(entropy)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(difference.size)


def test_without_a_start_token_streams_begin_differently(opened: Callable[[Case], Checkpoint], tmp_path: Path) -> None:
    checkpoint, options = opened(BY_NAME["large-plain"]), GraphOptions(chunk=1)
    graph = write_graph(trace(checkpoint.spec, options), checkpoint, tmp_path)
    ids = write_text(graph, graph_states(checkpoint.spec, options), streams=30, length=2, start=None)
    assert len(set(ids[:, 0])) > 10


def test_a_model_writes_over_its_states_where_that_changes_nothing(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    plain = open_graph(bundle / "model.onnx", session_options(1), CPU)
    assert written_in_place(plain, manifest.state) == in_place_candidates(manifest.state) != set()
    reads_late(bundle)
    assert written_in_place(open_graph(bundle / "model.onnx", session_options(1), CPU), manifest.state) == set()


def test_what_is_written_in_place_is_what_two_buffers_give(
    opened: Callable[[Case], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, options = opened(BY_NAME["lm-mixed"]), GraphOptions()
    graph = write_graph(trace(checkpoint.spec, options), checkpoint, tmp_path)
    states = graph_states(checkpoint.spec, options)
    ids = write_text(graph, states, streams=3, length=40, start=3)
    monkeypatch.setattr("xlstm_edge_exporters.quantize.self_text.written_in_place", lambda *_: frozenset())
    assert np.array_equal(ids, write_text(graph, states, streams=3, length=40, start=3))


def test_int4_calibrates_itself_and_says_so(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    checkpoint, words = checkpoint_of(BY_NAME["lm-mixed"]), ("--quantize", "int4", "--calibration-tokens", "2048")
    for name in ("first", "second"):
        assert command("export", checkpoint, "-o", tmp_path / name, *words).code == 0
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("first", "second")]
    assert manifests[0]["quantization"]["recipe"] == {
        "target": "cpu", "quantize": "int4", "calibrate": "self", "calibration_tokens": 2048,
    }  # fmt: skip
    assert manifests[0]["files"] == manifests[1]["files"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    assert command("verify", tmp_path / "first", "--against", checkpoint).code == 0
    assert (
        command("export", checkpoint, "-o", tmp_path / "rounded", "--quantize", "int4", "--calibrate", "none").code == 0
    )
    tensors = json.loads((tmp_path / "rounded" / "manifest.json").read_text())["quantization"]["tensors"]
    assert {tensor["block_size"] for tensor in tensors.values()} == {32}


def test_the_default_is_better_than_rounding_and_smaller(tmp_path: Path, command: Command) -> None:
    for name, words in (("float32", ()), ("self", ("--calibration-tokens", "8192")), ("rtn", ("--method", "rtn"))):
        quantize = () if name == "float32" else ("--quantize", "int4")
        assert command("export", SHIPPED, "-o", tmp_path / name, *quantize, *words).code == 0
    words = ("--against", tmp_path / "float32", "--text", SHIPPED / "heldout.txt", "--tokens", 3000, "--json")
    own, rounded = json.loads(command("eval", tmp_path / "self", tmp_path / "rtn", *words).out)
    assert own["kl_mean"] < 0.97 * rounded["kl_mean"]
    assert own["bytes"] < 0.97 * rounded["bytes"]


def test_a_stack_of_vectors_is_rounded_or_calibrated_on_vectors(
    checkpoint_of: CheckpointOf, tmp_path: Path, command: Command
) -> None:
    case = BY_NAME["stack-mixed"]
    checkpoint = checkpoint_of(case)
    np.save(tmp_path / "vectors.npy", sequence_for(case, 600))
    plain = xlstm_edge.export(checkpoint, tmp_path / "plain", quantize="int4").manifest.quantization
    assert not plain.calibrated
    calibrated = command(
        "export", checkpoint, "-o", tmp_path / "own", "--quantize", "int4", "--calibrate", tmp_path / "vectors.npy"
    )
    assert calibrated.code == 0
    assert (
        json.loads((tmp_path / "own" / "manifest.json").read_text())["quantization"]["recipe"]["calibrate"]
        == "vectors.npy"
    )
    assert command("verify", tmp_path / "own", "--against", checkpoint).code == 0
    for words in (("--calibrate", "self"), ("--method", "gptq"), ("--calibrate", SHIPPED / "calibration.txt")):
        assert_one_sentence(command("export", checkpoint, "-o", tmp_path / "no", "--quantize", "int4", *words), 2)
    assert not (tmp_path / "no").exists()


BAD_VECTORS: dict[str, Callable[[Path], Any]] = {
    "another width": lambda path: np.save(path, np.zeros((300, 5), np.float32)),
    "integers": lambda path: np.save(path, np.zeros((300, 8), np.int64)),
    "objects": lambda path: np.save(path, np.array([{}, 1], object), allow_pickle=True),
    "not finite": lambda path: np.save(path, np.full((300, 8), np.nan, np.float32)),
    "no numpy file": lambda path: path.write_bytes(b"hello"),
    "cut off": lambda path: path.write_bytes(_saved(np.zeros((300, 8), np.float32))[:200]),
    "claims more than it has": lambda path: path.write_bytes(
        _saved(np.zeros((300, 8), np.float32)).replace(b"300", b"999")
    ),
    "a folder": Path.mkdir,
    "nothing": lambda _path: None,
}


def _saved(array: np.ndarray[Any, Any]) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_bad_vectors(name: str, tmp_path: Path) -> None:
    BAD_VECTORS[name](tmp_path / "vectors.npy")
    with pytest.raises(InputError, match=r"expected .* got"):
        read_vectors(tmp_path / "vectors.npy", 8)


def test_large_models_take_fewer_tokens(opened: Callable[[Case], Checkpoint]) -> None:
    spec = opened(BY_NAME["large-plain"]).spec
    assert calibration_tokens(spec, Recipe(quantize="int4")) == TOKENS
    assert calibration_tokens(replace(spec, vocab_size=1 << 24), Recipe(quantize="int4")) in range(
        FEWEST_TOKENS, TOKENS
    )
    assert calibration_tokens(spec, Recipe(quantize="int4", calibration_tokens=300)) == 300


@pytest.mark.parametrize("options", [("--method", "rtn"), ("--calibration-tokens", "1024")], ids=str)
def test_an_interrupted_export_resumes_to_the_same_bytes(
    options: tuple[str, ...],
    checkpoint_of: CheckpointOf,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from xlstm_edge_exporters.quantize.store import Store

    checkpoint, words = checkpoint_of(BY_NAME["large-three-heads"]), ("--quantize", "int4", *options)
    assert command("export", checkpoint, "-o", tmp_path / "whole", *words).code == 0
    save, left = Store.save, [0]

    def save_or_die(store: Store, name: str, arrays: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        save(store, name, arrays)

    monkeypatch.setattr(Store, "save", save_or_die)
    attempts = 0
    while True:
        left[0] = 2  # two more tensors each time
        attempts += 1
        result = command("export", checkpoint, "-o", tmp_path / "parts", *words, "--resume")
        if result.code == 0:
            break
        assert not (tmp_path / "parts").exists()
        assert (tmp_path / "parts.resume").is_dir()
        assert attempts < 40
    assert attempts > 3
    assert not (tmp_path / "parts.resume").exists()
    first, second = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "parts"))
    assert first == second


@pytest.mark.parametrize("change", ["start token", "tokenizer", "threads"])
def test_what_was_made_otherwise_is_not_gone_on_with(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, recipe = open_checkpoint(SHIPPED), Recipe(quantize="int4")
    text = read_text_assets(checkpoint)
    other = {
        "start token": replace(text, special=replace(text.special, bos=7)),
        "tokenizer": replace(text, document=(text.document or b"") + b" "),
    }.get(change, text)
    key = export._key(checkpoint, recipe, text)
    assert export._key(checkpoint, recipe, text) == key
    if change == "threads":
        monkeypatch.setattr(export.torch, "get_num_threads", lambda: 77)
    assert export._key(checkpoint, recipe, other) != key


def test_without_resume_nothing_is_left(
    checkpoint_of: CheckpointOf, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xlstm_edge_exporters.quantize.store import Store

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "save_packed", die)
    words = ("--quantize", "int4", "--calibration-tokens", "256")
    assert command("export", checkpoint_of(BY_NAME["lm-mixed"]), "-o", tmp_path / "new", *words).code == 130
    assert_nothing_written(tmp_path, set())


def test_nothing_to_resume_from_leaves_nothing(
    checkpoint_of: CheckpointOf, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float export keeps nothing on its way, so that its folder would help nobody."""

    def die(*_: object, **__: object) -> None:
        assert (tmp_path / "new.resume").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_bundle", die)
    words = ("export", checkpoint_of(BY_NAME["lm-mixed"]), "-o", tmp_path / "new", "--resume")
    assert command(*words).code == 130
    assert_nothing_written(tmp_path, set())


def test_what_another_export_left_is_not_used(checkpoint_of: CheckpointOf, tmp_path: Path, command: Command) -> None:
    checkpoint, resume = checkpoint_of(BY_NAME["large-plain"]), tmp_path / "new.resume"
    resume.mkdir()
    words = ("export", checkpoint, "-o", tmp_path / "new", "--quantize", "int4", "--method", "rtn", "--resume")
    assert_one_sentence(command(*words), 2)  # a folder of the user's
    (resume / "xlstm-edge-export").write_text("of another recipe")
    name, opened = "blocks.0.ffn.down.weight", open_checkpoint(checkpoint)
    scheme = make_plan(opened.spec, opened.weights, Recipe(quantize="int4", method="rtn"))[name]
    rows, columns = matrix_shape(name, opened.weights[name].shape)
    blocks = scheme.blocks_per_row(columns)
    wrong = Packed(np.zeros((rows, blocks, scheme.block_size // 2), np.uint8), np.ones((rows, blocks), np.float32))
    Store(resume).save_packed(name, wrong)
    assert Store(resume).load_packed(name, rows, columns, scheme) is not None
    assert command(*words).code == 0
    assert not resume.exists()
    assert command("verify", tmp_path / "new", "--against", checkpoint).code == 0


def test_a_damaged_remainder_is_made_again(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    from xlstm_edge_exporters.quantize.scheme import Packed, Scheme
    from xlstm_edge_exporters.quantize.store import Store, finished, stored
    from xlstm_edge_exporters.weights import Weight

    def never() -> NDArray[np.float32]:
        raise AssertionError("a finished tensor was read again")

    matrix = Weight((3, 64), never)
    store, scheme = Store(tmp_path), Scheme(4, 32)
    good = Packed(np.ones((3, 2, 16), np.uint8), np.ones((3, 2), np.float32))
    store.save_packed("a", good)
    assert store.load_packed("a", 3, 64, scheme) is not None
    for quantizer in (finished(store), stored(finished(store), store)):
        assert np.array_equal(quantizer("a", matrix, scheme).data, good.data)
    for rows, columns, other in ((4, 64, scheme), (3, 65, scheme), (3, 64, Scheme(8, 32)), (3, 64, Scheme(4, 64))):
        assert store.load_packed("a", rows, columns, other) is None
    store.save("a", {"data": good.data.astype(np.float64), "scales": good.scales})
    assert store.load_packed("a", 3, 64, scheme) is None
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    assert store.load("a") is None
    with pytest.raises(InputError, match="expected the integers of a"):
        finished(store)("a", matrix, scheme)


def test_a_checkpoint_s_own_text_is_used_where_it_is_named(tmp_path: Path, command: Command) -> None:
    words = ("--quantize", "int4", "--calibrate", SHIPPED / "calibration.txt", "--calibration-tokens", "512")
    assert command("export", SHIPPED, "-o", tmp_path / "new", *words).code == 0
    recipe = json.loads((tmp_path / "new" / "manifest.json").read_text())["quantization"]["recipe"]
    assert (recipe["calibrate"], recipe["calibration_tokens"]) == ("calibration.txt", 512)
    assert open_checkpoint(SHIPPED).spec.vocab_size


def test_a_disk_without_room_is_seen_before_any_work(
    checkpoint_of: CheckpointOf, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    for words in ((), ("--quantize", "int4")):
        result = command("export", checkpoint_of(BY_NAME["large-plain"]), "-o", tmp_path / "new", *words)
        assert_one_sentence(result, 2)
        assert "free space" in result.err
    assert_nothing_written(tmp_path, set())
