"""Stream text from a bundle. Needs: pip install 'xlstm-edge[text]', and a bundle.

xlstm-edge export examples/shakespeare -o demo-bundle
python examples/stream_text.py demo-bundle "ROMEO."
"""

import sys

import xlstm_edge_runtime as xr

if len(sys.argv) != 3:
    sys.exit(
        "usage: python examples/stream_text.py BUNDLE PROMPT (a bundle: xlstm-edge export examples/shakespeare -o BUNDLE)"
    )
bundle, prompt = sys.argv[1:]
try:
    model = xr.load(bundle)  # the weights, once
except xr.XlstmEdgeError as error:
    sys.exit(f"error: {error}")
print(prompt, end="")
for piece in model.stream(prompt, max_tokens=60, temperature=0.7, top_p=0.9, seed=1, stop=["\n\n\n"]):
    print(piece, end="", flush=True)
print()
