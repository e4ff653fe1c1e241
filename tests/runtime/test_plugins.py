"""Packages of providers: missing, broken, registered once, and the device that is taken."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

import xlstm_edge_runtime as xr
from xlstm_edge_runtime import plugins
from xlstm_edge_runtime.providers import PROVIDERS, choose_provider

from ..conftest import BY_NAME
from ..oracles.cases import Case

QNN = PROVIDERS["qnn"]


class Machine:
    """A plug-in that finds these kinds of device, and what onnxruntime is told of it."""

    def __init__(self, kinds: list[str], ort_name: str = QNN.ort_name) -> None:
        self.kinds, self.ort_name, self.registered = kinds, ort_name, list[tuple[str, str]]()
        self.found: list[Any] = []

    def get_library_path(self) -> str:
        return "/plugin.so"

    def register(self, name: str, library: str) -> None:
        self.registered.append((name, library))
        self.found = [
            SimpleNamespace(ep_name=name, device=SimpleNamespace(type=SimpleNamespace(name=kind), vendor="Maker"))
            for kind in self.kinds
        ]


Install = Callable[..., Machine]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """A plug-in appears on this machine."""

    def installed(*kinds: str, module: str = "onnxruntime_qnn") -> Machine:
        machine = Machine(list(kinds))
        monkeypatch.setattr(plugins, "_registered", set())
        monkeypatch.setattr(
            plugins.importlib, "import_module", lambda name: machine if name == module else pytest.fail(name)
        )
        monkeypatch.setattr(plugins.importlib.util, "find_spec", lambda name: machine if name == module else None)
        monkeypatch.setattr(ort, "get_ep_devices", lambda: machine.found, raising=False)
        monkeypatch.setattr(ort, "register_execution_provider_library", machine.register, raising=False)
        monkeypatch.setattr(ort, "set_default_logger_severity", lambda level: None)
        return machine

    return installed


class Options:
    """Session options that note what they are asked for."""

    def __init__(self) -> None:
        self.added: list[tuple[list[str], dict[str, str]]] = []
        self.entries = dict[str, str]()

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.added.append(([plugins.kind_of(device) for device in devices], options))


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("qnn", "pip install onnxruntime-qnn"), ("openvino", "pip install onnxruntime-ep-openvino"),
        ("webgpu", "pip install onnxruntime-ep-webgpu"), ("cuda", "pip install onnxruntime-gpu in an environment without"),
        ("coreml", "run it on macOS"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named(
    name: str, fragment: str, bundle_of: Callable[[Case, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(xr.DependencyError, match=r"expected the provider .*, got .* without it;") as caught:
        xr.load(bundle_of(BY_NAME["lm-mixed"], "portable"), provider=name)
    assert fragment in str(caught.value)


def test_what_is_installed_is_named_with_its_version(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setattr(metadata, "version", lambda package: {"onnxruntime-qnn": "2.7.0"}[package])
    assert plugins.installed(QNN) == ("onnxruntime-qnn", "2.7.0")
    assert plugins.installed(PROVIDERS["cpu"]) == ("onnxruntime", ort.__version__)
    assert plugins.installed(PROVIDERS["openvino"]) is None
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["OpenVINOExecutionProvider"])
    assert plugins.installed(PROVIDERS["openvino"]) == ("onnxruntime-openvino", ort.__version__)


def test_a_plugin_is_registered_once_under_the_name_it_takes(install: Install) -> None:
    """A machine without any device too, where onnxruntime would refuse the second time."""
    for kinds in (("NPU",), ()):
        machine = install(*kinds)
        for _ in range(3):
            plugins.register(QNN)
        assert machine.registered == [("QNNExecutionProvider", "/plugin.so")]


def test_a_plugin_that_the_app_registered_is_used(install: Install) -> None:
    machine = install("NPU")
    machine.register(QNN.ort_name, "/theirs.so")
    plugins.register(QNN)
    assert machine.registered == [("QNNExecutionProvider", "/theirs.so")]


def test_a_library_that_does_not_load_is_one_sentence(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("NPU")

    def broken(name: str, library: str) -> None:
        raise RuntimeError("undefined symbol\n" * 100)

    monkeypatch.setattr(ort, "register_execution_provider_library", broken)
    with pytest.raises(xr.DependencyError, match=r"expected onnxruntime-qnn to load .* got undefined symbol"):
        plugins.register(QNN)


def test_an_onnxruntime_without_plugins_is_told(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("NPU")
    monkeypatch.delattr(ort, "get_ep_devices")
    with pytest.raises(xr.DependencyError, match=r"expected onnxruntime 1\.24 or newer"):
        plugins.register(QNN)
    assert plugins.devices(QNN) is None


@pytest.mark.parametrize(
    ("kinds", "options", "taken"),
    [
        (["CPU", "GPU", "NPU"], {}, "NPU"),
        (["CPU"], {}, "CPU"),
        (["NPU", "GPU"], {"backend_type": "gpu"}, "GPU"),
        (["NPU"], {"backend_type": "gpu"}, None),
        (["GPU"], {}, None),
        ([], {}, None),
    ],
)
def test_the_device_fits_the_options(
    kinds: list[str], options: dict[str, str], taken: str | None, install: Install
) -> None:
    install(*kinds)
    asked, choice = Options(), choose_provider("qnn", options)
    if taken is None:
        with pytest.raises(xr.InputError, match=r"expected a device \(.*\) for qnn with .*, got .*; see"):
            plugins.attach(choice, asked)
        return
    assert plugins.attach(choice, asked) is None
    assert asked.added == [([taken], {"backend_type": "htp", "offload_graph_io_quantization": "0", **options})]


def test_a_provider_that_is_built_in_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(plugins, "_registered", set())
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    asked = Options()
    assert plugins.attach(choose_provider("cuda"), asked) == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    assert not asked.added
    # WebGPU reads these and not the list's.
    assert asked.entries == {"ep.cudaexecutionprovider.use_tf32": "0"}
