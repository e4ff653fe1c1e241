"""The verbs behind the command line, for programs. Exporter modules are imported inside, because they load torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_edge_runtime.errors import DependencyError, InputError, shown
from xlstm_edge_runtime.manifest import MANIFEST, Manifest, read_manifest
from xlstm_edge_runtime.reading import check_path
from xlstm_edge_runtime.verify import Check, verify_bundle

from .report import describe_bundle, describe_checkpoint

if TYPE_CHECKING:
    from xlstm_edge_exporters.checkpoints import Checkpoint
    from xlstm_edge_exporters.recipe import Recipe

Progress = Callable[[str, int, int], None]
EXPORT_PACKAGES = {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "yaml"}


@dataclass(frozen=True, slots=True)
class Bundle:
    """An exported bundle: where it is, what it says of itself, and what the export took from the checkpoint and left."""

    path: Path
    manifest: Manifest
    notes: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return str(self.path)


def export(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    prefix: str | None = None,
    weights: str | None = None,
    recipe: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Bundle:
    """Export a checkpoint (folder or weights file) to a bundle folder.

    Where a checkpoint holds several models, or the xLSTM is a part of a larger net, `prefix` names the one to take by
    what stands before its tensors' names, and `weights` the file of a folder, the key inside a torch file, or FILE:KEY.
    `options` are the fields of `xlstm_edge_exporters.recipe.Recipe`: flavour ("ort" or "portable"), chunk (most tokens of
    one call, ort only), all_logits, quantize ("int8", "int4", "mixed"), method ("rtn", "gptq"), calibrate (a text file),
    group_size, embedding_bits, head_bits, keep ({pattern: bits}), target_mb, target_bpw, tokenizer (a file, "byte" or
    "none"). They override those of the TOML file `recipe`. The bundle's `notes` say in a line each what else there is to
    know, as that it has no text. Raises an XlstmEdgeError and writes nothing if anything is wrong.
    """
    check_path(checkpoint, "a checkpoint")
    chosen = check_export(bundle, recipe=recipe, force=force, **options)
    source = open_checkpoint(checkpoint, prefix=prefix, weights=weights)
    from xlstm_edge_exporters.export import export_checkpoint  # noqa: PLC0415  # loads torch

    notes = list(source.notes.lines())
    manifest = export_checkpoint(source, bundle, chosen, force=force, progress=progress or _silent, note=notes.append)
    return Bundle(Path(bundle), manifest, tuple(notes))


def check_export(
    bundle: str | Path, *, recipe: str | Path | None = None, force: bool = False, **options: Any
) -> "Recipe":
    """What can be said of an export before torch is loaded: the recipe, or InputError for options and paths."""
    from xlstm_edge_exporters.place import refuse_target  # noqa: PLC0415  # an extra
    from xlstm_edge_exporters.recipe import KINDS, read_recipe  # noqa: PLC0415  # same

    if unknown := sorted(options.keys() - KINDS.keys()):
        raise InputError(f"expected options among {', '.join(KINDS)}, came {', '.join(unknown)}; correct them")
    place = check_path(bundle, "a folder for the bundle")
    chosen = read_recipe(None if recipe is None else check_path(recipe, "a TOML file"), options)
    refuse_target(place, force)
    return chosen


def verify(
    bundle: str | Path,
    *,
    against: str | Path | None = None,
    prefix: str | None = None,
    weights: str | None = None,
    tokenizer: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Check]:
    """All checks of a bundle, also against its checkpoint if given; VerificationError for the first that fails.

    `prefix`, `weights` and `tokenizer` as they were for the export.
    """
    report, checks = progress or _silent, list[Check]()
    report("verifying", 0, 0)
    checks += verify_bundle(bundle, threads=threads)
    if against is not None:
        source = open_checkpoint(against, prefix=prefix, weights=weights)
        from xlstm_edge_exporters.verify import verify_against  # noqa: PLC0415  # loads torch

        checks += verify_against(bundle, source, tokenizer=tokenizer, threads=threads, progress=report)
    return checks


def inspect(path: str | Path, *, prefix: str | None = None, weights: str | None = None) -> dict[str, Any]:
    """What a bundle or a checkpoint is: family, dimensions, state table, files; as plain data."""
    check_path(path, "a bundle or checkpoint")
    if is_bundle(path):
        return describe_bundle(read_manifest(path))
    return describe_checkpoint(open_checkpoint(path, prefix=prefix, weights=weights))


def is_bundle(path: str | Path) -> bool:
    """Whether a path is a folder with a manifest, whatever is in it."""
    try:
        return (Path(path) / MANIFEST).exists()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def load_exporters() -> None:
    """Import what reading checkpoints needs, torch above all; DependencyError if it is not installed."""
    try:
        from xlstm_edge_exporters import checkpoints, export  # noqa: F401, PLC0415  # loads torch
    except ModuleNotFoundError as error:
        if error.name not in EXPORT_PACKAGES:
            raise
        raise DependencyError(
            f"expected the package {error.name} for reading checkpoints, came none; pip install 'xlstm-edge[export]'"
        ) from error


def open_checkpoint(path: str | Path, *, prefix: str | None = None, weights: str | None = None) -> "Checkpoint":
    """The exporter's `open_checkpoint`; DependencyError if its packages are not installed."""
    check_path(path, "a checkpoint")
    for name, value in (("prefix", prefix), ("weights", weights)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"expected {name} as text, came {shown(value)}; correct it")
    load_exporters()
    from xlstm_edge_exporters import checkpoints  # noqa: PLC0415  # loads torch

    return checkpoints.open_checkpoint(path, prefix=prefix, weights=weights)


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Nobody asked for progress."""
