"""What can be said of a command's words before torch is loaded or anything runs long: InputError or BundleError."""

import os
from collections.abc import Iterable
from pathlib import Path

from xlstm_edge_runtime.errors import InputError, shown_path
from xlstm_edge_runtime.manifest import has_manifest, read_manifest
from xlstm_edge_runtime.opening import check_threads


def check_arguments(
    *,
    bundles: Iterable[Path | None] = (),
    sources: Iterable[Path | None] = (),
    threads: int | None = None,
    tokenizer: str | None = None,
) -> None:
    """`bundles` must be some (what is in them is said later), `sources` be there; None was not given."""
    check_threads(threads)
    for bundle in bundles:
        if bundle is not None and not has_manifest(bundle):
            read_manifest(bundle)  # says what is there instead
    for source in sources:
        if source is not None and not _there(source):
            raise InputError(
                f"expected a checkpoint folder or a weights file at {shown_path(source)}, got nothing; check the path"
            )
    if tokenizer not in (None, "byte", "none") and not _is_file(Path(tokenizer or "")):
        raise InputError(f"expected a tokenizer.json at {shown_path(tokenizer)}, got no file; check the path")


def _there(path: Path) -> bool:
    """Whether something is at a path, or it names a repository of the hub."""
    from xlstm_edge_exporters.hub import is_on_hub  # noqa: PLC0415  # needs no torch

    if is_on_hub(path):
        return True
    try:
        return os.path.lexists(path)
    except ValueError:  # a name that no file system takes
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the same
        return False
