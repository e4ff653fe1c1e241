"""A Core ML package ahead of time: the accelerator's graph as an ML program that Apple's compiler takes as it is.

`model.mlpackage` is a folder; in a bundle, whose folders are flat, it is a zip file, the same bytes for the same model.
"""

import contextlib
import io
import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import onnx_ir as ir

from xlstm_edge_runtime import __version__
from xlstm_edge_runtime.state import StateTable

from ..extras import import_extra
from ..quiet import quiet
from .coreml_program import build_program

PACKAGE = "model.mlpackage"
PACKAGE_ZIP = f"{PACKAGE}.zip"
INSIDE = "Data/com.apple.CoreML"  # where coremltools puts the program and its weights
PROGRAM, WEIGHTS = "model.mlmodel", "weights"
# The files' identifiers in the package's Manifest.json, which must be distinct and need not be random.
PROGRAM_ID, WEIGHTS_ID = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"


def write_package(graph: Path, table: StateTable, *, family: str, stateful: bool = True) -> Path:
    """Write `model.mlpackage.zip` beside a graph exported for Core ML, and nothing else; its path.

    `table` is the graph's, `family` what the package is described as. With `stateful` Core ML keeps the states (iOS 18, macOS
    15); without, they are inputs and outputs of every call (iOS 16, macOS 13). Either way they are float16 and start at 0;
    shapes and names: `coreml_program.build_program`. DependencyError without coremltools, CheckpointError for weights that
    float16 does not hold.
    """
    # coremltools shows bars, and warns of versions of packages whose converters are not used here
    with quiet("coremltools"), contextlib.redirect_stderr(io.StringIO()):
        ct = import_extra("coremltools", "a Core ML package", "coreml")
        program = build_program(ir.load(graph).graph, table, stateful=stateful)
        with tempfile.TemporaryDirectory(prefix=".coreml-", dir=graph.parent) as work:
            package = Path(work) / PACKAGE
            ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS18 if stateful else ct.target.iOS16,
                compute_precision=ct.precision.FLOAT32,  # as the program is: float16 already, and nothing to be cast
                pass_pipeline=_passes(ct),
                skip_model_load=True,
                package_dir=str(package),
            )
            _settle(ct, package, family)
            return _zip(package, Path(work) / PACKAGE_ZIP).rename(graph.with_name(PACKAGE_ZIP))


def _passes(ct: Any) -> Any:
    """coremltools' own, but for the one that compares and selects for the sake of token ids below 0."""
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({"common::guard_negative_gather_indices"})
    return passes


def _settle(ct: Any, package: Path, family: str) -> None:
    """Say what the model is, and take chance out of the bytes: the order of maps, the identifiers of files."""
    file = package / INSIDE / PROGRAM
    document = ct.utils.load_spec(str(file))
    document.description.metadata.shortDescription = f"{family}, one token a call, every state starts at 0"
    document.description.metadata.userDefined["producer"] = f"xlstm-edge {__version__}, coremltools {ct.__version__}"
    file.write_bytes(document.SerializeToString(deterministic=True))
    (package / "Manifest.json").write_text(_manifest(), encoding="utf-8")


def _manifest() -> str:
    """The list of a package's files, in Apple's format 1.0.0."""
    entries = ((PROGRAM_ID, PROGRAM, "CoreML Model Specification"), (WEIGHTS_ID, WEIGHTS, "CoreML Model Weights"))
    items = {
        identifier: {
            "author": "com.apple.CoreML",
            "description": description,
            "name": name,
            "path": f"com.apple.CoreML/{name}",
        }
        for identifier, name, description in entries
    }
    document = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": PROGRAM_ID}
    return json.dumps(document, indent=4) + "\n"


def _zip(package: Path, out: Path) -> Path:
    """The folder as a zip file of sorted names, without times and without compression, which float16 hardly yields to."""
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(path for path in package.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"{PACKAGE}/{path.relative_to(package).as_posix()}")
            entry.external_attr, entry.file_size, entry.create_system = 0o100644 << 16, path.stat().st_size, 3
            with path.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target)
    return out
