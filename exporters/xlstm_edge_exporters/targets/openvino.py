"""Intel's OpenVINO: CPUs, GPUs and NPUs, by its own runtime or as onnxruntime's provider."""

from .accelerator import Accelerator


class OpenVINO(Accelerator):
    """Intel machines."""

    name = "openvino"
    summary = "Intel laptops and servers: OpenVINO, float32 on its CPU"
    use = "Intel hardware with OpenVINO, or with the package onnxruntime-openvino"
    provider = "openvino"
    half = False
