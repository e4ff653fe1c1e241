"""OpenVINO's own form of a bundle, run by OpenVINO: the same numbers and states, integers where they belong, nothing sent."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import xlstm_edge
from xlstm_edge.evaluate import read_ids
from xlstm_edge_exporters.targets import openvino_ir
from xlstm_edge_exporters.targets.openvino_ir import IR, Bits, write_ir
from xlstm_edge_runtime import DependencyError, Model, load
from xlstm_edge_runtime.manifest import read_manifest
from xlstm_edge_runtime.state import SMALL_INITIAL_M, StateTable

from ...benchmarks.openvino_ir import Stateful, cost, difference
from ...command import PATHS, ROOT
from ...conftest import BY_NAME, SHIPPED, sequence_for
from ...oracles.cases import Case

BundleOf = Callable[[Case, str], Path]
ModelOf = Callable[[Case, str], Model]
needs_openvino = pytest.mark.skipif(
    not (find_spec("openvino") and find_spec("nncf")),
    reason="the packages openvino and nncf are not installed: pip install 'xlstm-edge[openvino-ir]'",
)
KINDS: list[Bits | None] = [None, "int8", "int4"]


def written(bundle: Path, folder: Path, weights: Bits | None = None, table: StateTable | None = None) -> Path:
    """The IR of a bundle for OpenVINO, in a folder of its own."""
    folder.mkdir()
    files = write_ir(bundle / "model.onnx", folder, table or read_manifest(bundle).state, weights=weights)
    assert sorted(files) == sorted(folder.iterdir())
    return files[0]


@needs_openvino
@pytest.mark.parametrize("name", ["lm-mixed", "lm-all-slstm", "large-plain", "stack-slstm", "stack-mixed"])
def test_it_computes_what_the_bundle_computes(
    name: str, bundle_of: BundleOf, model_of: ModelOf, tmp_path: Path
) -> None:
    case = BY_NAME[name]
    stateful = Stateful(written(bundle_of(case, "openvino"), tmp_path / "ir"))
    inputs = sequence_for(case, 200)
    for _ in range(2):  # after a reset it starts where it started
        for target in ("openvino", "cpu"):
            assert difference(stateful.step, model_of(case, target).session().step, inputs) < 1e-5
            stateful.reset()


@needs_openvino
@pytest.mark.parametrize(("tensor", "initial"), [("blocks.1.y", 1.0), ("blocks.0.conv", 1.0), ("blocks.1.m", 0.0)])
def test_a_state_starts_where_its_row_says(
    tensor: str, initial: float, bundle_of: BundleOf, model_of: ModelOf, tmp_path: Path
) -> None:
    """Other starts show that they are read; an sLSTM's stabilizer may start anywhere, as there is nothing in its cell yet."""
    case = BY_NAME["lm-mixed"]
    table = read_manifest(bundle_of(case, "openvino")).state
    assert next(row for row in table if row.name == "blocks.1.m").initial == SMALL_INITIAL_M
    moved = StateTable([replace(row, initial=initial) if row.name == tensor else row for row in table])
    stateful = Stateful(written(bundle_of(case, "openvino"), tmp_path / "ir", table=moved))
    session = model_of(case, "openvino").session()
    plain = session.step(3).copy()
    session._set_state(moved.initial(), 0)
    wanted = session.step(3).copy()
    for _ in range(2):
        assert abs(stateful.step(3) - wanted).max() <= 1e-5 * np.ptp(wanted)
        stateful.reset()
    assert (abs(wanted - plain).max() > 1e-4 * np.ptp(wanted)) == (tensor != "blocks.1.m")


@needs_openvino
def test_variables_are_the_rows_of_the_table(bundle_of: BundleOf, model_of: ModelOf, tmp_path: Path) -> None:
    """So a state goes from onnxruntime to OpenVINO and back by its names."""
    case = BY_NAME["lm-mixed"]
    stateful, session = (
        Stateful(written(bundle_of(case, "openvino"), tmp_path / "ir")),
        model_of(case, "openvino").session(),
    )
    table, tokens = model_of(case, "openvino").manifest.state, sequence_for(case, 40)
    for token in tokens[:20]:
        session.step(token)
    variables = {variable.name: variable for variable in stateful.variables()}
    assert variables.keys() == {row.name for row in table}
    import openvino

    for name, array in table.to_graph(session.state).items():
        variables[name].state = openvino.Tensor(array)
    assert difference(stateful.step, session.step, tokens[20:]) < 1e-5
    back = table.from_graph({name: variable.state.data.copy() for name, variable in variables.items()})
    for name, array in session.state.items():
        assert np.allclose(back[name], array, rtol=1e-4, atol=1e-4), name


def integers(file: Path) -> dict[str, str]:
    """Name -> type of the constants that hold integers of weights."""
    found = re.findall(r'name="([\w.]+)" type="Const"[^>]*>\s*<data element_type="([iu][48])"', file.read_text())
    return {name: kind for name, kind in found if "weight" in name or "recurrent" in name}


@needs_openvino
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", ["lm-mixed", "lm-five-heads", "large-plain", "stack-mixed"])
def test_dense_matrices_alone_become_integers(name: str, kind: Bits, bundle_of: BundleOf, tmp_path: Path) -> None:
    """Of widths that no group divides, too. A random model forgives no rounding: quality is seen on the shipped one."""
    file = written(bundle_of(BY_NAME[name], "openvino"), tmp_path / "ir", kind)
    dense = ("up.weight", "down.weight", "qkvo.weight", "out.weight", "embedding.weight", "head.weight")
    assert integers(file)
    assert all(tensor.endswith(dense) for tensor in integers(file)), integers(file)
    assert np.isfinite(Stateful(file).step(sequence_for(BY_NAME[name], 1)[0])).all()


@needs_openvino
def test_the_shipped_model_in_every_form(tmp_path: Path) -> None:
    """Sizes, what integers cost, and the same bytes from the same graph; float32 is not float16 in disguise."""
    manifest = xlstm_edge.export(SHIPPED, tmp_path / "bundle", target="openvino").manifest
    reference, sizes, kl = load(tmp_path / "bundle"), {}, {}
    ids = read_ids(reference, SHIPPED / "heldout.txt", 300)
    for kind in KINDS:
        files = [written(tmp_path / "bundle", tmp_path / f"{kind}-{turn}", kind) for turn in (1, 2)]
        for suffix in (".xml", ".bin"):
            one, other = (file.with_suffix(suffix).read_bytes() for file in files)
            assert one == other, kind
        assert str(tmp_path) not in files[0].read_text()
        sizes[kind] = files[0].with_suffix(".bin").stat().st_size / manifest.model.parameters
        kl[kind] = cost(reference, files[0], ids)[0]
    assert sizes[None] == pytest.approx(4, abs=0.05)
    assert 1 < sizes["int8"] < 1.3
    assert 0.5 < sizes["int4"] < 0.95
    assert kl[None] < 1e-6
    assert 1e-6 < kl["int8"] < 1e-3
    assert 1e-3 < kl["int4"] < 0.03
    assert set(integers(tmp_path / "int4-1" / IR).values()) == {"i4", "u8"}


WRITE = """
import sys
def watch(event, args):
    if event == "socket.__new__":
        print("socket", flush=True)
        raise OSError("no network")
sys.addaudithook(watch)
from pathlib import Path
from xlstm_edge_exporters.targets.openvino_ir import write_ir
from xlstm_edge_runtime.manifest import read_manifest
if sys.argv[3] == "private":
    bundle = Path(sys.argv[1])
    write_ir(bundle / "model.onnx", Path(sys.argv[2]), read_manifest(bundle).state, weights="int4")
import openvino
print("done")
"""


@needs_openvino
def test_nothing_is_sent_and_no_file_written_elsewhere(bundle_of: BundleOf, tmp_path: Path) -> None:
    """Beside it, openvino imported as it is, which shows that this would be seen; it gets no socket."""
    said, left = {}, {}
    for mode in ("private", "plain"):
        home = tmp_path / mode
        (home / "out").mkdir(parents=True)
        paths = os.pathsep.join(filter(None, (PATHS, os.environ.get("PYTHONPATH"))))
        variables = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", WRITE, bundle_of(BY_NAME["lm-mixed"], "openvino"), home / "out", mode],
            capture_output=True, text=True, env=variables, cwd=home, check=True,
        )  # fmt: skip
        said[mode], left[mode] = done.stdout.split(), {path.name for path in home.rglob("*") if path.is_file()}
    assert said["private"] == ["done"]
    assert left["private"] == {IR, Path(IR).with_suffix(".bin").name}
    if find_spec("openvino_telemetry"):
        assert "socket" in said["plain"], "openvino's telemetry would not be seen: the test shows nothing, mend it"
        assert left["plain"]


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    load_it = openvino_ir.import_openvino if package == "openvino" else openvino_ir._import_nncf
    with pytest.raises(DependencyError, match=rf"expected the package {package} .*got none; .*\[openvino-ir\]"):
        load_it()


@needs_openvino
def test_the_example_streams_with_openvino_alone(tmp_path: Path) -> None:
    xlstm_edge.export(SHIPPED, tmp_path / "bundle", target="openvino")
    write_ir(tmp_path / "bundle" / "model.onnx", tmp_path / "bundle", load(tmp_path / "bundle").manifest.state)
    script = ROOT / "examples" / "openvino_stateful.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "bundle", "ROMEO."], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ROMEO.\n")
    assert len(done.stdout) > 80
    called_wrong = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert called_wrong.returncode == 1
    assert called_wrong.stderr.startswith("usage: ")
