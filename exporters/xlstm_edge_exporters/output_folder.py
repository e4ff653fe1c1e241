"""Where a bundle goes: what may be replaced there, and how it appears whole or not at all.

Needs no torch, so that a bad path is refused before it is loaded.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from xlstm_edge_runtime.errors import InputError, shown, shown_path
from xlstm_edge_runtime.files import PARTIAL, atomic_folder, scratch_folder
from xlstm_edge_runtime.layout import COMPILED, EXPORTED, MANIFEST, TUNED, TUNING

RESUME, KEY = ".resume", "xlstm-edge-export"  # added to the name of the bundle; the file in that folder that marks it


def refuse_target(out: Path, force: bool) -> None:
    """Before any work: InputError for a path that the bundle could not take at the end."""
    try:
        os.lstat(out)
        there = True
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except (OSError, ValueError) as error:  # a name that no file system takes
        raise InputError(
            f"expected a path for the bundle, got {shown_path(out)}, which is none; choose another"
        ) from error
    if not there:
        if not out.parent.is_dir():
            raise InputError(f"expected the folder {shown_path(out.parent)} for the bundle, got none; make it first")
    elif not force:
        raise InputError(
            f"expected a new path for the bundle, got {shown_path(out)}, which exists; pass --force to replace a bundle"
        )
    else:
        check_replaceable(out)


def check_replaceable(folder: Path) -> None:
    """InputError unless the folder holds a bundle and nothing else, so that replacing it loses nothing of the user's."""
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"expected --force to replace a bundle, got {shown_path(folder)}, which is none; choose another path"
        )
    if foreign := sorted(path.name for path in folder.iterdir() if not _belongs(path)):
        raise InputError(
            f"expected only a bundle's files in {shown_path(folder)}, got {shown(foreign[0])}; move it elsewhere first"
        )


def _belongs(path: Path) -> bool:
    """Whether an export, a tuning or an interrupted writer made this: what --force may remove."""
    if path.name == TUNING:
        return path.is_dir() and all(file.name in TUNED for file in path.iterdir())
    return path.name in EXPORTED or any(pattern.fullmatch(path.name) for pattern in (PARTIAL, COMPILED))


@contextlib.contextmanager
def placed(out: Path, force: bool) -> Iterator[Path]:
    """An empty folder to write the bundle into, which takes its place at the end; InputError if it cannot."""
    try:
        with atomic_folder(out, replace=force, check=check_replaceable) as folder:
            yield folder
    except FileExistsError as error:
        raise InputError(
            f"expected {shown_path(out)} as it was when the export began, got something new there; look at it first"
        ) from error
    except OSError as error:
        raise InputError(
            f"expected to write the bundle to {shown_path(out)}, got {error.strerror or error}; free space or move"
        ) from error


@contextlib.contextmanager
def work_folder(out: Path, key: str | None) -> Iterator[Path]:
    """A folder beside `out` for what an export makes on its way; it goes with the export.

    With a `key` it stays when the export is interrupted, unless nothing is in it yet, and the next one with this key finds
    what is there; what another key left is removed. OSErrors are those of a full or forbidden disk: InputError.
    """
    try:
        if key is None:
            with scratch_folder(out) as folder:
                yield folder
            return
        folder = out.with_name(f"{out.name}{RESUME}")
        _claim(folder, key)
        try:
            yield folder
        except BaseException:
            _remove_unused(folder)
            raise
        shutil.rmtree(folder)
    except OSError as error:
        raise InputError(
            f"expected to write beside {shown_path(out)}, got {error.strerror or error}; free space or move"
        ) from error


def _remove_unused(folder: Path) -> None:
    """Nothing can be resumed from a folder with no more than its mark."""
    with contextlib.suppress(OSError):  # what ended the export is what is told
        if [path.name for path in folder.iterdir()] == [KEY]:
            shutil.rmtree(folder)


def _claim(folder: Path, key: str) -> None:
    """Make the folder this key's: InputError for one that is not an interrupted export's."""
    mark = folder / KEY
    if folder.is_symlink() or (folder.exists() and not mark.is_file()):
        raise InputError(
            f"expected {shown_path(folder)} for an export that can be resumed, got something else there; move it elsewhere"
        )
    if folder.exists() and mark.read_bytes() != key.encode():
        shutil.rmtree(folder)
    if not folder.exists():
        folder.mkdir()
        mark.write_bytes(key.encode())
