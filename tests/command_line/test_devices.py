"""`devices`, and commands on another provider than the CPU."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from xlstm_edge import arguments, devices
from xlstm_edge_runtime import DependencyError, opening, plugins, session
from xlstm_edge_runtime.placement import Placement
from xlstm_edge_runtime.providers import PROVIDERS

from ..command import PATHS, Command, assert_one_sentence
from ..conftest import BY_NAME
from ..oracles.cases import Case

QNN = ("--provider", "qnn")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with onnxruntime alone."""
    monkeypatch.setattr(plugins.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])


def test_devices_lists_every_provider(bare: None, command: Command) -> None:
    found = {entry["provider"]: entry for entry in json.loads(command("devices", "--json").out)}
    assert list(found) == list(PROVIDERS)
    assert found["cpu"]["version"] == ort.__version__
    assert found["cpu"]["install"] is None
    assert found["cpu"]["devices"] is None or found["cpu"]["devices"][0]["type"] == "CPU"
    assert found["qnn"]["version"] is None
    assert found["qnn"]["install"] == "pip install onnxruntime-qnn"
    assert found["qnn"]["precision"] == "float16"
    assert found["openvino"]["precision"] == "float32"
    table = command("devices")
    assert table.code == 0
    assert "not installed: pip install" in table.out
    assert all(len(line) <= 80 for line in table.out.splitlines())


def test_devices_tells_a_package_that_does_not_load(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(provider: Any) -> None:
        if provider.name == "qnn":
            raise DependencyError("expected onnxruntime-qnn to load, got no; install another")

    monkeypatch.setattr(devices, "installed", lambda provider: (provider.package, "1.0"))
    monkeypatch.setattr(devices, "register", broken)
    monkeypatch.setattr(devices, "devices", lambda provider: None)
    found = {entry["provider"]: entry for entry in json.loads(command("devices", "--json").out)}
    assert found["qnn"]["problem"] == "expected onnxruntime-qnn to load, got no; install another"
    assert found["cuda"]["devices"] is None
    table = command("devices").out
    assert "expected onnxruntime-qnn" in table
    assert "not told" in table


@pytest.mark.parametrize(
    "words",
    [
        ("--provider", "tpu"), ("--provider", ""), ("--provider-option", "a=b"), (*QNN, "--provider-option", "htp_arch"),
        (*QNN, "--provider-option", "=1"), (*QNN, "--provider-option", "htp_arch="),
        (*QNN, "--provider-option", "soc=8gen2", "--provider-option", "soc=8gen3"), (*QNN, "--provider-option", "htp_arc=73"),
        QNN, ("--provider", "cuda"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_providers_that_cannot_be_are_refused_everywhere(
    words: tuple[str, ...], bare: None, bundle: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "text").write_text("1 2 3 " * 100)
    for line in (
        ("run", bundle, "1 2"),
        ("verify", bundle),
        ("bench", bundle),
        ("eval", bundle, "--positions", "--text", tmp_path / "text"),
    ):
        assert_one_sentence(command(*line, *words), 2)


class Elsewhere:
    """Stands in for a provider in 16 bits: the CPU computes, and `change` makes of its output what is to be judged."""

    def __init__(self) -> None:
        self.change: Callable[[Any], Any] = lambda output: output
        self.placement: Placement = {"QNNExecutionProvider": 1}
        self.steps = 0


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    state, run = Elsewhere(), session.Session._run

    def opened(graph: Path, options: ort.SessionOptions, choice: Any) -> ort.InferenceSession:
        return opening.open_graph(graph, options, opening.CPU)

    def changed(self: session.Session, inputs: Any, length: int) -> Any:
        output = run(self, inputs, length)
        if self._engine.provider.is_cpu:
            return output
        state.steps += length
        return np.asarray(state.change(np.array(output)), np.float32)

    monkeypatch.setattr(opening, "_open_elsewhere", opened)
    monkeypatch.setattr(session.Session, "_run", changed)
    monkeypatch.setattr(arguments, "require", lambda provider: None)
    monkeypatch.setattr(
        "xlstm_edge_runtime.engine.placement_of", lambda inference, choice, graph: dict(state.placement)
    )
    return state


@pytest.fixture
def portable(bundle_of: Callable[[Case, str], Path]) -> Path:
    return bundle_of(BY_NAME["lm-mixed"], "portable")


def test_verify_judges_sixteen_bits_over_a_few_tokens(elsewhere: Elsewhere, portable: Path, command: Command) -> None:
    result = command("verify", portable, *QNN, "--json")
    assert result.code == 0, result.err
    checks = {check["name"]: check["detail"] for check in json.loads(result.out)["checks"]}
    assert list(checks) == ["files", "graph", "placement", "step", "snapshot"]
    assert checks["placement"] == "1 on QNNExecutionProvider; computes in float16"
    assert checks["step"].endswith("(allowed 2.0e-02), the same likeliest token; 16 bits, to token 15 only")
    assert elsewhere.steps <= 16 + 17  # the steps, and the snapshot's
    elsewhere.placement = {"QNNExecutionProvider": None}
    assert "some on QNNExecutionProvider" in command("verify", portable, *QNN, "--json").out


@pytest.mark.parametrize(("share", "code"), [(0.01, 0), (0.03, 1)])
def test_two_percent_of_the_range_is_the_bound(
    share: float, code: int, elsewhere: Elsewhere, portable: Path, command: Command
) -> None:
    elsewhere.change = lambda output: output + share * np.ptp(output)
    result = command("verify", portable, *QNN)
    assert result.code == code, result.err
    assert code == 0 or "within 2.0e-02" in result.err


def test_another_likeliest_token_is_seen(elsewhere: Elsewhere, portable: Path, command: Command) -> None:
    def second_first(output: Any) -> Any:
        """The two largest outputs where they are, moved so little that only their order changes."""
        first, second = np.argsort(-output)[:2]
        middle = (output[first] + output[second]) / 2
        output[first], output[second] = middle - 1e-6, middle + 1e-6
        return output

    elsewhere.change = second_first
    result = command("verify", portable, *QNN)
    assert_one_sentence(result, 1)
    assert "as the likeliest after token" in result.err or "within 2.0e-02" in result.err


def test_in_float32_another_provider_is_judged_as_the_cpu(
    elsewhere: Elsewhere, portable: Path, command: Command
) -> None:
    assert command("verify", portable, "--provider", "openvino").code == 0
    elsewhere.change = lambda output: output + 1e-3 * np.ptp(output)
    assert_one_sentence(command("verify", portable, "--provider", "openvino"), 1)


def test_no_tuning_and_no_state_in_place_on_another_provider(
    elsewhere: Elsewhere, mixed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xlstm_edge_runtime as xr

    monkeypatch.setattr("xlstm_edge_runtime.loading.read_tuning", lambda *_: pytest.fail("read a tuning"))
    model = xr.load(mixed_bundle, provider="qnn", mapped=True)
    assert (model.tuning, model.in_place) == (None, frozenset())


def test_commands_run_there(elsewhere: Elsewhere, portable: Path, tmp_path: Path, command: Command) -> None:
    words = (*QNN, "--provider-option", "htp_arch=73", "--allow-fallback")
    run = command("run", portable, "5 17", "-n", 3)
    assert elsewhere.steps == 0
    assert command("run", portable, "5 17", "-n", 3, *words).out == run.out
    assert elsewhere.steps == 5
    bench = command("bench", portable, "--prompt", 2, "--generate", 2, "--repeat", 1, *words, "--json")
    facts = json.loads(bench.out)
    assert facts["provider"] == "qnn"
    assert facts["provider_options"] == {
        "backend_type": "htp", "offload_graph_io_quantization": "0", "htp_arch": "73",
    }  # fmt: skip
    assert facts["precision"] == "float16"
    assert facts["placement"] == {"QNNExecutionProvider": 1}
    table = command("bench", portable, "--prompt", 2, "--generate", 2, "--repeat", 1, *words).out
    assert "QNNExecutionProvider" in table
    (tmp_path / "text").write_text(" ".join(str(i % 90) for i in range(60)))
    steps = elsewhere.steps
    assert command("eval", portable, "--against", portable, "--text", tmp_path / "text", *words).code == 0
    assert elsewhere.steps == steps + 59  # what it is compared with stays on the CPU


PRINTS = """
import ctypes, json, sys
from xlstm_edge.streams import keep_output_ours
libc = ctypes.CDLL(None)
print("before")
keep_output_ours()
libc.puts(b"from a library")
print(json.dumps({"ok": True}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the library's name is that of Unix")
def test_what_a_library_prints_does_not_reach_our_output() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINTS], capture_output=True, text=True, env={"PYTHONPATH": PATHS}, check=True
    )
    assert done.stdout.splitlines() == ["before", '{"ok": true}']
    assert done.stderr.splitlines() == ["from a library"]
