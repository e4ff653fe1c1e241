"""Execution providers: what a graph can run on besides onnxruntime's own CPU kernels, and which package brings it.

All that is known of a provider stands in one table. A provider comes in one of two ways: a plug-in is a package beside
onnxruntime, whose library is registered once a process; other packages are an onnxruntime of their own, with the provider
built in, and take the place of the plain one. `plugins.py` finds them and asks onnxruntime for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .chips import CHIPS, SOC, chip_of, chip_options
from .errors import InputError, shown

FLOAT32, FLOAT16 = "float32", "float16"
# What is asked for in floats stays in float32: without this, processors with fast bfloat16 compute in that.
IN_FLOAT32 = '{"CPU":{"INFERENCE_PRECISION_HINT":"f32"}}'
ANY: tuple[str, ...] = ()
FLAG = ("0", "1")
MOST_OPTIONS, LONGEST_NAME, LONGEST_OPTION = 64, 60, 4096


def _any(names: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(names.split(), ANY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """What is known of one provider.

    `package` brings it, as the plug-in that Python imports as `module` or, with `module` None, built into an onnxruntime;
    `other_package` is an onnxruntime with the same provider built in. `options` are the names that it takes, with their
    values where those are few: not every provider refuses what it does not know. `float32` are the options with which it
    computes in float32; with others, or where it is None, in 16 bits. `kinds` says by the value of the option `kind_by`
    which kinds of device can do it, the first that is there.
    """

    name: str
    ort_name: str
    package: str
    module: str | None = None
    other_package: str | None = None
    defaults: Mapping[str, str]
    options: Mapping[str, tuple[str, ...]]
    float32: Mapping[str, str] | None
    kind_by: str = ""
    kinds: Mapping[str, tuple[str, ...]]

    def precision(self, options: Mapping[str, str]) -> str:
        """What it computes in with these options: "float32", or "float16" for 16 bits of any kind."""
        exact = self.float32 is not None and all(options.get(name) == v for name, v in self.float32.items())
        return FLOAT32 if exact else FLOAT16


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(
            name="cpu",
            ort_name="CPUExecutionProvider",
            package="onnxruntime",
            defaults={},
            options={},
            float32={},
            kinds={"": ("CPU",)},
        ),
        Provider(
            name="qnn",
            ort_name="QNNExecutionProvider",
            package="onnxruntime-qnn",
            module="onnxruntime_qnn",
            # Integers at the end of a graph are made floats where everything else runs, not on the CPU.
            defaults={"backend_type": "htp", "offload_graph_io_quantization": "0"},
            options=_any(
                "device_id disable_file_mapped_weights dump_json_qnn_graph dump_qnn_ir_dlc dump_qnn_ir_dlc_dir "
                "enable_block_quant_weight_optimization enable_framework_op_trace enable_htp_graph_splitting "
                "enable_htp_prepare_only enable_htp_shared_memory_allocator enable_htp_spill_fill_buffer "
                "enable_vtcm_backup_buffer_sharing extended_udma framework_op_trace_dir htp_arch htp_bf16_enable "
                "htp_graph_finalization_optimization_mode htp_performance_mode htp_share_resource_optimization "
                "json_qnn_graph_dir num_graph_prepare_threads offload_graph_io_quantization op_packages profiling_file_path "
                "profiling_level qnn_context_priority qnn_ir_backend_path qnn_saver_path rpc_control_latency "
                "skip_qnn_version_check soc_model vtcm_mb"
            )
            | {"backend_type": ("htp", "gpu", "cpu"), "enable_htp_fp16_precision": FLAG, SOC: tuple(CHIPS)},
            float32={"backend_type": "cpu"},
            kind_by="backend_type",
            kinds={"htp": ("NPU", "CPU"), "gpu": ("GPU",), "cpu": ("CPU",)},  # htp on a CPU: Qualcomm's simulator
        ),
        Provider(
            name="openvino",
            ort_name="OpenVINOExecutionProvider",
            package="onnxruntime-ep-openvino",
            module="onnxruntime_ep_openvino",
            other_package="onnxruntime-openvino",
            defaults={"device_type": "CPU", "load_config": IN_FLOAT32},
            options=_any(
                "cache_dir context device_id disable_dynamic_shapes enable_causallm enable_opencl_throttling "
                "enable_qdq_optimizer layout load_config model_priority reshape_input"
            )  # `precision` and numbers of threads have no effect on the plug-in: `load_config` says both
            | {"device_type": ("CPU", "GPU", "NPU")},
            float32={"device_type": "CPU", "load_config": IN_FLOAT32},
            kind_by="device_type",
            kinds={"CPU": ("CPU",), "GPU": ("GPU",), "NPU": ("NPU",)},
        ),
        Provider(
            name="coreml",
            ort_name="CoreMLExecutionProvider",
            package="onnxruntime",
            defaults={"ModelFormat": "MLProgram", "RequireStaticInputShapes": "1"},
            options=_any("ModelCacheDirectory SpecializationStrategy")
            | {
                "ModelFormat": ("MLProgram", "NeuralNetwork"),
                "MLComputeUnits": ("ALL", "CPUAndNeuralEngine", "CPUAndGPU", "CPUOnly"),
                **dict.fromkeys(
                    (
                        "AllowLowPrecisionAccumulationOnGPU",
                        "EnableOnSubgraphs",
                        "ProfileComputePlan",
                        "RequireStaticInputShapes",
                    ),
                    FLAG,
                ),
            },
            float32={"MLComputeUnits": "CPUOnly"},
            kinds={"": ("NPU", "GPU", "CPU")},
        ),
        Provider(
            name="webgpu",
            ort_name="WebGpuExecutionProvider",
            package="onnxruntime-ep-webgpu",
            module="onnxruntime_ep_webgpu",
            other_package="onnxruntime-webgpu",
            # Of graphs in its other layout onnxruntime names only the nodes that this layout adds.
            defaults={"preferredLayout": "NCHW"},
            options=_any(
                "adapterIndex dawnBackendType defaultBufferCacheMode deviceId enableGraphCapture enableInt64 "
                "enablePIXCapture enableRobustness forceCpuNodeNames maxNumPendingDispatches maxStorageBufferBindingSize "
                "maxStorageBuffersPerShaderStage powerPreference preserveDevice queryResolveBufferCacheMode "
                "sessionBufferPoolGenerations storageBufferCacheMode uniformBufferCacheMode validationMode"
            )
            | {"preferredLayout": ("NCHW", "NHWC")},
            float32={},
            kinds={"": ("GPU", "CPU")},  # a software adapter counts as a CPU
        ),
        Provider(
            name="cuda",
            ort_name="CUDAExecutionProvider",
            package="onnxruntime-gpu",
            defaults={"use_tf32": "0"},
            options=_any(
                "arena_extend_strategy cudnn_conv1d_pad_to_nc1d cudnn_conv_algo_search cudnn_conv_use_max_workspace device_id "
                "do_copy_in_default_stream enable_cuda_graph enable_skip_layer_norm_strict_mode fuse_conv_bias gpu_mem_limit "
                "prefer_nhwc sdpa_kernel tunable_op_enable tunable_op_max_tuning_duration_ms tunable_op_tuning_enable"
            )
            | {"use_tf32": FLAG},
            float32={"use_tf32": "0"},
            kinds={"": ("GPU",)},
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A provider that was asked for, with all its options; `allow_fallback` lets the CPU take what it does not."""

    provider: Provider
    options: Mapping[str, str]
    allow_fallback: bool = False

    @property
    def is_cpu(self) -> bool:
        """Whether onnxruntime's own CPU kernels run everything."""
        return self.provider.name == "cpu"

    @property
    def chip(self) -> str | None:
        """The name of the chip that a graph is compiled for; None for none that is known by name."""
        return chip_of(self.options)

    @property
    def precision(self) -> str:
        """What it computes in: "float32" or "float16"."""
        return self.provider.precision(self.options)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.provider.name} with {options}" if options else self.provider.name


CPU = Choice(PROVIDERS["cpu"], {})


def choose_provider(
    name: str = "cpu", options: Mapping[str, str | int | bool] | None = None, allow_fallback: bool = False
) -> Choice:
    """The provider of our `name` with its default options under the given ones; InputError for what it does not take.

    Numbers become text, true and false 1 and 0. Whether it is installed is seen when something is opened with it.
    """
    provider = PROVIDERS.get(name) if isinstance(name, str) else None
    if provider is None:
        raise InputError(f"expected a provider of {', '.join(PROVIDERS)}, got {shown(name)}; choose one of these")
    if not isinstance(allow_fallback, bool):
        raise InputError(f"expected allow_fallback as true or false, got {shown(allow_fallback)}; correct it")
    if allow_fallback and provider.name == "cpu":
        raise InputError(
            "expected allow_fallback with another provider than the CPU, got cpu, which takes every node; leave it out, or "
            "name the provider"
        )
    if options is not None and (not isinstance(options, Mapping) or len(options) > MOST_OPTIONS):
        raise InputError(f"expected provider options as a mapping of names, got {shown(options)}; correct it")
    given = dict(_option(provider, key, value) for key, value in (options or {}).items())
    if (chip := given.pop(SOC, None)) is not None:
        if both := sorted(chip_options(chip).keys() & given.keys()):
            raise InputError(f"expected {SOC} or {' and '.join(both)}, got both; leave one out")
        given |= chip_options(chip)
    return Choice(provider, {**provider.defaults, **given}, allow_fallback)


def _option(provider: Provider, key: Any, value: Any) -> tuple[str, str]:
    """One option as text."""
    if not isinstance(key, str) or key not in provider.options:
        import difflib  # noqa: PLC0415  # of no use to a start without mistakes

        near = difflib.get_close_matches(str(key)[:LONGEST_NAME], provider.options, 1)
        advice = f"did you mean {near[0]}" if near else "see what it takes in its documentation, or leave it out"
        raise InputError(f"expected an option of the provider {provider.name}, got {shown(key)}; {advice}")
    text = str(int(value)) if isinstance(value, int) else value
    if not isinstance(text, str) or not text or len(text) > LONGEST_OPTION or "\0" in text:
        raise InputError(f"expected {key} as text or a whole number, got {shown(value)}; correct the option")
    allowed = provider.options[key]
    if allowed and text not in allowed:
        raise InputError(f"expected {key} as one of {', '.join(allowed)}, got {shown(text)}; correct the option")
    return key, text
