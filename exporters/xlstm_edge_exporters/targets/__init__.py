"""Where a bundle is to run: one class, one row here, one test each (see exporters/targets.md)."""

from .base import Target
from .coreml import CoreML
from .cpu import CPU
from .genai import GenAI
from .litert import LiteRT
from .openvino import OpenVINO
from .portable import Portable
from .qnn import QNN
from .web import Web

_ALL = (CPU(), Portable(), Web(), CoreML(), QNN(), OpenVINO(), LiteRT(), GenAI())
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}

__all__ = ["TARGETS", "Target"]
