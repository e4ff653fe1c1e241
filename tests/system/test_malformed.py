"""Named classes of malformed documents of a bundle: each ends in one sentence, in a second and without memory to speak of."""

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import xlstm_edge
from xlstm_edge.facade import ExportOptions, check_export
from xlstm_edge_exporters.recipe import read_recipe
from xlstm_edge_runtime import InputError, XlstmEdgeError, load
from xlstm_edge_runtime.layout import TUNING_RECORD
from xlstm_edge_runtime.manifest import SCHEMA, Manifest
from xlstm_edge_runtime.reading import Reader, parse_json
from xlstm_edge_runtime.tuning import read_tuning
from xlstm_edge_runtime.vectors import read_vectors

from ..conftest import BY_NAME, SHIPPED
from ..oracles.cases import Case

Document = dict[str, Any]
Change = Callable[[Document], object]


def state(document: Document) -> list[Document]:
    rows: list[Document] = document["state"]["tensors"]
    return rows


def stabilizer(document: Document) -> Document:
    return next(row for row in state(document) if row["name"].endswith(".m"))


def memory(document: Document, letter: str) -> Document:
    """The row of this letter of the first matrix memory."""
    block = next(row["name"] for row in state(document) if row["name"].endswith(".C")).removesuffix("C")
    return next(row for row in state(document) if row["name"] == block + letter)


def rename(row: Document, name: str) -> None:
    row.update(name=name, input=f"past.{name}", output=f"present.{name}")


MANIFESTS: dict[str, Change] = {
    "unknown key": lambda d: d.update(extra=1),
    "unknown key in a section": lambda d: d["graph"].update(window=64),
    "a section less": lambda d: d.pop("sampling"),
    "a section as a list": lambda d: d.update(model=[]),
    "number as text": lambda d: d["model"].update(width="64"),
    "number as a float": lambda d: d["model"].update(width=64.0),
    "true as a number": lambda d: d["graph"].update(opset=True),
    "number beyond its range": lambda d: d["graph"].update(chunk=10**9),
    "number of many digits": lambda d: d["model"].update(parameters=10**4000),
    "negative vocabulary": lambda d: d["model"].update(vocab_size=-1),
    "schema as a float": lambda d: d.update(schema=float(SCHEMA)),
    "schema of tomorrow": lambda d: d.update(schema=SCHEMA + 1),
    "block of a kind nobody knows": lambda d: d["model"].update(blocks=["attention"]),
    "width that the files cannot hold": lambda d: d["model"].update(width=1_000_000),
    "millions of blocks": lambda d: d["model"].update(blocks=["mlstm"] * 20_000),
    "sampling as keywords": lambda d: d["sampling"].update(__class__="x"),
    "sampling of a seed": lambda d: d["sampling"].update(seed=1),
    "sampling out of range": lambda d: d["sampling"].update(top_p=7),
    "sampling as text": lambda d: d["sampling"].update(temperature="hot"),
    "stop id beyond the vocabulary": lambda d: d["special_tokens"].update(stop=[97]),
    "bos as a text": lambda d: d["special_tokens"].update(bos="<s>"),
    "thousands of stop ids": lambda d: d["special_tokens"].update(stop=[1] * 5000),
    "tokenizer of a kind nobody knows": lambda d: d["tokenizer"].update(kind="pickle"),
    "tokenizer without its file": lambda d: d["tokenizer"].update(kind="huggingface"),
    "tokenizer outside": lambda d: d["tokenizer"].update(kind="huggingface", file="../tokenizer.json"),
    "file name with a path": lambda d: d["files"].update({"a/b": d["files"]["model.onnx"]}),
    "file name of control characters": lambda d: d["files"].update({"\x1b[2J": d["files"]["model.onnx"]}),
    "file name of 300 letters": lambda d: d["files"].update({"x" * 300: d["files"]["model.onnx"]}),
    "the manifest among its files": lambda d: d["files"].update({"manifest.json": d["files"]["model.onnx"]}),
    "hash of other letters": lambda d: d["files"]["model.onnx"].update(sha256="z" * 64),
    "size below nothing": lambda d: d["files"]["model.onnx"].update(bytes=-1),
    "no weights": lambda d: d["files"].pop("model.onnx.data"),
    "hundreds of files": lambda d: d["files"].update({f"f{i}": d["files"]["model.onnx"] for i in range(100)}),
    "state without an end": lambda d: state(d)[0].update(initial=float("inf")),
    "state that starts elsewhere": lambda d: state(d)[0].update(initial=-1e30),
    "state of no size": lambda d: state(d)[0].update(shape=[0, 2, 2]),
    "state of a terabyte": lambda d: (
        state(d)[0].update(shape=[1 << 20, 1 << 18]),
        d["state"].update(bytes_per_session=sum(4 * size(row["shape"]) for row in state(d))),
    ),
    "state twice": lambda d: state(d).append(state(d)[0]),
    "state through another input": lambda d: state(d)[0].update(input="input_ids"),
    "offset of a tensor without axes": lambda d: stabilizer(d).update(shape=[], offset=[0.5]),
    "offset of other length": lambda d: stabilizer(d).update(offset=[0.5] * 99),
    "offset of split heads": lambda d: (
        stabilizer(d).update(shape=[1, 1, 4], head_splits=2, offset=[0.5] * 4),
        d["state"].update(bytes_per_session=sum(4 * size(row["shape"]) for row in state(d))),
    ),
    "state named like a scale of another": lambda d: rename(state(d)[0], "x.scale"),
    "state named like an offset of another": lambda d: rename(state(d)[0], "x.offset"),
    "memory without a normalizer": lambda d: rename(memory(d, "n"), "x"),
    "memory of no axes": lambda d: (
        memory(d, "C").update(shape=[], head_splits=1),
        d["state"].update(bytes_per_session=sum(4 * size(row["shape"]) for row in state(d))),
    ),
    "memory with the stabilizer of other heads": lambda d: memory(d, "m").update(shape=memory(d, "m")["shape"][::-1]),
    "state name of a path": lambda d: state(d)[0].update(name="../C"),
    "quantized to three bits of text": lambda d: d.update(quantization={"recipe": {}, "tensors": {"x": {"bits": "3"}}}),
    "recipe of unknown keys": lambda d: d.update(quantization={"recipe": {"evil": 1}, "tensors": {}}),
    "version of words": lambda d: d["minimum_runtime"].update(onnxruntime="newest"),
    "family that draws": lambda d: d.update(family="[red]\x1b[31m"),
    "producer of a megabyte": lambda d: d.update(producer="x" * (1 << 20)),
}  # fmt: skip
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "a number": b"7",
    "deep": b"[" * 100_000,
    "deeper objects": b'{"a":' * 100_000,
    "NaN": b'{"format": NaN}',
    "a key twice": b'{"format": "xlstm-edge", "format": "xlstm-edge"}',
    "other bytes": b"\xff\xfe\x00",
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "half of a pair": b'{"format": "\\ud800"}',
    "a number of 5,000 digits": b'{"schema": ' + b"9" * 5000 + b"}",
    "9 MB of blanks": b" " * (9 << 20),
}


def size(shape: list[int]) -> int:
    product = 1
    for number in shape:
        product *= number
    return product


@pytest.fixture(scope="module")
def bundle(checkpoint_of: Callable[[Case], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("malformed") / "bundle"
    xlstm_edge.export(checkpoint_of(BY_NAME["lm-mixed"]), out, chunk=8)
    return out


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to spoil: its own small files, links to nothing."""
    place = tmp_path / "bundle"
    place.mkdir()
    for path in bundle.iterdir():
        if path.is_file():
            os.link(path, place / path.name)
    return place


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def refused(call: Callable[[], object]) -> str:
    """The one sentence; within a second and 50 MB."""
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(XlstmEdgeError, match=r"expected .*got") as caught:
        call()
    seconds, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 3, seconds  # a second alone; the tests share their machine
    assert peak < 50 << 20, peak
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= 1003
    return message


@pytest.mark.parametrize("name", MANIFESTS)
def test_malformed_manifests(name: str, copy: Path) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    MANIFESTS[name](document)
    put(copy / "manifest.json", json.dumps(document).encode())
    refused(lambda: load(copy))


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("file", ["manifest.json", "vectors.json", "tuned/tuned.json"])
def test_what_is_no_document(file: str, name: str, copy: Path) -> None:
    manifest = Manifest.from_json((copy / "manifest.json").read_text())
    (copy / "tuned").mkdir()
    put(copy / file, TEXTS[name])
    if file == "manifest.json":
        refused(lambda: load(copy))
    elif file == "vectors.json":
        refused(lambda: read_vectors(copy, manifest))
    else:
        assert read_tuning(copy, manifest) is None


VECTORS: dict[str, Change] = {
    "unknown key": lambda d: d.update(tolerance=1e9),
    "seed of text": lambda d: d.update(seed="1"),
    "length of a million": lambda d: d.update(length=10**6),
    "a check less": lambda d: d["checks"].pop(),
    "checks of the first token": lambda d: [check.update(position=0) for check in d["checks"]],
    "ids beyond the outputs": lambda d: d["checks"][0].update(ids=[97] * len(d["checks"][0]["ids"])),
    "fewer values than ids": lambda d: d["checks"][0]["values"].pop(),
    "no values": lambda d: d["checks"][0].update(ids=[], values=[]),
    "values of text": lambda d: d["checks"][0].update(values=["1"] * len(d["checks"][0]["ids"])),
    "infinite value": lambda d: d["checks"][0]["values"].__setitem__(0, float("inf")),
    "values of many digits": lambda d: d["checks"][0]["values"].__setitem__(0, 10**400),
    "a range of nothing": lambda d: d["checks"][0].update(range=0),
    "an error as large as it likes": lambda d: d["checks"][0].update(float_error=1e9),
    "rounding of a float32 bundle": lambda d: d["checks"][0].update(rounding_error=1.0),
    "sums of other length": lambda d: d["checks"][0]["sums"].pop(),
}


@pytest.mark.parametrize("name", VECTORS)
def test_malformed_vectors(name: str, copy: Path) -> None:
    manifest = Manifest.from_json((copy / "manifest.json").read_text())
    document = json.loads((copy / "vectors.json").read_text())
    VECTORS[name](document)
    put(copy / "vectors.json", json.dumps(document).encode())
    refused(lambda: read_vectors(copy, manifest))


TUNINGS: dict[str, Change] = {
    "chunk of 2.5": lambda d: d.update(chunk=2.5),
    "threads of 2.0": lambda d: d.update(threads=2.0),
    "no threads": lambda d: d.update(threads=0),
    "true threads": lambda d: d.update(threads=True),
    "a chunk beyond the graph's": lambda d: d.update(chunk=9),
    "a spin without an end": lambda d: d.update(spin=10**9),
    "unknown key": lambda d: d.update(extra=1),
    "a key less": lambda d: d.pop("spin"),
    "in place as a text": lambda d: d.update(in_place="yes"),
    "files outside": lambda d: d.update(files={"../model.onnx": {"bytes": 1, "sha256": "0" * 64}}),
    "a graph that is not there": lambda d: d.update(weights="prepacked"),
    "float weights that are not there": lambda d: d.update(weights="float32"),
    "a key of another machine": lambda d: d.update(key="0" * 64),
}


@pytest.mark.parametrize("name", TUNINGS)
def test_malformed_tunings_are_not_used(name: str, bundle: Path, copy: Path) -> None:
    from xlstm_edge_runtime import tune

    manifest = Manifest.from_json((bundle / "manifest.json").read_text())
    if not (bundle / "tuned").exists():
        tune.tune_bundle(bundle)
    (copy / "tuned").mkdir()
    document = json.loads((bundle / "tuned" / TUNING_RECORD).read_text())
    put(copy / "tuned" / TUNING_RECORD, json.dumps(document).encode())
    assert read_tuning(copy, manifest) is not None  # healthy before it is spoiled
    TUNINGS[name](document)
    put(copy / "tuned" / TUNING_RECORD, json.dumps(document).encode())
    assert read_tuning(copy, manifest) is None
    assert load(copy).chunk == manifest.graph.chunk


RECIPES: dict[str, bytes] = {
    "no TOML": b"quantize = ",
    "unknown key": b"evil = 1",
    "a section": b"[quantize]\nx = 1",
    "of another type": b"quantize = 4",
    "a date": b"quantize = 2001-09-09",
    "a date that is none": b"quantize = 2001-99-99",
    "a number of 5,000 digits": b"chunk = " + b"9" * 5000,
    "infinite target": b'quantize = "mixed"\ncalibrate = "text"\ntarget_mb = inf',
    "infinite bits": b'quantize = "mixed"\ncalibrate = "text"\ntarget_bpw = 1e999',
    "target of NaN": b'quantize = "mixed"\ncalibrate = "text"\ntarget_mb = nan',
    "target of 400 digits": b'quantize = "mixed"\ncalibrate = "text"\ntarget_mb = ' + b"9" * 400,
    "a number in hexadecimal without end": b"chunk = 0x" + b"f" * 5000,
    "a number in binary in a list": b"keep = [[0b" + b"1" * 20000 + b"]]",
    "keys in keys": b"a" + b".a" * 20_000 + b" = 1",
    "keys in keys, spaced": b'"a" ' + b". a " * 10_000 + b"= 1",
    "a table in tables": b"[a" + b".a" * 20_000 + b"]",
    "a path that no system takes": b'quantize = "int4"\ncalibrate = "' + b"x" * 5000 + b'"',
    "a path with a zero byte": b'quantize = "int4"\ncalibrate = "a\\u0000"',
    "a calibration that is no text": b'quantize = "int4"\ncalibrate = "other"',
    "three bits": b'quantize = "int4"\nhead_bits = 3',
    "other bytes": b"\xff",
    "deep": b"chunk = " + b"[" * 10_000,
    "two megabytes": b"#" * (2 << 20),
    "keep of text": b'quantize = "int4"\n[keep]\n"blocks.*" = "8"',
}


@pytest.mark.parametrize("name", RECIPES)
def test_malformed_recipes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(RECIPES[name])
    (tmp_path / "text").write_text("text")
    (tmp_path / "other").write_bytes(b"\xff\xfe")
    refused(lambda: read_recipe(path, {}))


@pytest.mark.parametrize(
    "options",
    [{"chunk": 10**5000}, {"quantize": "x" * 10**6}, {"quantize": "int4", "head_bits": 10**5000},
     {"quantize": "int4", "method": "\x1b[31m"}, {"quantize": "int4", "calibrate": "x" * 5000}],
    ids=lambda options: str(list(options)),
)  # fmt: skip
def test_options_of_an_export_that_no_recipe_has(options: dict[str, Any], tmp_path: Path) -> None:
    refused(lambda: check_export(tmp_path / "bundle", ExportOptions(**options)))


def test_a_recipe_that_is_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.toml")
    with pytest.raises(InputError, match="regular"):
        read_recipe(tmp_path / "recipe.toml", {})


def test_an_error_is_one_printable_line_of_bounded_length() -> None:
    """Whoever raises it, and whatever it was made of."""
    for error in (XlstmEdgeError, InputError):
        message = str(error("expected a\x1b[31mred\n\u202eline\udcff, got \u00e9; look"))
        assert message == r"expected a\x1b[31mred\n\u202eline\udcff, got é; look"
        assert str(error("x" * 1000)) == "x" * 1000
        assert str(error("x" * 1001)) == "x" * 1000 + "..."
        assert str(error()) == ""


def test_a_reader_takes_what_it_was_told_and_nothing_else() -> None:
    reader = Reader({"n": 3, "t": "ab", "x": None}, "it", ["n", "t"], optional=["x", "y"])
    assert (reader.integer("n", 3, 3), reader.text("t", pattern="a."), reader.is_null("x"), reader.is_null("y")) == (
        3, "ab", True, True,
    )  # fmt: skip
    for call in (
        lambda: reader.integer("n", 4),
        lambda: reader.integer("n", 0, 2),
        lambda: reader.integer("t", 0),
        lambda: reader.text("n"),
        lambda: reader.text("t", pattern="a"),
        lambda: reader.text("t", among=("a", "b")),
        lambda: reader.flag("n"),
        lambda: reader.section("n", []),
        lambda: reader.sections("n", 3, []),
        lambda: reader.number("t", 0, 1),
        lambda: Reader({"n": 3, "z": 1}, "it", ["n"]),
        lambda: Reader({}, "it", ["n"]),
        lambda: Reader([], "it", []),
    ):
        with pytest.raises(XlstmEdgeError, match="expected it"):
            call()
    assert parse_json(b'{"a": 1e999}', "it", advice="mend it") == {"a": float("inf")}
    with pytest.raises(XlstmEdgeError):
        Reader({"a": float("inf")}, "it", ["a"]).number("a", 0, 1e308)


@pytest.mark.parametrize("path", ["x" * 5000, "x/" * 3000, "a\0b"], ids=["long", "deep", "null"])
def test_paths_that_no_system_takes_are_one_sentence(path: str) -> None:
    for call in (xlstm_edge.verify, load, xlstm_edge.inspect, lambda place: xlstm_edge.export(SHIPPED, place)):
        with pytest.raises(XlstmEdgeError, match="expected"):
            call(path)


@pytest.mark.parametrize(
    "options",
    [{"provider": None}, {"provider_options": {"x": object()}}, {"spin": 10**5000}, {"threads": 10**5000}],
)
def test_settings_of_a_load_are_told(options: dict[str, Any], bundle: Path) -> None:
    with pytest.raises(InputError, match="expected") as caught:
        load(bundle, **options)
    assert str(caught.value).isprintable()


ODD_PATHS: list[Any] = [None, 5, b"bytes", True, ["a"]]


@pytest.mark.parametrize("value", ODD_PATHS, ids=str)
def test_what_is_no_path_is_told_everywhere(value: Any, bundle: Path, tmp_path: Path) -> None:
    session = load(bundle).session()
    calls: list[Callable[[], object]] = [
        lambda: load(value), lambda: session.save(value), lambda: session.load(value), lambda: xlstm_edge.verify(value),
        lambda: xlstm_edge.inspect(value), lambda: xlstm_edge.export(value, tmp_path / "b"),
        lambda: xlstm_edge.export(SHIPPED, value),
    ]  # fmt: skip
    if value is not None:
        calls += [
            lambda: xlstm_edge.export(SHIPPED, tmp_path / "b", recipe=value),
            lambda: xlstm_edge.inspect(SHIPPED, prefix=value),
        ]
    for call in calls:
        with pytest.raises(XlstmEdgeError, match="expected"):
            call()


def test_ranges_without_end_are_refused_before_they_are_made(bundle: Path) -> None:
    session, endless = load(bundle).session(), range(10**12)
    calls: list[Callable[[], object]] = [
        lambda: session.prefill(endless), lambda: session.step(endless),  # type: ignore[arg-type]  # wrong on purpose
        lambda: session.generate([1], stop_ids=endless), lambda: session.generate([1], banned=endless),
        lambda: session.prefill(range(10**30)),
    ]  # fmt: skip
    for call in calls:
        refused(call)
