"""The verbs behind the command line, for programs. Exporter modules are imported inside, because they load torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_edge_runtime.errors import DependencyError, InputError
from xlstm_edge_runtime.manifest import MANIFEST, Manifest, read_manifest
from xlstm_edge_runtime.verify import Check, verify_bundle

from .report import describe_bundle, describe_checkpoint

if TYPE_CHECKING:
    from xlstm_edge_exporters.checkpoints import Checkpoint

Progress = Callable[[str, int, int], None]
EXPORT_PACKAGES = {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "yaml"}


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
    recipe: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    **options: Any,
) -> Bundle:
    """Export a checkpoint (folder or weights file) to a bundle folder.

    `options` are the fields of `xlstm_edge_exporters.recipe.Recipe`: flavour ("ort" or "portable"), chunk (most tokens of
    one call, ort only), all_logits, quantize ("int8", "int4", "mixed"), method ("rtn", "gptq"), calibrate (a text file),
    group_size, embedding_bits, head_bits, keep ({pattern: bits}), target_mb, target_bpw, tokenizer (a file, "byte" or
    "none"). They override those of the TOML file `recipe`. `note` is told in a line what else there is to know, as that the
    bundle has no text. Raises an XlstmEdgeError and writes nothing if anything is wrong.
    """
    source = open_checkpoint(checkpoint)
    from xlstm_edge_exporters.export import export_checkpoint  # noqa: PLC0415  # loads torch
    from xlstm_edge_exporters.recipe import KINDS, read_recipe  # noqa: PLC0415  # same

    if unknown := sorted(options.keys() - KINDS.keys()):
        raise InputError(f"expected options among {', '.join(KINDS)}, came {', '.join(unknown)}; correct them")
    chosen = read_recipe(recipe, options)
    manifest = export_checkpoint(
        source, bundle, chosen, force=force, progress=progress or _silent, note=note or (lambda _line: None)
    )
    return Bundle(Path(bundle), manifest)


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

        checks += verify_against(bundle, source, threads=threads, progress=progress or _silent)
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


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Nobody asked for progress."""
