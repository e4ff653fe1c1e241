"""Where a bundle goes: what may be replaced there, and how it appears whole or not at all.

Needs no torch, so that a bad path is refused before it is loaded.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from xlstm_edge_runtime.errors import InputError, shown, shown_path
from xlstm_edge_runtime.files import PARTIAL, atomic_folder
from xlstm_edge_runtime.manifest import MANIFEST, VECTORS
from xlstm_edge_runtime.tuning import FILES, RECORD
from xlstm_edge_runtime.tuning import FOLDER as TUNED

GRAPH, TOKENIZER = "model.onnx", "tokenizer.json"
# All that an export writes, and all that tuning adds: what --force may remove.
BUNDLE_FILES = {MANIFEST, GRAPH, f"{GRAPH}.data", VECTORS, TOKENIZER}
TUNED_FILES = {RECORD, *FILES}


def refuse_target(out: Path, force: bool) -> None:
    """Before any work: InputError for a path that the bundle could not take at the end."""
    try:
        os.lstat(out)
        there = True
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except (OSError, ValueError) as error:  # a name that no file system takes
        raise InputError(
            f"expected a path for the bundle, came {shown_path(out)}, which is none; choose another"
        ) from error
    if not there:
        if not out.parent.is_dir():
            raise InputError(f"expected the folder {shown_path(out.parent)} for the bundle, came none; make it first")
    elif not force:
        raise InputError(
            f"expected a new path for the bundle, came {shown_path(out)}, which exists; pass --force to replace a bundle"
        )
    else:
        check_replaceable(out)


def check_replaceable(folder: Path) -> None:
    """InputError unless the folder holds a bundle and nothing else, so that replacing it loses nothing of the user's."""
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"expected --force to replace a bundle, came {shown_path(folder)}, which is none; choose another path"
        )
    if foreign := sorted(path.name for path in folder.iterdir() if not _belongs(path)):
        raise InputError(
            f"expected only a bundle's files in {shown_path(folder)}, came {shown(foreign[0])}; move it elsewhere first"
        )


def _belongs(path: Path) -> bool:
    if path.name == TUNED:
        return path.is_dir() and all(file.name in TUNED_FILES for file in path.iterdir())
    return path.name in BUNDLE_FILES or PARTIAL.fullmatch(path.name) is not None


@contextlib.contextmanager
def placed(out: Path, force: bool) -> Iterator[Path]:
    """An empty folder to write the bundle into, which takes its place at the end; InputError if it cannot."""
    try:
        with atomic_folder(out, replace=force, check=check_replaceable) as folder:
            yield folder
    except FileExistsError as error:
        raise InputError(
            f"expected {shown_path(out)} as it was when the export began, came something new there; look at it first"
        ) from error
    except OSError as error:
        raise InputError(
            f"expected to write the bundle to {shown_path(out)}, came {error.strerror or error}; free space or move"
        ) from error
