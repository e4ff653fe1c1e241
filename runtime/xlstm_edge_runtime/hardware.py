"""What this machine is, as far as the system tells: its processor, what it has for integers, its memory."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
ARM64, X86_64 = ("aarch64", "arm64"), ("x86_64", "amd64")


def cpu_key() -> str:
    """Name of this processor and its instruction sets, as far as the system tells."""
    lines = _cpuinfo()
    if not lines:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part", "model\t", "cpu family")
    return " ".join(sorted({line.split(":", 1)[-1].strip() for line in lines if line.startswith(wanted)}))


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    lines = _cpuinfo()
    if not lines:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def multiplies_integers() -> bool:
    """Whether onnxruntime has fast products of integers for this processor: on ARM they need the dot-product instructions."""
    machine, lines = platform.machine().lower(), _cpuinfo()
    if machine in ARM64:
        return not lines or any("asimddp" in line.split() for line in lines if line.startswith("Features"))
    return machine in X86_64


def physical_memory() -> int:
    """Bytes of memory in this machine; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no sysconf, or not these names
        return 0


def _cpuinfo() -> list[str]:
    """The lines of Linux's /proc/cpuinfo; none elsewhere."""
    try:
        return CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
