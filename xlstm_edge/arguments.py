"""What can be said of a command's words before torch is loaded or anything runs long: InputError or BundleError."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from xlstm_edge_runtime.errors import InputError, shown, shown_path
from xlstm_edge_runtime.manifest import has_manifest, read_manifest
from xlstm_edge_runtime.opening import check_threads
from xlstm_edge_runtime.plugins import require
from xlstm_edge_runtime.providers import choose_provider

from .streams import keep_output_ours


def check_arguments(
    *,
    bundles: Iterable[Path | None] = (),
    sources: Iterable[Path | None] = (),
    threads: int | None = None,
    tokenizer: str | None = None,
    soc: str | None = None,
) -> None:
    """`bundles` must be some (what is in them is said later), `sources` be there; None was not given.

    With `soc` standard output is ours alone from here on: compilers for chips print to it.
    """
    check_threads(threads)
    if soc is not None:
        keep_output_ours()
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


def provider_words(name: str, words: Sequence[str] | None, allow_fallback: bool) -> dict[str, Any]:
    """--provider, --provider-option and --allow-fallback as the keywords that `load` takes.

    InputError for words that no provider takes, DependencyError for a provider that is not installed. From here on standard
    output is ours alone where another provider than the CPU was asked for: their libraries print to it.
    """
    given: dict[str, str | int | bool] = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise InputError(
                f"expected --provider-option NAME=VALUE, got {shown(word)}; write for example backend_type=htp"
            )
        if key in given:
            raise InputError(f"expected each --provider-option once, got {shown(key)} twice; leave one out")
        given[key] = value
    choice = choose_provider(name, given, allow_fallback)
    require(choice.provider)
    if not choice.is_cpu:
        keep_output_ours()
    return {"provider": name, "provider_options": given, "allow_fallback": allow_fallback}


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
