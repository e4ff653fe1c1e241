"""The verbs behind the command line, for programs. Exporter modules are imported inside, because they load torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xlstm_edge_runtime.errors import DependencyError, InputError
from xlstm_edge_runtime.manifest import MANIFEST, Manifest, read_manifest
from xlstm_edge_runtime.verify import Check, verify_bundle

from .report import describe_bundle, describe_checkpoint

if TYPE_CHECKING:
    from xlstm_edge_exporters.checkpoints import Checkpoint

Progress = Callable[[str, int, int], None]
EXPORT_PACKAGES = {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "yaml"}
LARGEST_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Bundle:
    """An exported bundle: where it is and what it says of itself."""

    path: Path
    manifest: Manifest

    def __fspath__(self) -> str:
        return str(self.path)


def export(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    flavour: Literal["ort", "portable"] = "ort",
    chunk: int = 64,
    all_logits: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a checkpoint (folder or weights file) to a bundle folder.

    `chunk` is the most tokens of one call of an `ort` graph; `portable` graphs take one. `all_logits` makes the graph
    return every token's logits instead of the last one's. Raises an XlstmEdgeError and writes nothing if anything is
    wrong.
    """
    if flavour not in ("ort", "portable"):
        raise InputError(f"expected flavour ort or portable, came {flavour!r}; choose one")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or not 1 <= chunk <= LARGEST_CHUNK:
        raise InputError(f"expected a chunk of 1 to {LARGEST_CHUNK} tokens, came {chunk!r}; 64 is a good choice")
    source = open_checkpoint(checkpoint)
    from xlstm_edge_exporters.bundle import write_bundle  # noqa: PLC0415  # loads torch
    from xlstm_edge_exporters.trace import GraphOptions  # noqa: PLC0415  # same

    options = GraphOptions(flavour=flavour, chunk=chunk if flavour == "ort" else 1, all_logits=all_logits)
    more = {} if progress is None else {"progress": progress}
    return Bundle(Path(bundle), write_bundle(source, bundle, options, force=force, **more))


def verify(
    bundle: str | Path,
    *,
    against: str | Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Check]:
    """All checks of a bundle, also against its checkpoint if given; VerificationError for the first that fails."""
    checks = list(verify_bundle(bundle, threads=threads))
    if against is not None:
        source = open_checkpoint(against)
        from xlstm_edge_exporters.verify import verify_against  # noqa: PLC0415  # loads torch

        more = {} if progress is None else {"progress": progress}
        checks += verify_against(bundle, source, threads=threads, **more)
    return checks


def inspect(path: str | Path) -> dict[str, Any]:
    """What a bundle or a checkpoint is: family, dimensions, state table, files; as plain data."""
    if (Path(path) / MANIFEST).is_file():
        return describe_bundle(read_manifest(path))
    return describe_checkpoint(open_checkpoint(path))


def open_checkpoint(path: str | Path) -> "Checkpoint":
    """The exporter's `open_checkpoint`; DependencyError if its packages are not installed."""
    try:
        from xlstm_edge_exporters import checkpoints  # noqa: PLC0415  # loads torch
    except ModuleNotFoundError as error:
        if error.name not in EXPORT_PACKAGES:
            raise
        raise DependencyError(
            f"expected the package {error.name} for reading checkpoints, came none; pip install 'xlstm-edge[export]'"
        ) from error
    return checkpoints.open_checkpoint(path)
