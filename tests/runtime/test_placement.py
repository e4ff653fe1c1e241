"""Where nodes landed: counted, and refused where some were left to the CPU."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import xlstm_edge_runtime as xr
from xlstm_edge_runtime import opening, placement
from xlstm_edge_runtime.placement import check_placement, not_whole, placement_of, record_placement, refused_by_itself
from xlstm_edge_runtime.providers import CPU, FLOAT16, FLOAT32, choose_provider

from ..conftest import BY_NAME, sequence_for
from ..oracles.cases import Case

QNN = choose_provider("qnn")
ALLOWED = choose_provider("qnn", allow_fallback=True)


class Inference:
    """An opened graph whose parts landed so: (provider, operators)."""

    def __init__(self, *parts: tuple[str, list[str]], providers: tuple[str, ...] = ("QNNExecutionProvider",)) -> None:
        self.parts, self.providers = parts, providers

    def get_providers(self) -> list[str]:
        return [*self.providers, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda o=operators: [SimpleNamespace(op_type=x) for x in o])
            for name, operators in self.parts
        ]


WHOLE = Inference(("QNNExecutionProvider", ["MatMul", "Add", "Exp"]))
SPLIT = Inference(
    ("QNNExecutionProvider", ["MatMul"]), ("CPUExecutionProvider", ["Gemm"]), ("CPUExecutionProvider", ["Scan"]),
    ("CPUExecutionProvider", ["Gemm"]), ("QNNExecutionProvider", ["Add"]),
)  # fmt: skip


def test_on_the_cpu_nodes_are_those_of_the_file(model_of: Callable[[Case, str], xr.Model]) -> None:
    for target in ("cpu", "portable"):
        model = model_of(BY_NAME["lm-mixed"], target)
        nodes = onnx.load(model.folder / model.manifest.graph.file, load_external_data=False).graph.node
        assert model.placement == {"CPUExecutionProvider": len(nodes)}
    assert placement_of(model.inference, CPU, model.folder / "gone.onnx") == {"CPUExecutionProvider": None}


def test_parts_are_counted_by_provider() -> None:
    assert placement_of(WHOLE, QNN, Path()) == {"QNNExecutionProvider": 1}
    assert placement_of(SPLIT, ALLOWED, Path()) == {"QNNExecutionProvider": 2, "CPUExecutionProvider": 3}


def test_a_graph_that_is_not_whole_is_refused_with_what_is_left() -> None:
    check_placement(WHOLE, QNN)
    with pytest.raises(xr.BundleError, match=r"got 3 nodes left to the CPU \(2 Gemm, 1 Scan\); export"):
        check_placement(SPLIT, QNN)
    check_placement(SPLIT, ALLOWED)
    with pytest.raises(xr.BundleError, match=r"got 1 node left to the CPU \(1 Gemm\)"):
        check_placement(Inference(("CPUExecutionProvider", ["Gemm"])), QNN)


def test_a_refusal_names_a_few_operators_and_is_one_line() -> None:
    many = Inference(*[("CPUExecutionProvider", [f"Operator{i}\n\x1b"]) for i in range(1000)])
    with pytest.raises(xr.BundleError, match="994 other operators") as caught:
        check_placement(many, QNN)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("choice", [QNN, ALLOWED])
def test_a_provider_that_did_not_start_is_told(choice: Any) -> None:
    """onnxruntime goes on with the CPU alone then, with a line on standard error."""
    with pytest.raises(
        xr.InputError, match="expected to start qnn with backend_type=htp, offload_graph_io_quantization=0, got"
    ):
        check_placement(Inference(("CPUExecutionProvider", ["Gemm"]), providers=()), choice)


class Old:
    """Session options of an onnxruntime that does not tell placements."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


def test_an_onnxruntime_that_does_not_tell_refuses_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known is said: no number where all is there, nothing at all where the CPU may have some."""
    monkeypatch.setattr(placement, "can_tell", lambda: False)
    strict, lax = Old(), Old()
    record_placement(strict, QNN)
    record_placement(lax, ALLOWED)
    assert strict.entries == {"session.disable_cpu_ep_fallback": "1"}
    assert lax.entries == {}
    assert placement_of(SPLIT, QNN, Path()) == {"QNNExecutionProvider": None}
    assert placement_of(SPLIT, ALLOWED, Path()) == {}
    check_placement(SPLIT, QNN)  # it would not have opened
    assert "does not say which" in not_whole(QNN)


@pytest.mark.skipif(
    "AzureExecutionProvider" not in ort.get_available_providers(), reason="no provider that takes nothing"
)
def test_the_sentence_of_an_onnxruntime_that_refuses_is_known(bundle: Path) -> None:
    """The real one: a provider that takes no node of ours, which comes with every onnxruntime for Linux."""
    options = opening.session_options(1)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = ["AzureExecutionProvider"]
    with pytest.raises(Exception, match="CPU") as caught:
        ort.InferenceSession(str(bundle / "model.onnx"), options, providers=providers, enable_fallback=0)
    assert refused_by_itself(caught.value)
    assert not refused_by_itself(RuntimeError("out of memory"))


class CopyingBinding:
    """Copies an input when it is bound and never looks at it again, as for a device with a memory of its own."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self._iobinding = binding._iobinding

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.array(value.numpy())))

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.binding.bind_ortvalue_output(name, value)


class CopyingInference:
    """A session on such a device."""

    def __init__(self, inference: ort.InferenceSession) -> None:
        self.inference = inference

    def io_binding(self) -> CopyingBinding:
        return CopyingBinding(self.inference.io_binding())

    def run_with_iobinding(self, binding: CopyingBinding) -> None:
        self.inference.run_with_iobinding(binding.binding)


def test_inputs_reach_a_memory_that_takes_copies(bundle_of: Callable[[Case, str], Path]) -> None:
    folder, tokens = bundle_of(BY_NAME["lm-mixed"], "portable"), sequence_for(BY_NAME["lm-mixed"], 9)
    wanted = [xr.load(folder, threads=1).session().prefill(tokens[: n + 1]) for n in range(len(tokens))]
    model = xr.load(folder, threads=1)
    model.in_place, model.inference = frozenset(), CopyingInference(model.inference)
    for provider, same in ((QNN, True), (CPU, False)):
        model.provider = provider
        session = model.session()
        got = [session.prefill(token[None]) for token in tokens]
        assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True)) == same


def test_what_fell_to_the_cpu_alone_computes_as_a_cpu_does(shipped_bundle: Path) -> None:
    """And is held to that; of a part, the coarser one counts."""
    model = xr.load(shipped_bundle, threads=1)
    assert model.precision == FLOAT32
    model.provider = ALLOWED
    for where, precision in (
        ({"CPUExecutionProvider": 70}, FLOAT32),
        ({"CPUExecutionProvider": 1, "QNNExecutionProvider": 1}, FLOAT16),
        ({"QNNExecutionProvider": 1}, FLOAT16),
        ({}, FLOAT16),  # not known
    ):
        model.__dict__["placement"] = where
        assert model.precision == precision
