"""Which tests run which lines of the product, and how long each takes: found by tracing, kept until something changes."""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from .judge import ROOT, SOURCES, fork, run_tests

# Folders and files that look at the product from another process, or at checkpoints, which are none of the runtime's.
LEFT_OUT = {
    "arm64", "system", "checkpoints", "quantize", "test_terminal.py", "test_evaluate.py", "test_positions.py",
}  # fmt: skip
SLOW = 25.0
LONGEST = 900.0


class Recorder:
    """A pytest plugin that notes lines and seconds of each test that passes."""

    def __init__(self, path: Path) -> None:
        self._path, self._found = path, {}  # type: ignore[var-annotated]
        self._lines: set[tuple[str, int]] = set()
        self._places = tuple(str(place) for place in SOURCES.values())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._lines = set()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        begin = time.perf_counter()
        result = yield
        seconds = time.perf_counter() - begin
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        names: dict[str, list[int]] = {}
        for file, line in sorted(self._lines):
            names.setdefault(str(Path(file).relative_to(ROOT)), []).append(line)
        self._found[item.nodeid] = {"seconds": seconds, "lines": names}
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped:
            self._found.setdefault("not passed", []).append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        for name in self._found.pop("not passed", []):
            self._found.pop(name, None)
        self._path.write_text(json.dumps(self._found))

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(self._places):
            return None
        file, lines = frame.f_code.co_filename, self._lines

        def local(inner: FrameType, _event: str, _argument: object) -> Any:
            lines.add((file, inner.f_lineno))
            return local

        lines.add((file, frame.f_lineno))
        return local


def line_map(folder: Path, only: set[str] | None = None) -> dict[str, Any]:
    """Test -> seconds and lines by file; each file of tests is run again only if it or the product has changed."""
    product = hashlib.sha256()
    for place in SOURCES.values():
        for path in sorted(place.rglob("*.py")):
            product.update(path.read_bytes())
    found: dict[str, Any] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if LEFT_OUT & {*path.relative_to(ROOT).parts} or (only and path.name not in only):
            continue
        digest = product.copy()
        digest.update(path.read_bytes())
        kept = folder / f"{path.parent.name}-{path.stem}-{digest.hexdigest()[:12]}.json"
        if not kept.exists():
            _record(path, kept, folder)
        if kept.exists():
            found |= {name: test for name, test in json.loads(kept.read_text()).items() if test["seconds"] <= SLOW}
    return found


def _record(path: Path, kept: Path, folder: Path) -> None:
    """Run one file of tests under the recorder."""
    begin, place, exports = time.monotonic(), folder.parent / "place", folder.parent / "exports"
    status = fork(
        lambda: run_tests([str(path.relative_to(ROOT))], {}, place, [Recorder(kept)], exports),
        LONGEST,
        folder.parent / f"{path.stem}.log",
    )
    print(f"{path.name}: {status}, {time.monotonic() - begin:.0f} s", flush=True)
