"""LiteRT's own form of a bundle, run by LiteRT: the same numbers, all on its CPU kernels, weights once, nothing sent."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import xlstm_edge
from xlstm_edge_exporters.targets.tflite import TFLITE, write_tflite
from xlstm_edge_runtime import DependencyError, Model, load
from xlstm_edge_runtime.manifest import read_manifest
from xlstm_edge_runtime.manifest_sections import CompiledGraph
from xlstm_edge_runtime.verify import verify_bundle

from ...benchmarks.litert import Caller, Decoder
from ...benchmarks.openvino_ir import difference
from ...command import PATHS
from ...conftest import BY_NAME, sequence_for
from ...oracles.cases import Case
from ...oracles.reference import Reference

BundleOf = Callable[[Case, str], Path]
needs_litert = pytest.mark.skipif(
    not (find_spec("litert_torch") and find_spec("ai_edge_litert")),
    reason="the package litert-torch is not installed: pip install 'xlstm-edge[litert]'",
)
CASES = ["lm-mixed", "lm-hf-tied", "stack-slstm", "large-three-heads", "hf-one-head"]  # one of every family
LOOK_UP = {"EMBEDDING_LOOKUP": 1, "RESHAPE": 1}  # what LiteRT's kernels for CPUs do not have
Written = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Name of a case -> LiteRT's form of its bundle."""

    @cache
    def make(name: str) -> Path:
        file = tmp_path_factory.mktemp("litert") / TFLITE
        write_tflite({"decode": bundle_of(BY_NAME[name], "litert") / "model.onnx"}, file)
        return file

    return make


@needs_litert
@pytest.mark.parametrize("name", CASES)
def test_it_computes_the_recurrence_on_its_kernels_for_cpus(
    name: str, written: Written, bundle_of: BundleOf, checkpoint_of: Callable[[Case], Path]
) -> None:
    """Beside the one in float64; all of it in one delegate, but for the look-up of a token's row."""
    case, manifest = BY_NAME[name], read_manifest(bundle_of(BY_NAME[name], "litert"))
    decoder = Decoder(written(name), manifest.state)
    assert decoder.outside() == {"DELEGATE": 1} | (LOOK_UP if manifest.model.vocab_size else {})
    assert difference(decoder.step, Reference(checkpoint_of(case)).step, sequence_for(case, 200)) < 1e-5


@needs_litert
def test_states_go_from_onnxruntime_to_litert_and_back(
    written: Written, model_of: Callable[[Case, str], Model]
) -> None:
    model = model_of(BY_NAME["lm-mixed"], "litert")
    session, tokens = model.session(), sequence_for(BY_NAME["lm-mixed"], 40)
    decoder = Decoder(written("lm-mixed"), model.manifest.state)
    for token in tokens[:20]:
        session.step(token)
    decoder.set_state(session.state)
    assert difference(decoder.step, session.step, tokens[20:]) < 5e-5
    for name, array in decoder.state().items():
        np.testing.assert_allclose(array, session.state[name], rtol=1e-3, atol=1e-4 * abs(array).max())


@needs_litert
def test_names_types_and_shapes_are_the_graph_s(written: Written, bundle_of: BundleOf) -> None:
    manifest = read_manifest(bundle_of(BY_NAME["lm-mixed"], "litert"))
    decoder = Decoder(written("lm-mixed"), manifest.state)
    states = {row.name.replace(".", "_"): (np.float32, (1, *row.graph_shape)) for row in manifest.state}
    taken, given = (
        {name: (detail["dtype"], tuple(map(int, detail["shape"]))) for name, detail in side.items()}
        for side in (decoder.inputs, decoder.outputs)
    )
    assert taken == {"input_ids": (np.int32, (1, 1))} | {f"past_{name}": state for name, state in states.items()}
    logits = (np.float32, (1, manifest.model.vocab_size))
    assert given == {"logits": logits} | {f"present_{name}": state for name, state in states.items()}


@needs_litert
def test_the_same_graph_gives_the_same_bytes(written: Written, bundle_of: BundleOf, tmp_path: Path) -> None:
    write_tflite({"decode": bundle_of(BY_NAME["lm-mixed"], "litert") / "model.onnx"}, tmp_path / TFLITE)
    assert (tmp_path / TFLITE).read_bytes() == written("lm-mixed").read_bytes()


@needs_litert
def test_signatures_share_their_weights(written: Written, bundle_of: BundleOf, tmp_path: Path) -> None:
    graph = bundle_of(BY_NAME["lm-mixed"], "litert") / "model.onnx"
    write_tflite({"decode": graph, "again": graph}, tmp_path / TFLITE)
    weights = graph.with_name("model.onnx.data").stat().st_size
    one, both = (path.stat().st_size for path in (written("lm-mixed"), tmp_path / TFLITE))
    assert 0 < both - one < weights / 2 < weights < one
    from ai_edge_litert.interpreter import Interpreter

    runners = [
        Interpreter(model_path=str(tmp_path / TFLITE)).get_signature_runner(name) for name in ("decode", "again")
    ]
    details = runners[0].get_input_details()
    feeds = {name: np.full(detail["shape"], 0.5).astype(detail["dtype"]) for name, detail in details.items()}
    wanted, got = (runner(**feeds) for runner in runners)
    assert all(np.array_equal(wanted[name], array) for name, array in got.items())


@needs_litert
def test_prompts_are_a_signature_of_their_own(export_of: Callable[..., Path], tmp_path: Path) -> None:
    """Two calls of it, then a single step from its states, as a session reads the same tokens."""
    folder = export_of("lm-mixed", target="litert", chunk=5)
    write_tflite({"decode": folder / "model.onnx", "prefill": folder / "prompt.onnx"}, tmp_path / TFLITE)
    table, tokens = read_manifest(folder).state, sequence_for(BY_NAME["lm-mixed"], 11)
    prefill, decode = (Caller(tmp_path / TFLITE, table, name) for name in ("prefill", "decode"))
    prefill.read(tokens[:5])
    session = load(folder, threads=1).session()
    got, wanted = prefill.read(tokens[5:10]), session.prefill(tokens[:10])
    assert np.abs(got - wanted).max() < 5e-5 * np.ptp(wanted)
    decode.state = prefill.state
    got, wanted = decode.read(tokens[10:]), session.prefill(tokens[10:])
    assert np.abs(got - wanted).max() < 5e-5 * np.ptp(wanted)


@needs_litert
def test_a_bundle_names_it(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    manifest = xlstm_edge.export(
        checkpoint_of(BY_NAME["stack-slstm"]), folder, target="litert", ahead_of_time=True
    ).manifest
    assert manifest.compiled == {"litert": CompiledGraph(TFLITE, "litert", "float32")}
    assert TFLITE in read_manifest(folder).files
    assert "compiled" in [check.name for check in verify_bundle(folder)]
    assert load(folder).session().step(np.zeros(manifest.model.width, np.float32)).shape == (manifest.model.width,)


WRITE = """
import os, sys
out = os.path.realpath(sys.argv[2])
def watch(event, args):
    if event == "socket.__new__":
        os._exit(3)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+") and args[0] != os.devnull:
        os._exit(4)
sys.addaudithook(watch)
from pathlib import Path
from xlstm_edge_exporters.targets.tflite import write_tflite
write_tflite({"decode": Path(sys.argv[1]) / "model.onnx"}, Path(out))
print("done")
"""


@needs_litert
def test_nothing_is_sent_or_said_and_no_file_written_elsewhere(bundle_of: BundleOf, tmp_path: Path) -> None:
    """The converter reports its steps, and libraries that it loads write to the terminal by themselves."""
    for name in ("home", "temporary", "out"):
        (tmp_path / name).mkdir()
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    variables |= {"PYTHONPATH": os.pathsep.join([PATHS, *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WRITE, bundle_of(BY_NAME["stack-slstm"], "litert"), tmp_path / "out" / TFLITE],
        capture_output=True, text=True, env=variables, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [TFLITE]


def test_without_the_package_the_extra_is_named(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(DependencyError, match=r"^expected the package litert-torch .*, got none; .*\[litert\]'$"):
        write_tflite({"decode": bundle_of(BY_NAME["lm-mixed"], "litert") / "model.onnx"}, tmp_path / TFLITE)
    assert not list(tmp_path.iterdir())
