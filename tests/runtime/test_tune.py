"""Tuning: the same outputs, remembered here, ignored elsewhere."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import xlstm_edge_runtime as xr
from xlstm_edge_runtime import prepack, rates, tune, tuning
from xlstm_edge_runtime.manifest import file_entry

from ..changed_bundles import change_graph
from ..command import Command, assert_one_sentence


@pytest.fixture(scope="module", autouse=True)
def no_float_weights() -> Iterator[None]:
    """`test_float_graph` has those; which are faster is for each machine to say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "_worth_trying", lambda _source, _partial: False)
        yield


INT4 = {"quantize": "int4", "method": "rtn"}


@pytest.fixture(params=[{}, INT4], ids=["float32", "int4"])
def bundle(request: pytest.FixtureRequest, export_of: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(export_of("large-plain", **request.param), tmp_path / "bundle"))


def test_a_tuned_bundle_computes_the_same(bundle: Path, command: Command) -> None:
    before = xr.load(bundle, threads=1).session().prefill(range(100)).copy()
    facts = json.loads(command("tune", bundle, "--json").out)
    assert facts["threads"] >= 1
    assert facts["weights"] == ("prepacked" if xr.load(bundle).manifest.quantization else "stored")
    model = xr.load(bundle)
    assert model.chunk == facts["chunk"]
    assert facts["spin"] in rates.SPINS
    assert facts["in_place"] == bool(model.in_place)
    np.testing.assert_allclose(model.session().prefill(range(100)), before, atol=2e-3 * np.ptp(before))
    assert command("verify", bundle).code == 0
    assert "decode per second" in command("tune", bundle).out


@pytest.fixture(scope="module")
def tuned_once(export_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(export_of("large-plain", **INT4), tmp_path_factory.mktemp("tuned") / "bundle"))
    tune.tune_bundle(folder)
    return folder


@pytest.fixture
def tuned(tuned_once: Path, tmp_path: Path) -> Path:
    """A tuned bundle to be spoiled."""
    return Path(shutil.copytree(tuned_once, tmp_path / "tuned"))


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        record = json.loads((folder / "tuned.json").read_text())
        change(record)
        (folder / "tuned.json").write_text(json.dumps(record))

    return spoil


def replaced_by_a_link(folder: Path) -> None:
    (folder / "model.onnx.data").rename(folder.parent / "elsewhere")
    (folder / "model.onnx.data").symlink_to(folder.parent / "elsewhere")


def overwritten(folder: Path) -> None:
    data = folder / "model.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))


UNFIT: dict[str, Callable[[Path], object]] = {
    "json": lambda f: (f / "tuned.json").write_text("{"),
    "deep json": lambda f: (f / "tuned.json").write_text("[" * 10**5),
    "long json": lambda f: (f / "tuned.json").write_text(" " * 10**6 + (f / "tuned.json").read_text()),
    "no file": shutil.rmtree,
    "another key": edit(lambda r: r.update(key="0" * 64)),
    "unknown setting": edit(lambda r: r.update(more=1)),
    "missing setting": edit(lambda r: r.pop("spin")),
    "no threads": edit(lambda r: r.update(threads=0)),
    "part of a thread": edit(lambda r: r.update(threads=2.0)),
    "true threads": edit(lambda r: r.update(threads=True)),
    "part of a token": edit(lambda r: r.update(chunk=2.5)),
    "no chunk": edit(lambda r: r.update(chunk=0)),
    "chunk beyond the graph": edit(lambda r: r.update(chunk=65)),
    "long spin": edit(lambda r: r.update(spin=10**9)),
    "in place as a word": edit(lambda r: r.update(in_place="yes")),
    "endless rate": edit(lambda r: r.update(decode_per_second=1e400)),
    "files as a list": edit(lambda r: r.update(files=[])),
    "a file of text": edit(lambda r: r["files"].update({"model.onnx": "1"})),
    "another file's size": edit(lambda r: r["files"]["model.onnx"].update(bytes=1)),
    "a file of another name": edit(lambda r: r["files"].update({"../model.onnx": r["files"]["model.onnx"]})),
    "weights of another kind": edit(lambda r: r.update(weights="float16")),
    "weights as a flag": edit(lambda r: r.update(weights=True)),
    "prepacked without a graph": edit(lambda r: r.update(files={})),
    "shorter data": lambda f: (f / "model.onnx.data").write_bytes((f / "model.onnx.data").read_bytes()[:-4]),
    "no data": lambda f: (f / "model.onnx.data").unlink(),
    "overwritten data": overwritten,
    "data elsewhere": replaced_by_a_link,
    "all of it elsewhere": lambda f: (f.rename(f.parent / "elsewhere"), f.symlink_to(f.parent / "elsewhere")),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_a_tuning_that_is_not_as_written_is_ignored(name: str, tuned: Path) -> None:
    assert xr.load(tuned).tuning is not None
    expected = np.array(xr.load(tuned, tuned=False).session().prefill(range(70)))
    UNFIT[name](tuned / "tuned")
    model = xr.load(tuned)
    assert model.tuning is None
    assert model.chunk == model.manifest.graph.chunk
    assert np.array_equal(model.session().prefill(range(70)), expected)


def test_a_tuning_of_another_processor_is_ignored(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning.read_tuning(tuned, xr.load(tuned).manifest) is not None
    monkeypatch.setattr(tuning, "cpu_key", lambda: "another processor")
    assert xr.load(tuned).tuning is None


def rehash(folder: Path) -> None:
    """Make the record agree with the files again, as a forger would."""
    record = json.loads((folder / "tuned.json").read_text())
    record["files"] = {name: asdict(file_entry(folder / name)) for name in record["files"]}
    (folder / "tuned.json").write_text(json.dumps(record))


def halve_a_page(folder: Path) -> None:
    data = np.fromfile(folder / "model.onnx.data", np.uint8)
    data[4096:8192] = 0x77
    data.tofile(folder / "model.onnx.data")


def read_another_file(folder: Path) -> None:
    graph = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(graph.replace(b"model.onnx.data", b"other.onnx.data"))
    (folder / "model.onnx.data").rename(folder / "other.onnx.data")
    (folder / "model.onnx.data").write_bytes(b"")


@pytest.mark.parametrize("forge", [halve_a_page, overwritten, read_another_file])
def test_a_forged_tuning_fails_verification(forge: Callable[[Path], object], tuned: Path, command: Command) -> None:
    assert command("verify", tuned).code == 0
    forge(tuned / "tuned")
    rehash(tuned / "tuned")
    assert xr.load(tuned, tuned=False).session().step(5).shape == (120,)
    assert_one_sentence(command("verify", tuned), 1)


def test_large_tuned_files_are_hashed_by_verify(tuned: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "HASHED_AT_LOAD", 0)
    overwritten(tuned / "tuned")
    result = command("verify", tuned)
    assert_one_sentence(result, 1)
    assert "as it was tuned" in result.err


def test_of_large_tuned_files_the_size_is_compared(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "HASHED_AT_LOAD", 0)
    manifest = xr.load(tuned).manifest
    assert tuning.read_tuning(tuned, manifest) is not None
    UNFIT["shorter data"](tuned / "tuned")
    assert tuning.read_tuning(tuned, manifest) is None


def a_little_else(bundle: Path, other: Path) -> Path:
    """The graph of a copy of a bundle with one norm changed."""
    shutil.copytree(bundle, other)
    graph = onnx.load(other / "model.onnx")
    norm = next(t for t in graph.graph.initializer if t.name.endswith("ffn_norm.weight"))
    norm.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(norm) * np.float32(1.00001), norm.name))
    onnx.save(graph, other / "model.onnx")
    return other / "model.onnx"


def test_a_tuned_graph_that_computes_a_little_else_fails_verification(
    tuned: Path, command: Command, tmp_path: Path
) -> None:
    """So little that rounding could explain it: only bits show it."""
    other = a_little_else(tuned, tmp_path / "other")
    for name in ("model.onnx", "model.onnx.data"):
        (tuned / "tuned" / name).unlink()
    prepack.save_prepacked(other, tuned / "tuned", 1)
    rehash(tuned / "tuned")
    assert xr.load(tuned).tuning is not None
    result = command("verify", tuned)
    assert_one_sentence(result, 1)
    assert "the tuned graph to compute" in result.err


@pytest.mark.parametrize("bundle", [INT4], ids=["int4"], indirect=True)
def test_a_tuned_graph_that_computes_something_else_is_not_kept(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should onnxruntime ever write one: the rest of the tuning stands."""
    write, other = prepack.save_prepacked, a_little_else(bundle, tmp_path / "other")
    monkeypatch.setattr(tune, "save_prepacked", lambda _source, target, threads: write(other, target, threads))
    expected = np.array(xr.load(bundle).session().prefill(range(70)))
    found = tune.tune_bundle(bundle)
    assert found.weights == "stored"
    assert [path.name for path in (bundle / "tuned").iterdir()] == ["tuned.json"]
    model = xr.load(bundle)
    assert model.tuning == found
    np.testing.assert_allclose(model.session().prefill(range(70)), expected, atol=2e-3 * np.ptp(expected))


@pytest.mark.parametrize("bundle", [INT4], ids=["int4"], indirect=True)
def test_a_full_disk_is_one_sentence(bundle: Path, command: Command) -> None:
    resource = pytest.importorskip("resource", reason="POSIX only")
    before, limits = sorted(bundle.iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        result = command("tune", bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_sentence(result, 2)
    assert sorted(bundle.iterdir()) == before


def test_tuning_nothing(tmp_path: Path, command: Command) -> None:
    assert_one_sentence(command("tune", tmp_path), 2)


@pytest.mark.parametrize("spin", [-1, 1.5, True, 10**6])
def test_bad_spins(spin: object, bundle: Path) -> None:
    with pytest.raises(xr.InputError, match="spin"):
        xr.load(bundle, spin=spin)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("what", ["a link", "a file"])
def test_a_place_that_cannot_be_replaced_is_refused_at_once(
    what: str, bundle: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (bundle / "tuned").symlink_to(tmp_path / "elsewhere") if what == "a link" else (bundle / "tuned").write_text("mine")
    before = sorted(path.name for path in bundle.iterdir())
    stages: list[str] = []
    with pytest.raises(xr.InputError, match="tuning"):
        tune.tune_bundle(bundle, progress=lambda stage, _done, _total: stages.append(stage))
    assert not stages
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_tuning_keeps_what_is_not_a_tuning_s(bundle: Path, command: Command) -> None:
    assert command("tune", bundle).code == 0
    (bundle / "tuned" / "notes.txt").write_text("mine")
    assert_one_sentence(command("tune", bundle), 2)
    assert (bundle / "tuned" / "notes.txt").read_text() == "mine"


def test_a_graph_of_another_interface_is_one_sentence(bundle: Path, command: Command) -> None:
    """Whatever opens it first."""

    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["other" if name == "logits" else name for name in node.output]
        model.graph.output[0].name = "other"

    change_graph(bundle, rename)
    before = sorted(path.name for path in bundle.iterdir())
    assert_one_sentence(command("tune", bundle), 2)
    assert sorted(path.name for path in bundle.iterdir()) == before


@pytest.mark.parametrize("bundle", [INT4], ids=["int4"], indirect=True)
def test_a_graph_that_does_not_load_is_told_from_a_full_disk(bundle: Path, command: Command) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
        next(attribute for attribute in node.attribute if attribute.name == "K").i = 1 << 40

    change_graph(bundle, spoil)
    result = command("tune", bundle)
    assert_one_sentence(result, 2)
    assert "a graph that onnxruntime" in result.err
