"""Apple's Core ML, through onnxruntime's Core ML provider (ML programs)."""

from .accelerator import Accelerator


class CoreML(Accelerator):
    """iPhones, iPads and Macs."""

    name = "coreml"
    summary = "iPhone, iPad and Mac: Core ML, float16"
    use = "iPhone, iPad or Mac with onnxruntime's Core ML provider"
    provider = "coreml"
