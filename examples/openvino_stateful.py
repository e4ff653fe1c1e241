"""Stream text from a bundle with OpenVINO alone: the state lives in the compiled model, a call takes a token and no more.

Needs: pip install openvino tokenizers, and a folder with model.openvino.xml, tokenizer.json and manifest.json.

python examples/openvino_stateful.py BUNDLE "ROMEO."
"""

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

sys.modules.setdefault("openvino_telemetry", None)  # without it importing openvino reports its use over the network
import openvino  # noqa: E402  # after the line above

FILES = ("model.openvino.xml", "tokenizer.json", "manifest.json")
if len(sys.argv) != 3 or not all((Path(sys.argv[1]) / name).is_file() for name in FILES):
    sys.exit(f"usage: python examples/openvino_stateful.py BUNDLE PROMPT (a bundle that holds {', '.join(FILES)})")
bundle, prompt = Path(sys.argv[1]), sys.argv[2]
special = json.loads((bundle / "manifest.json").read_text())["special_tokens"]
tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))

# bfloat16 is the default of processors that have it; f32 computes what the bundle's test vectors say.
model = openvino.compile_model(bundle / "model.openvino.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
request = model.create_infer_request()  # a session: each request has a state of its own, reset_state() begins anew


def step(token: int) -> np.ndarray:
    """Logits (V,) of what follows the token; the request keeps the state."""
    return request.infer({0: np.array([[token]])})[0].reshape(-1)


def draw(logits: np.ndarray, rng: np.random.Generator, temperature: float = 0.7, top_k: int = 40) -> int:
    """A token, by the probabilities of the likeliest ones."""
    best = np.argsort(logits)[-top_k:]
    weights = np.exp((logits[best] - logits[best[-1]]) / temperature)
    return int(rng.choice(best, p=weights / weights.sum()))


ids = tokenizer.encode(prompt).ids
if special["add_bos"] and ids[:1] != [special["bos"]]:
    ids = [special["bos"], *ids]
if not ids:
    sys.exit("expected a prompt of one token or more, got none; write a word")
for token in ids:
    logits = step(token)
print(prompt, end="")
rng, decoder = np.random.default_rng(1), DecodeStream(ids, skip_special_tokens=True)
for _ in range(60):
    token = draw(logits, rng)
    if token in special["stop"]:
        break
    print(decoder.step(tokenizer, token) or "", end="", flush=True)
    logits = step(token)
print()
