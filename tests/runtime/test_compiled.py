"""Compiled graphs: one node that names one listed file, and every way to be something else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import xlstm_edge_runtime as xr
from xlstm_edge_runtime.chips import CHIPS, chip_of, chip_options
from xlstm_edge_runtime.compiled import binary_of, check_compiled, compiled_graph
from xlstm_edge_runtime.manifest import file_entry, read_manifest
from xlstm_edge_runtime.providers import choose_provider
from xlstm_edge_runtime.verify import verify_bundle

from ..changed_bundles import edit_json, rehash
from ..conftest import BY_NAME
from ..oracles.cases import Case

GOOD: dict[str, Any] = {"main_context": 1, "embed_mode": 0, "ep_cache_context": "model.8gen2_qnn.bin", "source": "QNN"}


def written(
    path: Path, attributes: dict[str, Any], *, operator: str = "EPContext", nodes: int = 1, weights: int = 0
) -> Path:
    """A file as a compiler writes it, or nearly."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    made = [helper.make_node(operator, ["x"], [f"y{i}"], domain="com.microsoft", **attributes) for i in range(nodes)]
    tensors = [helper.make_tensor(f"w{i}", TensorProto.FLOAT, [1], [0.0]) for i in range(weights)]
    graph = helper.make_graph(made, "g", [x], [helper.make_tensor_value_info("y0", TensorProto.FLOAT, [1])], tensors)
    onnx.save(helper.make_model(graph), path)
    return path


def test_the_binary_is_the_one_that_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", GOOD)
    assert binary_of(path) == "model.8gen2_qnn.bin"
    check_compiled(path, ["model.8gen2_qnn.bin"])


@pytest.mark.parametrize(
    "change",
    [
        {"embed_mode": 1}, {"embed_mode": None}, {"ep_cache_context": "/etc/passwd"}, {"ep_cache_context": "../x.bin"},
        {"ep_cache_context": "other.bin"}, {"ep_cache_context": ""}, {"ep_cache_context": None}, {"ep_cache_context": 3},
        {"embed_mode": 1 << 40},
    ],
    ids=str,
)  # fmt: skip
def test_a_binary_elsewhere_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    attributes = {name: value for name, value in (GOOD | change).items() if value is not None}
    with pytest.raises(xr.BundleError, match=r"a\.onnx"):
        check_compiled(written(tmp_path / "a.onnx", attributes), ["model.8gen2_qnn.bin"])


@pytest.mark.parametrize(
    "other", [{"operator": "Loop"}, {"nodes": 2}, {"nodes": 0}, {"weights": 1}, {"operator": ""}], ids=str
)
def test_more_than_one_node_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(xr.BundleError, match=r"expected a\.onnx to be a compiled graph"):
        check_compiled(written(tmp_path / "a.onnx", GOOD, **other), ["model.8gen2_qnn.bin"])


def test_an_attribute_twice_is_refused(tmp_path: Path) -> None:
    """Two readers could take different ones."""
    path = written(tmp_path / "a.onnx", GOOD)
    model = onnx.load(path)
    model.graph.node[0].attribute.append(helper.make_attribute("ep_cache_context", "/etc/passwd"))
    onnx.save(model, path)
    with pytest.raises(xr.BundleError, match="an attribute twice"):
        check_compiled(path, ["model.8gen2_qnn.bin"])


@pytest.mark.parametrize("content", [b"", b"\0", b"no graph", b"\x0a\xff\xff\xff\xff\xff\x7f", bytes(2 << 20)])
def test_what_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(xr.BundleError, match=r"a\.onnx"):
        check_compiled(tmp_path / "a.onnx", [])


@pytest.fixture
def bundle(bundle_of: Callable[[Case, str], Path], tmp_path: Path) -> Path:
    """A bundle with a compiled graph, of which nothing but the first file is real."""
    folder = shutil.copytree(bundle_of(BY_NAME["lm-mixed"], "qnn"), tmp_path / "bundle")
    (folder / "model.8gen2_qnn.bin").write_bytes(b"compiled")
    written(folder / "model.8gen2.onnx", GOOD)
    document = json.loads((folder / "manifest.json").read_text())
    document["compiled"] = {"8gen2": ENTRY}
    for name in ("model.8gen2.onnx", "model.8gen2_qnn.bin"):
        entry = file_entry(folder / name)
        document["files"][name] = {"bytes": entry.bytes, "sha256": entry.sha256}
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


def test_a_compiled_graph_is_for_its_chip(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert compiled_graph(bundle, manifest, choose_provider("qnn", {"soc": "8gen2"})) == bundle / "model.8gen2.onnx"
    same = choose_provider("qnn", {"htp_arch": 73, "soc_model": 43})
    assert compiled_graph(bundle, manifest, same) == bundle / "model.8gen2.onnx"
    for options in ({}, {"soc": "8gen3"}, {"htp_arch": 73}):
        assert compiled_graph(bundle, manifest, choose_provider("qnn", options)) is None
    assert compiled_graph(bundle, manifest, choose_provider("cpu")) is None
    xr.load(bundle)  # the graph itself stays what it was


def test_a_compiled_graph_that_was_changed_is_refused(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    written(bundle / "model.8gen2.onnx", GOOD | {"source": "QQQ"})
    with pytest.raises(xr.BundleError, match=r"model\.8gen2\.onnx"):
        compiled_graph(bundle, manifest, choose_provider("qnn", {"soc": "8gen2"}))


ENTRY = {"file": "model.8gen2.onnx", "provider": "qnn", "weights": "float16", "prompt": None}
WRONG: list[Any] = [
    {"8gen2": ENTRY | {"file": "model.missing.onnx"}}, {"8gen2": ENTRY | {"file": "../x.onnx"}}, {"../8": ENTRY}, [], None,
    {"8gen2": {"file": "model.8gen2.onnx"}}, {"8gen2": ENTRY | {"more": 1}}, {"8gen2": "model.8gen2.onnx"},
    {"8gen2": ENTRY | {"provider": "abc"}}, {"8gen2": ENTRY | {"file": "model.onnx"}}, {"8gen2": ENTRY | {"weights": "int3"}},
    {"8gen2": ENTRY | {"prompt": "model.onnx"}}, {"8gen2": ENTRY | {"prompt": "prompt.8gen2.onnx"}},
    {f"c{i}": ENTRY for i in range(40)},
]  # fmt: skip


@pytest.mark.parametrize("compiled", WRONG, ids=lambda value: str(value)[:60])
def test_what_the_manifest_may_say_of_it(compiled: Any, bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    document["compiled"] = compiled
    (bundle / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(xr.BundleError):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("name", "file", "weights"),
    [
        ("coreml", "model.mlpackage.zip", "float16"),
        ("openvino", "model.openvino.xml", "int8"),
        ("litert", "model.tflite", "float32"),
        ("genai", "model.genai.onnx", "int4"),
    ],
)
def test_forms_of_other_runtimes_are_known_and_hashed(name: str, file: str, weights: str, bundle: Path) -> None:
    (bundle / file).write_bytes(b"a form")
    edit_json(
        bundle / "manifest.json",
        lambda d: d.update(compiled={name: {"file": file, "provider": name, "weights": weights, "prompt": None}}),
    )
    with pytest.raises(xr.BundleError, match=file):
        read_manifest(bundle)
    edit_json(bundle / "manifest.json", lambda d: d["files"].update({file: {"bytes": 6, "sha256": "0" * 64}}))
    rehash(bundle)
    assert read_manifest(bundle).compiled[name].file == file
    assert next(check.detail for check in verify_bundle(bundle) if check.name == "compiled").startswith(file)


def test_chips_by_name() -> None:
    assert [chip_of(chip_options(name)) for name in CHIPS] == list(CHIPS)
    assert len(set(CHIPS.values())) == len(CHIPS)
    assert chip_of({}) is None
    with pytest.raises(xr.InputError, match="expected soc as one of 8gen1"):
        choose_provider("qnn", {"soc": "8gen9"})


def test_verify_looks_into_compiled_graphs(bundle: Path) -> None:
    assert "compiled" in [check.name for check in verify_bundle(bundle)]
    (bundle / "model.8gen2.onnx").write_bytes(b"junk")
    rehash(bundle)
    with pytest.raises(xr.VerificationError, match="to be a compiled graph"):
        list(verify_bundle(bundle))


def test_offsets_are_those_of_the_graph(bundle: Path) -> None:
    """Snapshots would be wrong by them, and nothing else would show it."""

    def change(document: dict[str, Any]) -> None:
        row = next(row for row in document["state"]["tensors"] if row["offset"])
        row["offset"][0] += 3.0

    edit_json(bundle / "manifest.json", change)
    with pytest.raises(xr.VerificationError, match=r"the offset of .* as in the graph"):
        list(verify_bundle(bundle))
