"""Stream xLSTM bundles on a device: numpy and onnxruntime, nothing else.

import xlstm_edge_runtime as xr

model = xr.load("bundle", threads=2)
for piece in model.stream("To be", max_tokens=64):
    print(piece, end="", flush=True)

session = model.session()            # a stream of its own: constant memory, whatever it reads
logits = session.prefill([5, 17, 3])
logits = session.step(42)
for event in xr.stream_text(session, "To be", max_tokens=64):    # continues this session
    if isinstance(event, xr.Piece):
        print(event.text, end="", flush=True)

onnxruntime's wheels send telemetry unless told not to when they are imported, and keep a device id in the home folder for
it; so importing this package tells them, unless you have set ORT_DISABLE_TELEMETRY yourself (to 0, to allow it).
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from .errors import (
    BundleError,
    CheckpointError,
    DependencyError,
    InputError,
    StateError,
    VerificationError,
    XlstmEdgeError,
)
from .generate import Event, Finish, Timings, Token, Usage
from .loading import load
from .model import Model
from .options import GenerationOptions
from .sampling import Sampler, SamplingOptions
from .session import Session
from .text import Piece, stream_text

__all__ = [
    "BundleError",
    "CheckpointError",
    "DependencyError",
    "Event",
    "Finish",
    "GenerationOptions",
    "InputError",
    "Model",
    "Piece",
    "Sampler",
    "SamplingOptions",
    "Session",
    "StateError",
    "Timings",
    "Token",
    "Usage",
    "VerificationError",
    "XlstmEdgeError",
    "load",
    "stream_text",
]

__version__ = "0.1.0"
