"""Graph passes: one module, one change, one test. A pass says whether it modified the graph.

scan      the sLSTM placeholder -> ONNX Scan
opset17   opset 18 nodes -> opset 17, for the portable target
tidy      duplicate constants, identities, dead nodes and tracing metadata go
"""
