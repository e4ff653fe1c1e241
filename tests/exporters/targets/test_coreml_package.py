"""The Core ML package: its bytes, its program, and its numbers as an interpreter of ML programs computes them."""

import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import xlstm_edge_runtime as xr
from xlstm_edge_exporters.bundle import write_graph
from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.interface import GraphOptions, graph_states
from xlstm_edge_exporters.reference import build
from xlstm_edge_exporters.targets import TARGETS, coreml_program
from xlstm_edge_exporters.targets.coreml_package import PACKAGE_ZIP, write_package
from xlstm_edge_exporters.trace import trace
from xlstm_edge_exporters.weights import loaded

from ...command import ROOT
from ...conftest import BY_NAME, SHIPPED
from ...oracles.cases import Case
from .mil import INSIDE, OPERATIONS, Package, quiet

needs_coremltools = pytest.mark.skipif(
    importlib.util.find_spec("coremltools") is None,
    reason="the package coremltools is not installed: pip install 'xlstm-edge[coreml]'",
)
NAMES = ["shipped", "lm-mixed", "large-plain", "large-one-head", "stack-slstm"]
TOKENS = 20
Written = Callable[[str, bool], Package]


@pytest.fixture(scope="module")
def checkpoint(opened: Callable[[Case], Checkpoint]) -> Callable[[str], Checkpoint]:
    return lambda name: open_checkpoint(SHIPPED) if name == "shipped" else opened(BY_NAME[name])


@pytest.fixture(scope="module")
def written(checkpoint: Callable[[str], Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Written:
    @cache
    def make(name: str, stateful: bool) -> Package:
        folder, found = tmp_path_factory.mktemp("package"), checkpoint(name)
        path = packaged(found, folder, stateful=stateful)
        assert [path] == [folder / PACKAGE_ZIP] == list(folder.iterdir())
        return Package(path, folder)

    return make


def packaged(found: Checkpoint, folder: Path, *, stateful: bool = True) -> Path:
    """A package of a checkpoint, alone in the folder: the graph it is made of was written beside it and is gone."""
    options = GraphOptions(target="coreml", chunk=1)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        graph = write_graph(trace(found.spec, options), found, Path(place), options=options)
        table = graph_states(found.spec, options)
        written = write_package(graph, table, family=found.spec.family, stateful=stateful)
        assert {path.name for path in Path(place).iterdir()} == {"model.onnx", "model.onnx.data", PACKAGE_ZIP}
        return written.rename(folder / PACKAGE_ZIP)


def inputs_of(found: Checkpoint, count: int = TOKENS) -> Iterator[Tensor]:
    """Random ids (1, 1), or vectors (1, 1, D)."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        if found.spec.vocab_size is None:
            yield torch.from_numpy(rng.standard_normal((1, 1, found.spec.width)))
        else:
            yield torch.tensor([[int(rng.integers(found.spec.vocab_size))]])


def reference_of(found: Checkpoint, *, half: bool = False) -> list[Tensor]:
    """Outputs of the papers' recurrences in float64, each state from its own start value; weights as they are or float16's."""
    target = TARGETS["coreml"]
    spec, weights = found.spec.official(), found.weights
    if half:
        made = target.weights(found.spec, found.weights)
        weights = {n: loaded(w.load().astype(np.float16).astype(np.float32)) for n, w in made.items()}
        spec = target.spec(found.spec)
    model, table = build(spec, weights, torch.float64), spec.state_table()
    state = {name: torch.from_numpy(array).double() for name, array in table.initial().items()}
    outputs = []
    for given in inputs_of(found):
        output, state = model(given, state)
        outputs.append(output.reshape(-1))
    return outputs


def outputs_of(package: Package, found: Checkpoint, *, rounded: bool) -> list[Tensor]:
    """What the package gives, every state from 0."""
    state, outputs = package.initial(), []
    for given in inputs_of(found):
        output, state = package.run(given, state, rounded=rounded)
        outputs.append(output.reshape(-1).double())
    return outputs


def difference(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest of any output, as a share of the range of all."""
    span = max(float(w.max()) for w in wanted) - min(float(w.min()) for w in wanted)
    return max(float((g - w).abs().max()) for g, w in zip(got, wanted, strict=True)) / span


@needs_coremltools
@pytest.mark.parametrize("stateful", [True, False], ids=["stateful", "explicit"])
@pytest.mark.parametrize("name", NAMES)
def test_the_program_is_one_function_of_known_operations_in_float16(
    name: str, stateful: bool, written: Written
) -> None:
    package = written(name, stateful)
    assert list(package.spec.mlProgram.functions) == ["main"]
    assert package.spec.specificationVersion == (9 if stateful else 7)  # iOS 18, iOS 16
    count = Counter(operation.op_type for operation in package.operations)
    assert not count.keys() - OPERATIONS.keys()
    for operation in package.operations:
        kinds = {v.dtype.__name__ for v in operation.outputs} - {"int32"}
        if operation.op_type == "cast":
            assert operation.outputs[0].name == "logits" or name == "stack-slstm"
        else:
            assert kinds == {"fp16"}, operation.name


@needs_coremltools
@pytest.mark.parametrize("name", NAMES)
def test_every_state_is_read_and_written_once(
    name: str, written: Written, checkpoint: Callable[[str], Checkpoint]
) -> None:
    package, found = written(name, True), checkpoint(name)
    table = graph_states(found.spec, GraphOptions(target="coreml", chunk=1))
    shapes = {row.name.replace(".", "_"): (1, *row.graph_shape) for row in table}
    stated = {
        s.name: (tuple(s.type.stateType.arrayType.shape), s.type.stateType.arrayType.dataType)
        for s in package.spec.description.state
    }
    assert stated == {state: (shape, 65552) for state, shape in shapes.items()}  # float16
    read = Counter(op.input.name for op in package.operations if op.op_type == "read_state")
    update = Counter(op.state.name for op in package.operations if op.op_type == "coreml_update_state")
    assert read == update == dict.fromkeys(shapes, 1)


@needs_coremltools
@pytest.mark.parametrize("name", NAMES)
def test_states_in_and_out_have_the_same_shapes(
    name: str, written: Written, checkpoint: Callable[[str], Checkpoint]
) -> None:
    package, found = written(name, False), checkpoint(name)
    table = graph_states(found.spec, GraphOptions(target="coreml", chunk=1))
    features = package.spec.description
    first, *past = [
        (f.name, tuple(f.type.multiArrayType.shape), f.type.multiArrayType.dataType) for f in features.input
    ]
    last, *present = [(f.name, f.type.multiArrayType.dataType) for f in features.output]
    names = [row.name.replace(".", "_") for row in table]
    assert not package.spec.description.state
    assert past == [(f"past_{n}", (1, *row.graph_shape), 65552) for n, row in zip(names, table, strict=True)]
    assert present == [(f"present_{n}", 65552) for n in names]
    if name == "stack-slstm":
        assert first == ("inputs_embeds", (1, 1, found.spec.width), 65568)  # float32
        assert last == ("last_hidden_state", 65568)
    else:
        assert first == ("input_ids", (1, 1), 131104)  # int32
        assert last == ("logits", 65568)


@needs_coremltools
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_there_once_and_in_two_bytes(
    name: str, written: Written, checkpoint: Callable[[str], Checkpoint]
) -> None:
    package, found = written(name, True), checkpoint(name)
    parameters = sum(np.prod(w.shape) for w in TARGETS["coreml"].weights(found.spec, found.weights).values())
    floats = [v.val for v in package.constants if isinstance(v.val, np.ndarray) and v.val.dtype.kind == "f"]
    assert {array.dtype for array in floats} == {np.dtype(np.float16)}
    stored = sum(array.size for array in floats)
    extra = max(found.spec.width * 60, parameters * 0.02)  # zero biases, and ones where a norm has no weight
    assert parameters * 0.99 <= stored <= parameters + extra
    assert (package.folder / "weights" / "weight.bin").stat().st_size <= 2 * stored + 128 * len(floats)


@needs_coremltools
@pytest.mark.parametrize("stateful", [True, False], ids=["stateful", "explicit"])
@pytest.mark.parametrize("name", NAMES)
def test_without_rounding_the_program_is_the_reference(
    name: str, stateful: bool, written: Written, checkpoint: Callable[[str], Checkpoint]
) -> None:
    """Float64 throughout, float16 weights on both sides: what is left are constants that float16 rounds."""
    found = checkpoint(name)
    got = outputs_of(written(name, stateful), found, rounded=False)
    assert difference(got, reference_of(found, half=True)) <= 5e-4


@needs_coremltools
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_rounded_the_program_is_near_the_checkpoint(
    name: str, written: Written, checkpoint: Callable[[str], Checkpoint]
) -> None:
    found = checkpoint(name)
    got, wanted = outputs_of(written(name, True), found, rounded=True), reference_of(found)
    assert difference(got, wanted) <= 0.01
    if name == "shipped":
        assert [int(g.argmax()) for g in got] == [int(w.argmax()) for w in wanted]


@needs_coremltools
@pytest.mark.parametrize("name", ["shipped", "large-plain"])
def test_both_forms_compute_the_same(name: str, written: Written, checkpoint: Callable[[str], Checkpoint]) -> None:
    got, other = (outputs_of(written(name, stateful), checkpoint(name), rounded=True) for stateful in (True, False))
    assert all(torch.equal(g, o) for g, o in zip(got, other, strict=True))


def with_low_input_gates(found: Checkpoint) -> Checkpoint:
    """The first sLSTM, of one head, with input gates near -20, whose exponentials float16 does not hold."""
    name = "blocks.0.mixer.gates.bias"
    bias = found.weights[name].load().copy()
    bias[: found.spec.width] = -20.0
    return replace(found, weights={**found.weights, name: loaded(bias)})


@needs_coremltools
def test_an_slstm_starts_at_zero_whatever_its_first_gates(
    checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    found = with_low_input_gates(checkpoint("stack-slstm"))
    package = Package(packaged(found, tmp_path), tmp_path)
    for rounded in (True, False):
        assert difference(outputs_of(package, found, rounded=rounded), reference_of(found)) <= 0.02
    state = package.initial()
    for given in inputs_of(found):
        _, state = package.run(given, state)
        assert all(tensor.min() >= 1.0 for name, tensor in state.items() if name.endswith("_n"))


@needs_coremltools
def test_a_stabilizer_from_zero_is_right_in_float64_and_wrong_in_float16(
    checkpoint: Callable[[str], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the program lowers the stabilizer of a cell that has seen no token: without that, c / n is 0 / 0."""
    monkeypatch.setattr(coreml_program, "_started", lambda m, n, initial: m)
    found = with_low_input_gates(checkpoint("stack-slstm"))
    package = Package(packaged(found, tmp_path), tmp_path)
    assert difference(outputs_of(package, found, rounded=False), reference_of(found, half=True)) <= 5e-4
    assert outputs_of(package, found, rounded=True)[0].isnan().any()


@needs_coremltools
def test_the_bytes_are_the_same_in_another_process(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    code = "import sys, xlstm_edge; xlstm_edge.export(sys.argv[1], sys.argv[2], target='coreml', ahead_of_time=True)"
    own = [str(ROOT / part) for part in (".", "exporters", "runtime")]
    paths = os.pathsep.join([*own, os.environ.get("PYTHONPATH", "")])
    hashes = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, checkpoint_of(BY_NAME["lm-mixed"]), folder],
            env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout == done.stderr == ""
        hashes.add(hashlib.sha256((folder / PACKAGE_ZIP).read_bytes()).hexdigest())
    assert len(hashes) == 1


@needs_coremltools
def test_the_zip_holds_one_package_without_times(written: Written) -> None:
    with zipfile.ZipFile(written("lm-mixed", True).folder.parents[2] / PACKAGE_ZIP) as archive:
        entries = archive.infolist()
    assert [e.filename for e in entries] == [
        f"{INSIDE}/model.mlmodel", f"{INSIDE}/weights/weight.bin", "model.mlpackage/Manifest.json",
    ]  # fmt: skip
    assert {e.date_time for e in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {e.compress_type for e in entries} == {zipfile.ZIP_STORED}


@needs_coremltools
def test_apple_s_library_reads_the_package(written: Written) -> None:
    package = written("lm-mixed", True)
    with quiet():
        import coremltools as ct

        model = ct.models.MLModel(str(package.folder.parents[1]), skip_model_load=True)
    assert model.get_spec() == package.spec
    assert Path(model.weights_dir) == package.folder / "weights"


@needs_coremltools
def test_nothing_is_left_elsewhere_and_nobody_is_asked(
    checkpoint: Callable[[str], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    (home := tmp_path / "home").mkdir()
    (folder := tmp_path / "bundle").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(socket, "socket", None)
    found = checkpoint("lm-mixed")
    packaged(found, folder)
    assert [path.name for path in folder.iterdir()] == [PACKAGE_ZIP]
    assert not [*temporary.iterdir(), *home.iterdir()]


@needs_coremltools
def test_weights_beyond_float16_are_refused(checkpoint: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    found = checkpoint("lm-mixed")
    weights = {**found.weights, "head.weight": found.weights["head.weight"].map(lambda array: array * 0 + 7e4)}
    with pytest.raises(xr.CheckpointError, match=r"^expected .* float16 .*, got .* in head.weight; take"):
        packaged(replace(found, weights=weights), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_extra_is_named(
    checkpoint: Callable[[str], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    found = checkpoint("lm-mixed")
    with pytest.raises(xr.DependencyError, match=r"expected the package coremltools .*xlstm-edge\[coreml\]"):
        packaged(found, tmp_path)
    assert not list(tmp_path.iterdir())
