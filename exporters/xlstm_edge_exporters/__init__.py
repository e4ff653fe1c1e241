"""Turn trained xLSTM checkpoints into bundles: torch and onnx live here, and nowhere below.

checkpoint family -> canonical spec and weights -> traced graph -> bundle -> verified against the float64 reference.
"""
