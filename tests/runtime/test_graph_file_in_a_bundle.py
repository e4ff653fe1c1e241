"""Which files a graph reads, and the chunk that it is exact for."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import xlstm_edge_runtime as xr
from xlstm_edge_runtime.graph_file import external_files

from ..changed_bundles import change_graph, edit_json, rehash
from ..command import Command, assert_one_sentence
from ..oracles.cases import Case

CheckpointOf = Callable[[Case], Path]


Change = Callable[[Path], object]


# Which files a graph reads


def locations(folder: Path) -> list[onnx.StringStringEntryProto]:
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    return [entry for t in graph.graph.initializer for entry in t.external_data if entry.key == "location"]


def test_the_walk_finds_what_onnx_finds(bundle: Path, int4_bundle: Callable[[str], Path]) -> None:
    for folder in (bundle, int4_bundle("shipped")):
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


@pytest.mark.parametrize(("target", "chunk"), [("cpu", 65), ("cpu", 4096), ("portable", 2)])
def test_a_chunk_beyond_the_graph_is_refused(
    target: str, chunk: int, export_of: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(export_of("lm-mixed", target=target), tmp_path / "bundle")
    edit_json(tmp_path / "bundle" / "manifest.json", lambda m: m["graph"].update(chunk=chunk))
    with pytest.raises(xr.BundleError, match="chunk"):
        xr.load(tmp_path / "bundle")
