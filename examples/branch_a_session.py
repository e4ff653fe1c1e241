"""Read a prompt once, then continue it in several ways: a fork costs one copy of a constant-size state.

xlstm-edge export examples/shakespeare -o demo-bundle
python examples/branch_a_session.py demo-bundle [SNAPSHOT]
"""

import sys

import numpy as np

import xlstm_edge_runtime as xr

if len(sys.argv) not in (2, 3):
    sys.exit(
        "usage: python examples/branch_a_session.py BUNDLE [SNAPSHOT] "
        "(a bundle: xlstm-edge export examples/shakespeare -o BUNDLE)"
    )
try:
    model = xr.load(sys.argv[1])
except xr.XlstmEdgeError as error:
    sys.exit(f"error: {error}")
session = model.session()
begin = session.prefill(model.encode("HAMLET.\nTo be, or not to be: that is the"))
for option in (" question", " answer", " table"):
    branch, logits, score = session.fork(), begin, 0.0  # the prompt is not read again
    tokens = model.encode(option, start=False)  # in the middle of a text: no bos token
    for token in tokens:
        score += float(logits[token] - np.logaddexp.reduce(logits.astype(np.float64)))  # log p(token | all before)
        logits = branch.step(token)
    print(
        f"{option!r}: log p {score:.2f}, {len(tokens)} tokens; {branch.nbytes:,} bytes of state after {branch.tokens} tokens"
    )
session.save(sys.argv[2] if len(sys.argv) > 2 else "hamlet.safetensors")  # wakes up on any device with this bundle
