"""LiteRT's own form of a bundle, run by LiteRT: the same numbers, all on its CPU kernels, weights once, nothing sent."""

import os
import subprocess
import sys
from collections.abc import Callable
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

from ...benchmarks.litert import Decoder
from ...benchmarks.openvino_ir import difference
from ...command import PATHS
from ...conftest import BY_NAME, sequence_for
from ...oracles.cases import Case

BundleOf = Callable[[Case, str], Path]
ModelOf = Callable[[Case, str], Model]
needs_litert = pytest.mark.skipif(
    not (find_spec("litert_torch") and find_spec("ai_edge_litert")),
    reason="the package litert-torch is not installed: pip install 'xlstm-edge[litert]'",
)
CASES = ["lm-mixed", "lm-hf-tied", "stack-slstm", "large-three-heads", "hf-one-head"]  # one of every family
LOOK_UP = {"EMBEDDING_LOOKUP": 1, "RESHAPE": 1}  # what LiteRT's kernels for CPUs do not have


@needs_litert
@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_the_bundle_computes(
    name: str, bundle_of: BundleOf, model_of: ModelOf, tmp_path: Path
) -> None:
    """All of it in one delegate, but for the look-up of a token's row."""
    case, manifest = BY_NAME[name], read_manifest(bundle_of(BY_NAME[name], "litert"))
    write_tflite({"decode": bundle_of(case, "litert") / "model.onnx"}, tmp_path / TFLITE)
    decoder = Decoder(tmp_path / TFLITE, manifest.state)
    assert decoder.outside() == {"DELEGATE": 1} | (LOOK_UP if manifest.model.vocab_size else {})
    for target in ("litert", "cpu"):
        assert difference(decoder.step, model_of(case, target).session().step, sequence_for(case, 200)) < 1e-5
        decoder.reset()


@needs_litert
def test_names_types_and_shapes_are_the_graph_s(bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle, manifest = (made := bundle_of(BY_NAME["lm-mixed"], "litert")), read_manifest(made)
    write_tflite({"decode": bundle / "model.onnx"}, tmp_path / TFLITE)
    decoder = Decoder(tmp_path / TFLITE, manifest.state)
    states = {row.name.replace(".", "_"): (np.float32, (1, *row.graph_shape)) for row in manifest.state}
    taken, given = (
        {name: (detail["dtype"], tuple(map(int, detail["shape"]))) for name, detail in side.items()}
        for side in (decoder.inputs, decoder.outputs)
    )
    assert taken == {"input_ids": (np.int32, (1, 1))} | {f"past_{name}": state for name, state in states.items()}
    logits = (np.float32, (1, manifest.model.vocab_size))
    assert given == {"logits": logits} | {f"present_{name}": state for name, state in states.items()}


@needs_litert
def test_signatures_share_weights_and_the_same_graph_gives_the_same_bytes(bundle_of: BundleOf, tmp_path: Path) -> None:
    graph = bundle_of(BY_NAME["large-wide-heads"], "litert") / "model.onnx"
    for name in ("one", "other"):
        write_tflite({"decode": graph}, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    write_tflite({"decode": graph, "again": graph}, tmp_path / "both")
    weights = graph.with_name("model.onnx.data").stat().st_size
    one, both = ((tmp_path / name).stat().st_size - weights for name in ("one", "both"))
    assert 0 < both < 2.2 * one + 10_000 < weights / 2
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(tmp_path / "both"))
    names, runners = list(interpreter.get_signature_list()), {}
    for name in names:
        runner = interpreter.get_signature_runner(name)
        rng = np.random.default_rng(3)
        feeds = {
            key: rng.uniform(size=d["shape"]).astype(d["dtype"])
            for key, d in sorted(runner.get_input_details().items())
        }
        runners[name] = runner(**feeds)
    assert sorted(names) == ["again", "decode"]
    for key, array in runners["decode"].items():
        assert np.array_equal(array, runners["again"][key])


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
