"""Qualcomm's HTP, through onnxruntime's QNN provider."""

from .accelerator import Accelerator


class QNN(Accelerator):
    """Snapdragon phones and laptops."""

    name = "qnn"
    summary = "Snapdragon phones and laptops: Qualcomm's HTP, float16"
    use = "a Snapdragon with Qualcomm's HTP, onnxruntime and the package onnxruntime-qnn"
    provider = "qnn"
