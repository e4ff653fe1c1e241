"""Read a prompt once, then continue it in several ways: a fork costs one copy of a constant-size state.

python examples/branch_a_session.py demo-bundle
"""

import sys

import numpy as np

import xlstm_edge_runtime as xr

model = xr.load(sys.argv[1])
session = model.session()
session.prefill(model.encode("HAMLET.\nTo be, or not to be: that is the"))
for option in (" question", " answer", " table"):
    branch = session.fork()  # the prompt is not read again
    logits, score = None, 0.0
    for token in model.encode(option):
        if logits is not None:
            score += float(logits[token] - np.logaddexp.reduce(logits.astype(np.float64)))
        logits = branch.step(token)
    print(f"{option!r}: state of {branch.nbytes:,} bytes, {branch.tokens} tokens read, score {score:.2f}")
session.save(sys.argv[2] if len(sys.argv) > 2 else "hamlet.safetensors")  # wakes up on any device with this bundle
