"""Die by SIGKILL at every point where a command writes, and look at what stands afterwards.

    python -m tests.kill export|tune|save FOLDER

The command runs again and again in a fork of this process, which dies at its first, second, third... write point: a file
opened for writing, a write (in the middle of its bytes), a flush to the disk, a rename, a folder made, a removal. After each
death the place must hold nothing, the old or the new, whole; and the next run must clean up. Prints a line of JSON.
"""

import builtins
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch

from xlstm_edge import facade
from xlstm_edge_exporters import bundle as bundle_module
from xlstm_edge_runtime import files, rates, tune, tuning
from xlstm_edge_runtime.layout import MANIFEST
from xlstm_edge_runtime.manifest import check_hash, read_manifest
from xlstm_edge_runtime.snapshot import read_snapshot, write_snapshot

from .oracles.cases import CASES
from .oracles.official import make_checkpoint

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
CASE = next(case for case in CASES if case.name == "lm-five-heads")
MOST = 2000
torch.set_num_threads(1)  # a fork of a process with a pool of threads would wait for them for ever


class Countdown:
    """Counts write points below a folder and dies at the last one."""

    def __init__(self, points: int, folder: Path) -> None:
        self.left, self.folder = points, str(folder)

    def reached(self, *paths: object) -> bool:
        """Whether this is the one to die at."""
        if not any(str(path).startswith(self.folder) for path in paths):
            return False
        self.left -= 1
        return self.left == 0

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """Audit events: everything Python itself does to files."""
        if (event == "open" and isinstance(args[2], int) and args[2] & WRITES and self.reached(args[0])) or (
            event in EVENTS and self.reached(*args)
        ):
            die()


def die() -> None:
    """As a full battery or the system's memory killer would have it."""
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """A file whose writes count, and of which the last writes only half."""

    def __init__(self, file: Any, countdown: Countdown) -> None:
        self._file, self._countdown = file, countdown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Dying":
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def write(self, data: Any) -> Any:
        """Write, or half of it and die."""
        if self._countdown.reached(self._countdown.folder):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            die()
        return self._file.write(data)


def arm(countdown: Countdown) -> None:
    """Let every write point of this process count."""
    sys.addaudithook(countdown.hook)
    real_open, real_fsync, real_rename, real_session = io.open, os.fsync, files._rename_with, ort.InferenceSession

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        handle = real_open(file, mode, *args, **options)
        return Dying(handle, countdown) if set(mode) & set("wxa+") else handle

    def fsync(descriptor: int) -> None:
        if countdown.reached(countdown.folder):
            die()
        real_fsync(descriptor)

    def rename(rule: str, source: Path, target: Path) -> None:
        if countdown.reached(source):
            die()
        real_rename(rule, source, target)

    def session(graph: Any, options: Any, **rest: Any) -> Any:
        if options.optimized_model_filepath and countdown.reached(countdown.folder):
            _die_while_writing(Path(options.optimized_model_filepath).parent)
        return real_session(graph, options, **rest)

    builtins.open = io.open = opened
    os.fsync, files._rename_with, ort.InferenceSession = fsync, rename, session


def _die_while_writing(folder: Path) -> None:
    """onnxruntime writes out of Python's sight: another process waits for its first bytes."""
    victim = os.getpid()
    if os.fork() == 0:
        while not any(path.stat().st_size for path in folder.iterdir()):
            time.sleep(0.0002)
        os.kill(victim, signal.SIGKILL)
        os._exit(0)


@dataclass(frozen=True)
class Scenario:
    """What runs, and which of nothing, old and new stands at its place."""

    run: Callable[[], object]
    stands: Callable[[], str]
    reset: Callable[[], object]


def digest(folder: Path) -> str:
    """Of every file's content; raises unless the bundle is whole."""
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        check_hash(folder, name, entry)
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def export_scenario(root: Path, *, old: bool) -> Scenario:
    """An export, into nothing or over an old bundle."""
    place, checkpoint = root / "place" / "bundle", make_checkpoint(CASE, root)
    traced = bundle_module.trace
    made: dict[Any, Any] = {}
    # The trace is made once, here; each fork changes a copy of its own.
    bundle_module.trace = lambda spec, options: made.get(options.chunk) or traced(spec, options)
    names = {}
    for chunk, name in ((8, "old"), (16, "new")):
        facade.export(checkpoint, root / name, chunk=chunk)
        names[digest(root / name)] = name
    for chunk in (8, 16):
        opened = facade.open_checkpoint(checkpoint)
        made[chunk] = traced(opened.spec, bundle_module.GraphOptions(chunk=chunk))

    def reset() -> None:
        shutil.rmtree(root / "place", ignore_errors=True)
        (root / "place").mkdir()
        if old:
            shutil.copytree(root / "old", place)

    return Scenario(
        lambda: facade.export(checkpoint, place, chunk=16, force=old),
        lambda: names[digest(place)] if place.exists() else "nothing",
        reset,
    )


def tune_scenario(root: Path, *, old: bool) -> Scenario:
    """Tuning, for the first time or again."""
    rates.ROUNDS, rates.CHUNKS, rates.SPINS = 1, (16,), (20,)
    place = root / "place" / "bundle"
    facade.export(make_checkpoint(CASE, root), root / "bundle", quantize="int4", method="rtn")
    manifest = read_manifest(root / "bundle")

    def untuned() -> None:
        shutil.rmtree(root / "place", ignore_errors=True)
        shutil.copytree(root / "bundle", place)

    def reset() -> None:
        untuned()
        if old:
            shutil.copytree(root / "tuned", place / "tuned")

    def stands() -> str:
        digest(place)  # whatever happens, the bundle itself is whole
        record = place / "tuned" / "tuned.json"
        if not (place / "tuned").exists():
            return "nothing"
        assert tuning.read_tuning(place, manifest) is not None, "half a tuning"
        tuning.check_tuning(place, manifest)
        return "old" if old and record.read_bytes() == (root / "tuned" / "tuned.json").read_bytes() else "new"

    if old:  # in a fork, because a process that has run onnxruntime must not fork
        untuned()
        fork(lambda: tune.tune_bundle(place))
        shutil.move(place / "tuned", root / "tuned")
    return Scenario(lambda: tune.tune_bundle(place), stands, reset)


def save_scenario(root: Path, *, old: bool) -> Scenario:
    """A snapshot, new or over an old one."""
    place = root / "place" / "state.safetensors"
    facade.export(make_checkpoint(CASE, root), root / "bundle")
    table = read_manifest(root / "bundle").state
    states = {1: table.initial(), 2: table.initial()}
    states[2] = {name: array + 1 for name, array in states[2].items()}

    def reset() -> None:
        shutil.rmtree(root / "place", ignore_errors=True)
        (root / "place").mkdir()
        if old:
            write_snapshot(place, states[1], table, source="s", tokens=1)

    def stands() -> str:
        if not place.exists():
            return "nothing"
        state, tokens = read_snapshot(place, table, source="s")
        assert all((state[name] == states[tokens][name]).all() for name in state)
        return {1: "old", 2: "new"}[tokens]

    return Scenario(lambda: write_snapshot(place, states[2], table, source="s", tokens=2), stands, reset)


def fork(run: Callable[[], object]) -> int:
    """Run in a fork; its exit status as `os.waitpid` gives it."""
    child = os.fork()
    if child == 0:
        code = 1
        files._LOOKED_THROUGH.clear()  # a process of its own would look
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def kill_everywhere(scenario: Scenario, place: Path, *, old: bool) -> dict[str, Any]:
    """Points, and how often each of nothing, old and new stood after the death."""
    stood: dict[str, int] = {}
    for point in range(1, MOST):
        scenario.reset()

        def run(point: int = point) -> None:
            arm(Countdown(point, place))
            scenario.run()

        status = fork(run)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, f"failed at point {point}"
            assert scenario.stands() == "new"
            return {"points": point - 1, **stood}
        found = scenario.stands()
        assert found in (("old", "new") if old else ("nothing", "new")), f"{found} at point {point}"
        stood[found] = stood.get(found, 0) + 1
        assert fork(partial(again, scenario, found)) == 0, f"the next run failed after point {point}"
        assert not [path for path in place.rglob("*") if files.PARTIAL.fullmatch(path.name)], f"left at point {point}"
    raise AssertionError("no end of write points")


def again(scenario: Scenario, found: str) -> None:
    """The next run: refuses to replace what is complete unless told to, and cleans up either way."""
    try:
        scenario.run()
    except Exception:
        if found != "new":
            raise
        files.remove_leftovers(Path(sys.argv[2]) / "place")
    assert scenario.stands() == "new"


def main(name: str, folder: str) -> None:
    """Both ways of one scenario."""
    make = {"export": export_scenario, "tune": tune_scenario, "save": save_scenario}[name]
    results = {}
    for old in (False, True):
        root = Path(folder) / str(old)
        root.mkdir(parents=True)
        sys.argv[2] = str(root)
        results["over an old one" if old else "new"] = kill_everywhere(make(root, old=old), root / "place", old=old)
    print(json.dumps({name: results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
