"""Private by default: loading a bundle opens no socket and writes no file, in particular none of onnxruntime's telemetry."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from ..command import PATHS

# A seccomp filter ends the process at its first socket; the kernel's numbers of that call are fixed.
CODE = """
import ctypes, platform, sys, time
class Rule(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("rules", ctypes.POINTER(Rule))]
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
rules = (Rule * 4)(Rule(0x20, 0, 0, 0), Rule(0x15, 0, 1, number), Rule(6, 0, 0, 0x80000000), Rule(6, 0, 0, 0x7FFF0000))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, rules))) == 0
import importlib
load = importlib.import_module(sys.argv[2]).load
load(sys.argv[1]).session().prefill([1, 2, 3])
time.sleep(float(sys.argv[3]))
print("done")
"""
WAIT = 20.0  # seconds after which telemetry, where it is on, was seen to look up its host


def start(home: Path, bundle: Path, module: str, **variables: str) -> subprocess.Popen[str]:
    """In an environment of its own: onnxruntime keeps silent by itself where CI or a like variable is set."""
    home.mkdir()
    environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONPATH": PATHS, **variables}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, bundle, module, str(WAIT)], stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_loading_opens_no_socket_and_writes_no_file(shipped_bundle: Path, tmp_path: Path) -> None:
    """Beside it, the same with telemetry allowed, which shows that this would be seen."""
    before = sorted(path.stat().st_mtime_ns for path in shipped_bundle.iterdir())
    modules = ("xlstm_edge_runtime", "xlstm_edge", "xlstm_edge.bench")
    private = {name: start(tmp_path / name, shipped_bundle, name) for name in modules}
    allowed = start(tmp_path / "allowed", shipped_bundle, "xlstm_edge_runtime", ORT_DISABLE_TELEMETRY="0")
    for name, process in private.items():
        assert process.communicate(timeout=120)[0].strip() == "done", name
        assert [path for path in (tmp_path / name).rglob("*") if path.is_file()] == []
    assert sorted(path.stat().st_mtime_ns for path in shipped_bundle.iterdir()) == before
    allowed.communicate(timeout=120)
    wrote = [path for path in (tmp_path / "allowed").rglob("*") if path.is_file()]
    seen = allowed.returncode == -signal.SIGSYS and bool(wrote)
    assert seen == can_tell(), "onnxruntime's telemetry would not be seen: the test shows nothing, mend it"


def can_tell() -> bool:
    """Whether this build of onnxruntime has telemetry at all: then it knows the variable that stops it."""
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*.so"))
    return b"ORT_DISABLE_TELEMETRY" in library.read_bytes()
