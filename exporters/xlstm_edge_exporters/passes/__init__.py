"""Graph passes: one module, one change, one test. A pass says whether it modified the graph.

scan           the sLSTM placeholder -> ONNX Scan
opset17        opset 18 nodes -> opset 17, for the portable target
packed_states  the states of the cpu target -> onnxruntime-genai's two tensors a layer
tidy           duplicate constants, identities, dead nodes and tracing metadata go
"""
