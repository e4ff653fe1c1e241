"""One text of the shipped model in float32, which every runtime must give on every machine.

`python -m tests.one_text` has the Python runtime write it to `golden/shakespeare.json`.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import xlstm_edge
import xlstm_edge_runtime as xr

from .conftest import SHIPPED

GOLDEN = Path(__file__).parent / "golden" / "shakespeare.json"
PROMPT = "To be"
OPTIONS: dict[str, Any] = {"max_tokens": 64, "temperature": 0.7, "seed": 1}


def read() -> dict[str, Any]:
    """`prompt`, `prompt_ids`, `options`, and the `ids` and the `text` that must come."""
    golden: dict[str, Any] = json.loads(GOLDEN.read_text("utf-8"))
    return golden


def told(bundle: Path) -> dict[str, Any]:
    """What the Python runtime makes of it."""
    model = xr.load(bundle, threads=1)
    prompt = model.encode(PROMPT)
    tokens = [event.id for event in model.session().generate(prompt, **OPTIONS) if isinstance(event, xr.Token)]
    text = "".join(model.stream(PROMPT, **OPTIONS))
    return {"prompt": PROMPT, "prompt_ids": prompt, "options": OPTIONS, "ids": tokens, "text": text}


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        xlstm_edge.export(SHIPPED, Path(folder) / "bundle")
        GOLDEN.write_text(json.dumps(told(Path(folder) / "bundle")) + "\n", "utf-8")


if __name__ == "__main__":
    main()
