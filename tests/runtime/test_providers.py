"""The table of execution providers, and what may be asked of each."""

from pathlib import Path
from typing import Any

import pytest

from xlstm_edge_runtime import InputError
from xlstm_edge_runtime.providers import CPU, FLOAT16, FLOAT32, IN_FLOAT32, PROVIDERS, Choice, choose_provider

from ..command import Command, assert_one_sentence


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_table_agrees_with_itself(name: str) -> None:
    provider = PROVIDERS[name]
    assert provider.name == name
    assert provider.ort_name.endswith("ExecutionProvider")
    for options in (provider.defaults, provider.float32 or {}):
        for key, value in options.items():
            assert key in provider.options
            assert not provider.options[key] or value in provider.options[key]
    values = provider.options[provider.kind_by] if provider.kind_by else ("",)
    assert set(provider.kinds) == set(values)
    assert {kind for kinds in provider.kinds.values() for kind in kinds} <= {"CPU", "GPU", "NPU"}


def test_given_options_go_over_the_defaults_as_text() -> None:
    choice = choose_provider("qnn", {"htp_arch": 73, "enable_htp_fp16_precision": True, "soc_model": "43"}, True)
    assert choice.options == {
        "backend_type": "htp",
        "offload_graph_io_quantization": "0",
        "htp_arch": "73",
        "enable_htp_fp16_precision": "1",
        "soc_model": "43",
    }
    assert choice.allow_fallback
    assert choose_provider("openvino", {"device_type": "GPU"}).options["device_type"] == "GPU"
    assert choose_provider() == CPU
    assert CPU.is_cpu
    assert not choice.is_cpu
    assert str(choose_provider("qnn")) == "qnn with backend_type=htp, offload_graph_io_quantization=0"


@pytest.mark.parametrize(
    ("name", "options", "precision"),
    [
        ("cpu", {}, FLOAT32), ("qnn", {}, FLOAT16), ("qnn", {"backend_type": "cpu"}, FLOAT32),
        ("qnn", {"backend_type": "gpu"}, FLOAT16),
        ("openvino", {}, FLOAT32), ("openvino", {"device_type": "NPU"}, FLOAT16), ("openvino", {"load_config": "{}"}, FLOAT16),
        ("openvino", {"load_config": IN_FLOAT32, "cache_dir": "x"}, FLOAT32), ("coreml", {}, FLOAT16),
        ("coreml", {"MLComputeUnits": "CPUOnly"}, FLOAT32), ("webgpu", {}, FLOAT32), ("cuda", {}, FLOAT32),
        ("cuda", {"use_tf32": True}, FLOAT16),
    ],
)  # fmt: skip
def test_the_precision_follows_from_the_options(name: str, options: dict[str, Any], precision: str) -> None:
    assert choose_provider(name, options).precision == precision


@pytest.mark.parametrize("name", ["tpu", "", "CPU", "QNNExecutionProvider", None, 5, ["cpu"], "\x1b" * 5000])
def test_unknown_providers_are_refused(name: Any) -> None:
    with pytest.raises(
        InputError, match="expected a provider of cpu, qnn, openvino, coreml, webgpu, cuda, got"
    ) as caught:
        choose_provider(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "options", "fragment"),
    [
        ("cpu", {"threads": 2}, "of the provider cpu"),
        ("qnn", {"htp_arc": "73"}, "did you mean htp_arch"),
        ("qnn", {"nonsense": "1"}, "leave it out"),
        ("qnn", {5: "1"}, "got 5"),
        ("qnn", {"k" * 100_000: "1"}, "leave it out"),
        ("qnn", {"backend_type": "npu"}, "one of htp, gpu, cpu"),
        ("qnn", {"backend_type": ""}, "as text"),
        ("qnn", {"htp_arch": 7.3}, "as text or a whole number, got 7.3"),
        ("qnn", {"htp_arch": None}, "got nothing"),
        ("qnn", {"op_packages": "x" * 5000}, "as text"),
        ("qnn", {"op_packages": "a\0b"}, "as text"),
        ("qnn", "backend_type=htp", "as a mapping"),
        ("qnn", [("a", "b")], "as a mapping"),
        ("openvino", {"device_type": "AUTO"}, "one of CPU, GPU, NPU"),
        ("openvino", {"precision": "FP16"}, "of the provider openvino"),
        ("cuda", {"use_tf32": "yes"}, "one of 0, 1"),
        ("qnn", {"soc": "8gen2", "htp_arch": "75"}, "expected soc or htp_arch, got both"),
        (
            "qnn",
            {"soc": "8gen2", "htp_arch": "75", "soc_model": "57"},
            "expected soc or htp_arch and soc_model, got both",
        ),
    ],
)
def test_options_that_no_provider_takes_are_refused(name: str, options: Any, fragment: str) -> None:
    with pytest.raises(InputError, match=r"expected .*, got .*;") as caught:
        choose_provider(name, options)
    assert fragment in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_a_fallback_is_allowed_or_not(value: Any) -> None:
    with pytest.raises(InputError, match="allow_fallback as true or false"):
        choose_provider("qnn", allow_fallback=value)


def test_a_fallback_from_the_cpu_is_refused(command: Command, shipped_bundle: Path) -> None:
    """There is nothing to fall back to: who asks for it forgot the provider."""
    with pytest.raises(InputError, match=r"expected allow_fallback with another provider .*, got cpu"):
        choose_provider("cpu", allow_fallback=True)
    assert_one_sentence(command("run", shipped_bundle, "ROMEO.", "--allow-fallback"), 2)


def test_a_choice_without_options_is_named_alone() -> None:
    assert str(Choice(PROVIDERS["webgpu"], {})) == "webgpu"
