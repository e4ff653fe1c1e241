"""Files and folders that appear whole or not at all, whoever else writes there and whenever the process dies.

Everything is written under a unique name beside its place, flushed to the disk, and renamed. A lock on what is being
written tells the living from the dead: whoever writes next to a leftover that nobody holds any more removes it. Callers
turn the OSError of a full or forbidden disk into a sentence of their own.

Where the system can (Linux, macOS), a folder takes its place by one call that refuses to replace anything (a new one) or
exchanges the two (an old one): there is no moment without a folder. Elsewhere the old one is moved aside and back if the
second rename fails. Knows nothing of what is in the files.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ModuleNotFoundError:  # Windows: names are unique all the same, leftovers stay
    fcntl = None  # type: ignore[assignment]  # asked for before each use

SUFFIX = "xlstm-edge-partial"
PARTIAL = re.compile(rf"\..*\.[0-9a-f]{{16}}\.{SUFFIX}", re.DOTALL)
LONGEST_STEM = 40  # characters of the target's name in a temporary one: file systems allow 255 bytes
NO_REPLACE, EXCHANGE = "no replace", "exchange"
NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
Identity = tuple[int, int]
# By this process, before its first file there: a thousand snapshots in one folder must not cost a million looks.
_LOOKED_THROUGH: set[Path] = set()


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of `path` at the end; the last of several writers wins.

    OSError if it cannot be written or something other than a regular file is there; then `path` is as it was.
    """
    target = Path(os.path.realpath(path))  # a link stays one, and what it points to is written
    _refuse_irregular(target)
    if target.parent not in _LOOKED_THROUGH:
        _LOOKED_THROUGH.add(target.parent)
        remove_leftovers(target.parent)
    partial, file = _new_file(target)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _refuse_irregular(target)
            partial.replace(target)
        _sync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(
    path: str | Path, *, replace: bool = False, check: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `path` at the end.

    FileExistsError if `path` exists and `replace` is not given, or if it appears or changes meanwhile: nothing is ever
    replaced that was not there at the start. `check` raises if the folder to replace holds what must not be removed; it is
    asked at the start and again when the folder is out of reach of others.
    """
    target = Path(path)
    before = _identity(target)
    if before is not None and not replace:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    if before is not None and check is not None:
        check(target)
    remove_leftovers(target.parent)
    partial, lock = _new_folder(target)
    try:
        yield partial
        _sync_tree(partial)
        if before is None:
            _move_new(partial, target)
        else:
            _move_over(partial, target, before, check)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _unlock(lock)


@contextlib.contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path` for files on the way, which goes at the end; a dead process's is removed by the next."""
    target = Path(path)
    remove_leftovers(target.parent)
    folder, lock = _new_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes left half-written in a folder; what a living one writes is locked and stays."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if PARTIAL.fullmatch(entry.name)]:
            _remove_if_dead(folder / name)


def _remove_if_dead(path: Path) -> None:
    with contextlib.suppress(OSError):
        lock = _lock(path)
        if lock is None:
            return
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        finally:
            _unlock(lock)


def _new_file(target: Path) -> tuple[Path, BinaryIO]:
    """A fresh locked file beside `target`."""
    while True:
        partial = _partial(target)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if _hold(descriptor, partial):
            return partial, os.fdopen(descriptor, "w+b")
        os.close(descriptor)  # a cleaner was quicker than the lock


def _new_folder(target: Path) -> tuple[Path, int | None]:
    """A fresh locked folder beside `target`."""
    while True:
        partial = _partial(target)
        partial.mkdir()
        if fcntl is None:
            return partial, None
        if (lock := _lock(partial)) is not None:
            return partial, lock


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name[:LONGEST_STEM]}.{secrets.token_hex(8)}.{SUFFIX}")


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder; None if another process holds it, or it is gone."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if _hold(descriptor, path):
        return descriptor
    os.close(descriptor)
    return None


def _hold(descriptor: int, path: Path) -> bool:
    """Whether this process holds the lock and the path still leads to what is locked."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found, held = os.lstat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    except OSError as error:  # a file system without locks: nobody can mistake what is written for a leftover there
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _identity(path: Path) -> Identity | None:
    """What is at a path, followed through links; None for nothing."""
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():  # a link to nothing is something, too
            found = path.lstat()
            return found.st_dev, found.st_ino
        return None
    return found.st_dev, found.st_ino


def _refuse_irregular(path: Path) -> None:
    """A device or pipe would be replaced, not written into; a folder would refuse only at the end."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EEXIST, "something that is no regular file", str(path))


def _move_new(partial: Path, target: Path) -> None:
    try:
        _rename_with(NO_REPLACE, partial, target)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        if target.exists() or target.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        partial.rename(target)


def _move_over(partial: Path, target: Path, before: Identity, check: Callable[[Path], None] | None) -> None:
    """Put `partial` in the place of `target` and the old folder in that of `partial`; undone if it is not what it was."""
    guard = _lock(target)  # the old folder will lie under a leftover's name: no cleaner may touch it
    try:
        _swap(partial, target)
        try:
            if _identity(partial) != before:
                raise FileExistsError(errno.EEXIST, "changed while it was to be replaced", str(target))
            if check is not None:
                check(partial)
        except BaseException:
            _swap(partial, target)
            raise
        shutil.rmtree(partial)
    finally:
        _unlock(guard)


def _swap(first: Path, second: Path) -> None:
    """Exchange two folders."""
    try:
        _rename_with(EXCHANGE, first, second)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        aside = _partial(second)
        second.rename(aside)
        try:
            first.rename(second)
        except OSError:
            aside.rename(second)
            raise
        aside.rename(first)


def _rename_with(rule: str, source: Path, target: Path) -> None:
    """renameat2 (Linux) or renamex_np (macOS), which Python does not offer; OSError ENOSYS where there is neither."""
    library: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    paths = os.fsencode(source), os.fsencode(target)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        here = -100  # AT_FDCWD
        failed = library.renameat2(here, paths[0], here, paths[1], ctypes.c_uint({NO_REPLACE: 1, EXCHANGE: 2}[rule]))
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*paths, ctypes.c_uint({NO_REPLACE: 4, EXCHANGE: 2}[rule]))
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def _sync_tree(folder: Path) -> None:
    """Everything in a folder, and the folder, on the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """The names in a folder, on the disk; Windows cannot open folders, some file systems cannot flush them."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
