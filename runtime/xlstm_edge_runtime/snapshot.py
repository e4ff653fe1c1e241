"""Write and read the recurrent state as a file: .npz without pickle, written whole or not at all.

A snapshot belongs to a checkpoint, not to a bundle: the state means the same in every flavour and weight precision of
one checkpoint, so it moves between devices and bundles made of it. Knows nothing of sessions.
"""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .errors import StateError
from .state import State, StateTable

VERSION = 1


def write_snapshot(path: str | Path, state: State, *, source: str, tokens: int) -> None:
    """Save `state` with the hash of the checkpoint it belongs to and the number of tokens it has seen."""
    path = Path(path)
    if path.is_dir():
        raise StateError(f"expected a file name for the snapshot, came the folder {path}; choose another path")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    header = {"#version": np.int64(VERSION), "#tokens": np.int64(tokens), "#source": np.array(source)}
    try:
        arrays: dict[str, Any] = {**header, **state}
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StateError(f"expected to write a snapshot to {path}, came {reason}; choose another path") from error
    finally:
        partial.unlink(missing_ok=True)


def read_snapshot(path: str | Path, table: StateTable, *, source: str) -> tuple[State, int]:
    """(state, tokens seen); StateError if the file is damaged or of another checkpoint."""
    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise StateError(f"expected a snapshot at {path}, came nothing; check the path") from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise StateError(f"expected {path} to be a snapshot, came a damaged or foreign file; save it again") from error
    try:
        version, tokens = int(arrays.pop("#version")), int(arrays.pop("#tokens"))
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"expected a snapshot at {path}, came a file without its header; save it again") from error
    if version != VERSION or tokens < 0:
        raise StateError(f"expected a snapshot of version {VERSION} at {path}, came another file; save it again")
    if str(arrays.pop("#source", "")) != source:
        raise StateError(
            f"expected a snapshot of this model's checkpoint, came {path} of another; load the matching bundle"
        )
    table.check(arrays)
    if any(len(array) != 1 or not np.isfinite(array).all() for array in arrays.values()):
        raise StateError(f"expected one finite state at {path}, came a batch, NaN or infinity; save it again")
    return arrays, tokens
