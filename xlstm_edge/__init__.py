"""Put a trained xLSTM on a device: the whole job in five verbs.

    import xlstm_edge

    bundle = xlstm_edge.export("checkpoint", "bundle", target="cpu")
    xlstm_edge.verify("bundle", against="checkpoint")
    xlstm_edge.plan("checkpoint")                # sizes, memory, speed, before any work
    xlstm_edge.inspect("bundle")
    model = xlstm_edge.load("bundle")            # the runtime's own load; see xlstm_edge_runtime

The verbs are imported when they are first asked for: the command line starts at once, and stops at once on Ctrl-C. They
load numpy and onnxruntime; torch comes in when `export` or `verify(against=...)` needs it.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlstm_edge_runtime import XlstmEdgeError, __version__, load

    from .facade import Bundle, export, inspect, plan, verify

__all__ = ["Bundle", "XlstmEdgeError", "__version__", "export", "inspect", "load", "plan", "verify"]

# Some of our modules import onnxruntime before the runtime does, which says why.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_HOMES = dict.fromkeys(("Bundle", "export", "inspect", "plan", "verify"), ".facade")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES.get(name, "xlstm_edge_runtime"), __name__)
    return getattr(home, name)
