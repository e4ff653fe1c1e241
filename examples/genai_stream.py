"""Stream text from a bundle with onnxruntime-genai alone: none of our code; C, C++, C# and Java have the same calls.

Needs: pip install onnxruntime-genai, and a folder that `xlstm-edge export --target genai` wrote.

python examples/genai_stream.py BUNDLE "ROMEO."
"""

import os
import sys
from pathlib import Path

FILES = ("genai_config.json", "tokenizer_config.json")
if len(sys.argv) != 3 or not all((Path(sys.argv[1]) / name).is_file() for name in FILES):
    sys.exit(f"usage: python examples/genai_stream.py BUNDLE PROMPT (a bundle that holds {', '.join(FILES)})")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # without it onnxruntime-genai reports its use over the network
import onnxruntime_genai as genai  # noqa: E402  # after the line above

model = genai.Model(sys.argv[1])
tokenizer = genai.Tokenizer(model)
ids = tokenizer.encode(sys.argv[2])
parameters = genai.GeneratorParams(model)
parameters.set_search_options(max_length=len(ids) + 200)  # add do_sample=True, temperature=0.7, top_k=40 to sample
generator = genai.Generator(model, parameters)
generator.append_tokens(ids)
stream = tokenizer.create_stream()
print(sys.argv[2], end="", flush=True)
while not generator.is_done():
    generator.generate_next_token()
    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)  # nothing for a token that ends a text
print()
