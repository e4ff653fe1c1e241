"""Folders that a run of the tests makes once, for all of its workers: to be read and not changed."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows: each worker makes its own
    fcntl = None  # type: ignore[assignment]  # asked for before each use

CAN_SHARE = fcntl is not None


class Shared:
    """Folders by name in a place that belongs to the run."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._found: dict[Path, dict[str, tuple[int, int]]] = {}

    def folder(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of that name: made by the first who asks for it, while others wait. Whoever changes it copies it."""
        folder = self._place / name
        if folder not in self._found:
            with self._alone(name):
                if not folder.exists():
                    self._make(folder, make)
            self._found[folder] = _listing(folder)
        return folder

    def changed(self) -> list[str]:
        """What is not as this process found it."""
        return [str(folder) for folder, before in self._found.items() if _listing(folder) != before]

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        self._place.mkdir(parents=True, exist_ok=True)
        with (self._place / f"{name}.lock").open("w") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, or the process dies
            yield

    def _make(self, folder: Path, make: Callable[[Path], object]) -> None:
        """Under its own name elsewhere, and here when it is whole."""
        unfinished = self._place / "unfinished" / folder.name
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(exist_ok=True)
        make(unfinished)
        unfinished.rename(folder)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Files -> size and time of the last change."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): ((s := path.stat()).st_size, s.st_mtime_ns) for path in files}
