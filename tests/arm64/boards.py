"""Emulated ARM64 boards: a Python with the runtime's dependencies, as aarch64 wheels, under user-mode emulation.

    python tests/arm64/boards.py prepare FOLDER            once, about a minute and 400 MB; Debian or Ubuntu on x86-64, as root
    python tests/arm64/boards.py run FOLDER BOARD SCRIPT [ARGUMENT...]

Boards: pi4 (Cortex-A72: no dot product), pi5 (Cortex-A76: dot product), max (everything: i8mm, SVE). The kernels that run are
the real ones, so results are a board's; times are not. onnxruntime looks for its kernels in /proc/cpuinfo and /sys, which
would be this machine's: each board gets its own. Exit code 3: the packages cannot be had here.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ONNXRUNTIME, NUMPY = "1.32.0", "2.3.5"
PYTHON = "python3.11"
DEBS = (
    f"libc6 {PYTHON} {PYTHON}-minimal lib{PYTHON}-stdlib lib{PYTHON}-minimal libstdc++6 libgcc-s1 zlib1g libexpat1 libffi8 "
    "libssl3 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1"
).split()
COMMON = "fp asimd evtstrm crc32 cpuid"
NEWER = "aes pmull sha1 sha2 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
# emulated cpu; then as /proc/cpuinfo and the identification register give them: part, variant, revision, features
BOARDS = {
    "pi4": ("cortex-a72", 0xD08, 0, 3, COMMON),
    "pi5": ("cortex-a76", 0xD0B, 4, 1, f"{COMMON} {NEWER}"),
    "max": ("max", 0xD4F, 0, 1, f"{COMMON} {NEWER} sve i8mm bf16"),
}
CORES = (0, 1)
CACHES = (
    (1, "Data", "64K", False),
    (1, "Instruction", "64K", False),
    (2, "Unified", "512K", False),
    (3, "Unified", "2048K", True),
)
NOT_HERE = 3


class NotHereError(Exception):
    """The packages cannot be had on this machine."""


def prepare(folder: Path) -> None:
    """Fetch what is missing; whole steps only, so that an interrupted run goes on where it was."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    _emulator()
    step(folder / "root", partial(unpack_debs, folder, DEBS, "arm64"))
    step(folder / "site", partial(_unpack_wheels, folder))
    for board in BOARDS:
        step(folder / board, partial(_describe, board))


def command(folder: Path, board: str, words: list[str]) -> tuple[list[str], dict[str, str]]:
    """What runs a Python script on a board, and its environment."""
    folder = folder.resolve()
    paths = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "QEMU_LD_PREFIX": str(folder / board), "PYTHONPATH": paths, "PYTHONNOUSERSITE": "1"}
    return [_emulator(), "-cpu", BOARDS[board][0], str(folder / "root/usr/bin" / PYTHON), *words], environment


def _emulator() -> str:
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if (found := shutil.which(name)) is not None:
            return found
    _run(["apt-get", "update", "-qq"])
    _run(["apt-get", "install", "-y", "-qq", "qemu-user-static"])
    if (found := shutil.which("qemu-aarch64-static")) is None:
        raise NotHereError("no qemu-aarch64-static")
    return found


def _run(words: list[str], folder: Path | None = None) -> None:
    try:
        subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        raise NotHereError(f"{words[0]}: {str(reason).strip()[-300:]}") from error


def step(target: Path, make: Callable[[Path], None]) -> None:
    """Make a folder under another name and rename it when it is whole."""
    if target.exists():
        return
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    make(part)
    part.rename(target)


def unpack_debs(folder: Path, names: Sequence[str], architecture: str, part: Path) -> None:
    """A root of Debian's packages, by an apt with lists of its own that installs nothing here; NotHereError without them."""
    apt, debs = folder / "apt", folder / "debs"
    for name in ("lists/partial", "cache/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    debs.mkdir(exist_ok=True)
    options = {
        "APT::Architecture": architecture, "APT::Architectures": architecture, "Dir::State::Lists": apt / "lists",
        "Dir::State::status": apt / "status", "Dir::Cache": apt / "cache", "APT::Sandbox::User": "root",
    }  # fmt: skip
    words = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    _run([*words, "update"])
    _run([*words, "download", *names], debs)
    for deb in debs.glob("*.deb"):
        _run(["dpkg", "-x", str(deb), str(part)])


def _unpack_wheels(folder: Path, part: Path) -> None:
    """numpy, onnxruntime and tokenizers for aarch64."""
    wheels = folder / "wheels"
    platforms = [word for tag in ("2_28", "2_27", "2_17", "2014") for word in ("--platform", _tag(tag))]
    names = [f"numpy=={NUMPY}", f"onnxruntime=={ONNXRUNTIME}", "tokenizers"]
    only = ["--python-version", "3.11", "--only-binary", ":all:", "-d", str(wheels)]
    _run([sys.executable, "-m", "pip", "download", "-q", *only, *platforms, *names])
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(part)


def _tag(version: str) -> str:
    return f"manylinux{version}_aarch64" if version == "2014" else f"manylinux_{version}_aarch64"


def _describe(board: str, part: Path) -> None:
    """A root with the board's own /proc/cpuinfo and /sys beside links to the common programs."""
    _, number, variant, revision, features = BOARDS[board]
    text = "".join(
        f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: {variant:#x}\nCPU part\t: {number:#x}\nCPU revision\t: {revision}\n\n"
        for core in CORES
    )
    identification = 0x41 << 24 | variant << 20 | 0xF << 16 | number << 4 | revision
    files = {"proc/cpuinfo": text}
    files |= {f"sys/devices/system/cpu/{name}": "0-1\n" for name in ("possible", "present", "online")}
    for core in CORES:
        base = f"sys/devices/system/cpu/cpu{core}"
        files[f"{base}/regs/identification/midr_el1"] = f"{identification:#018x}\n"
        files[f"{base}/cpufreq/cpuinfo_max_freq"] = "2400000\n"
        topology = {"core_id": core, "physical_package_id": 0, "cluster_id": 0, "package_cpus_list": "0-1"}
        topology |= {
            "core_siblings_list": "0-1",
            "core_cpus_list": core,
            "thread_siblings_list": core,
            "cluster_cpus_list": "0-1",
        }
        files |= {f"{base}/topology/{name}": f"{value}\n" for name, value in topology.items()}
        for index, (level, kind, size, shared) in enumerate(CACHES):
            cache = {"level": level, "type": kind, "size": size, "shared_cpu_list": "0-1" if shared else core}
            cache |= {"coherency_line_size": 64, "number_of_sets": 256, "ways_of_associativity": 4}
            files |= {f"{base}/cache/index{index}/{name}": f"{value}\n" for name, value in cache.items()}
    for name, content in files.items():
        path = part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for top in (part.parent / "root").iterdir():
        (part / top.name).symlink_to(Path("..") / "root" / top.name)


def main(words: list[str]) -> int:
    """The command line."""
    if len(words) == 2 and words[0] == "prepare":
        try:
            prepare(Path(words[1]))
        except NotHereError as error:
            print(f"expected the packages of an emulated ARM64 board, got none: {error}", file=sys.stderr)
            return NOT_HERE
        return 0
    if len(words) >= 4 and words[0] == "run" and words[2] in BOARDS:
        line, environment = command(Path(words[1]), words[2], words[3:])
        return subprocess.run(line, env=environment, check=False).returncode
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
