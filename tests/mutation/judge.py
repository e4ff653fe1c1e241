"""Run tests on changed code, in a fork: the source tree stays as it is, and the heavy packages are imported once.

This process must never import the product nor run torch's or onnxruntime's pools of threads: a fork of them hangs.
"""

import ctypes
import errno
import importlib
import importlib.abc
import importlib.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = {
    "xlstm_edge_runtime": ROOT / "runtime" / "xlstm_edge_runtime",
    "xlstm_edge_exporters": ROOT / "exporters" / "xlstm_edge_exporters",
    "xlstm_edge": ROOT / "xlstm_edge",
}
HEAVY = (
    "numpy torch torch.onnx torch.export onnx onnx_ir onnx_ir.passes.common onnxscript onnxruntime transformers tokenizers "
    "safetensors.torch yaml typer rich.table rich.progress pytest hypothesis.strategies hypothesis.extra.numpy xlstm "
    "tests.oracles.official tests.oracles.reference"
).split()
MEMORY = 6 << 30
NEW_MOUNTS, READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 0x20000, 1, 32, 4096, 16384, 1 << 18  # of Linux's mount(2)
PASSED, FELL = 0, 1  # pytest's exit codes
SECONDS, POLL = 20.0, 0.02


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules whose code is given, before anybody else does."""

    def __init__(self, codes: Mapping[str, CodeType]) -> None:
        self._codes = codes

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A spec of the file itself, loaded by this."""
        if name not in self._codes:
            return None
        file = file_of(name)
        places = [str(file.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, file, loader=self, submodule_search_locations=places)

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code."""
        exec(self._codes[module.__name__], module.__dict__)


def file_of(module: str) -> Path:
    """`xlstm_edge_runtime.sampling` -> its file."""
    package, _, rest = module.partition(".")
    path = SOURCES[package].joinpath(*rest.split(".")) if rest else SOURCES[package]
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def prepare() -> None:
    """Import what is slow and does not change."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ["OMP_NUM_THREADS"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in HEAVY:
            importlib.import_module(name)
        sys.modules["torch"].set_num_threads(1)
    assert not [name for name in sys.modules if name.partition(".")[0] in SOURCES]


def remember_checkpoints(folder: Path) -> None:
    """Let the tests' random checkpoints be made once for all runs: no product code has a part in them."""
    official: Any = sys.modules["tests.oracles.official"]
    make = official.make_checkpoint

    def remembered(case: Any, directory: Path, dtype: Any = "float32", seed: int = 0) -> Path:
        kept = folder / f"{case.name}-{hash_of(case)}-{dtype}-{seed}"
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=folder) as place:
                kept_now = make(case, Path(place) / "made", dtype, seed)
                shutil.move(kept_now, kept)
        return Path(shutil.copytree(kept, directory, dirs_exist_ok=True))

    official.make_checkpoint = remembered


def hash_of(value: object) -> str:
    """A few hex digits."""
    import hashlib

    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def remember_exports(folder: Path) -> None:
    """In a child whose change is in no writer: let an export that was made before be copied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        facade = importlib.import_module("xlstm_edge.facade")
        product = importlib.import_module("xlstm_edge")
    export = facade.export

    def remembered(checkpoint: Any, bundle: Any, **options: Any) -> Any:
        if options.get("progress") or Path(bundle).exists() or not Path(checkpoint).is_dir():
            return export(checkpoint, bundle, **options)
        files = sorted((p.name, p.read_bytes()) for p in Path(checkpoint).iterdir() if p.is_file())
        kept = folder / hash_of((files, sorted(options.items())))
        if kept.exists() and Path(bundle).parent.is_dir():
            shutil.copytree(kept, bundle)
            return facade.Bundle(
                Path(bundle),
                facade.read_manifest(bundle),
                tuple(
                    facade.open_checkpoint(
                        checkpoint, prefix=options.get("prefix"), weights=options.get("weights")
                    ).notes.lines()
                ),
            )
        made = export(checkpoint, bundle, **options)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            shutil.copytree(bundle, Path(place) / "made")
            if not kept.exists():
                shutil.move(Path(place) / "made", kept)
        return made

    facade.export = product.export = remembered  # type: ignore[attr-defined]


def confine(writable: Path) -> None:
    """Let this process change nothing but `writable`: what is wrong on purpose may remove or replace anything.

    A mutant of a module that moves and removes files does so, and as root it would reach the devices. Linux and root: the
    file systems become read-only in a mount namespace of this process. Elsewhere OSError.
    """
    library, here = ctypes.CDLL(None, use_errno=True), os.fsencode(writable)

    def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int) -> None:
        if library.mount(source, target, kind, ctypes.c_ulong(flags), None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fsdecode(target))

    if sys.platform != "linux" or library.unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "no mount namespace")
    mount(None, b"/", None, PRIVATE | RECURSIVE)
    mount(here, here, None, BIND)
    mount(b"tmpfs", b"/tmp", b"tmpfs", 0)
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in points:
        if point not in ("/tmp", str(writable)) and not point.startswith(("/proc", "/sys", "/dev/")):
            mount(None, os.fsencode(point), None, REMOUNT | BIND | READ_ONLY)
    for place in (str(ROOT), "/dev"):
        if os.access(place, os.W_OK):
            raise OSError(errno.EBUSY, "still to be written", place)


def fork(run: Callable[[], int], seconds: float, log: Path) -> int | None:
    """Exit status of `run` in a fork (negative: a signal); None if it took too long and was killed."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.dont_write_bytecode = True
            confine(log.parent.resolve())
            code = run()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def run_tests(
    tests: Sequence[str],
    codes: Mapping[str, CodeType],
    place: Path,
    plugins: Sequence[object] = (),
    exports: Path | None = None,
) -> int:
    """pytest's exit status on the changed code; to be called in a fork."""
    os.chdir(ROOT)
    for path in (ROOT, ROOT / "exporters", ROOT / "runtime"):
        sys.path.insert(0, str(path))
    sys.meta_path.insert(0, Changed(codes))
    if exports is not None:
        remember_exports(exports)
    import hypothesis
    import pytest

    hypothesis.settings.register_profile("mutation", database=None, derandomize=True)
    hypothesis.settings.load_profile("mutation")
    place.mkdir(parents=True, exist_ok=True)
    words = [*(["-x"] if codes else []), "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(
        pytest.main(
            [*words, "-q", "-p", "no:cacheprovider", f"--basetemp={place / 'tmp'}", *tests], plugins=list(plugins)
        )
    )
