"""The conformance files of `tests/golden/conformance/`: what every runtime of the format must reproduce.

`python -m tests.conformance` writes them; the README beside them says for whoever writes a runner what is in them.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "conformance"
INDEX = "conformance.json"


def read_index() -> dict[str, list[dict[str, Any]]]:
    """Kind of check -> its cases."""
    index: dict[str, list[dict[str, Any]]] = json.loads((FOLDER / INDEX).read_text("utf-8"))["checks"]
    return index
