"""Write `tests/golden/conformance/` anew:

    python -m tests.conformance

The same versions of all packages give the same bytes. Expected logits come from float64 references, expected errors are
stated by hand; what else is expected is what the Python runtime does, which its own tests hold to other oracles.
"""

import json
import shutil
import tempfile
from pathlib import Path

from . import FOLDER, INDEX
from .behaviour import generation_cases, logits_cases, snapshot_cases, text_cases, vector_cases
from .bundles import BUNDLES, make_bundles, make_checkpoints
from .malformed import file_cases, manifest_cases, snapshot_edit_cases
from .pieces import decode_cases, exact_cases, sampling_cases, stop_cases

KEPT = {"README.md", ".gitattributes"}


def main() -> None:
    """Everything but the page that explains it."""
    for path in FOLDER.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = make_checkpoints(Path(scratch))
        bundles = make_bundles(checkpoints, FOLDER / "bundles")
        checks = {
            "bundles": [{"bundle": name, "about": about} for name, (_, about, _) in BUNDLES.items()],
            "logits": logits_cases(FOLDER, checkpoints, bundles),
            "vectors": vector_cases(FOLDER, checkpoints),
            "generations": generation_cases(bundles),
            "texts": text_cases(bundles),
            "snapshots": snapshot_cases(FOLDER, checkpoints, bundles),
            "exact": exact_cases(),
            "sampling": sampling_cases(FOLDER),
            "decode": decode_cases(FOLDER),
            "stops": stop_cases(),
            "manifests": manifest_cases({name: bundles[name] / "manifest.json" for name in ("capped", "static")}),
            "snapshot_edits": snapshot_edit_cases(),
            "files": file_cases(),
        }
    kinds = [f'"{kind}": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]" for kind, cases in checks.items()]
    text = '{"about": "README.md explains this file", "checks": {\n' + ",\n".join(kinds) + "\n}}\n"
    (FOLDER / INDEX).write_text(text, "utf-8")
    print(
        {kind: len(cases) for kind, cases in checks.items()},
        sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()),
    )


main()
