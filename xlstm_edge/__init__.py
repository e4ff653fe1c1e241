"""Put a trained xLSTM on a device: the whole job in four verbs.

    import xlstm_edge

    bundle = xlstm_edge.export("checkpoint", "bundle", flavour="ort")
    xlstm_edge.verify("bundle", against="checkpoint")
    xlstm_edge.inspect("bundle")
    model = xlstm_edge.load("bundle")            # the runtime's own load; see xlstm_edge_runtime

Importing this loads numpy and onnxruntime only; torch comes in when `export` or `verify(against=...)` needs it.
"""

from xlstm_edge_runtime import XlstmEdgeError, __version__, load

from .facade import Bundle, export, inspect, verify

__all__ = ["Bundle", "XlstmEdgeError", "__version__", "export", "inspect", "load", "verify"]
