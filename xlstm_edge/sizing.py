"""What an export will be, before any work or download: sizes, memory, time, and how fast a token can be read.

Everything comes from names and shapes, by the same code that plans an export.
"""

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from xlstm_edge_runtime.errors import InputError, shown

from .facts import Facts
from .roofline import ReadProbe

if TYPE_CHECKING:
    from xlstm_edge_exporters.checkpoints import Checkpoint

SCHEMES = ("float32", "int8", "int4")
RATE = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,3})?)(?:\s*GB(?:/s)?)?", re.IGNORECASE)
GB = 1e9
# What an export takes beside its input, rounded (a bound that a test holds) and calibrated.
FIXED_MEMORY, CALIBRATION_MEMORY, TENSORS_AT_ONCE = 0.8 * GB, 1.3 * GB, 3
RUNTIME_MEMORY = 0.4 * GB  # of a process beside the bundle
# Seconds of an export on two cores of a shared Intel Xeon (2026-11): to start with and for each weight that is rounded; of a
# calibration for each token, with what each weight adds to it, and for each weight and unit of width.
START_SECONDS, ROUNDING_SECONDS = 3.0, 75e-9
TOKEN_SECONDS, WEIGHT_SECONDS, GPTQ_SECONDS = 5e-4, 4e-11, 2.3e-11


@dataclass(frozen=True, slots=True)
class Device:
    """`bandwidth` in bytes a second is the memory's data rate times its width: a token cannot be faster than that."""

    bandwidth: float
    memory: float
    source: str
    integers: bool = True  # whether the chip has the dot products that int8 and int4 need to be fast


DEVICES = {
    "zero2": Device(3.6 * GB, 0.5 * GB, "Raspberry Pi Zero 2 W: LPDDR2-900, 32 bits", integers=False),
    "pi3": Device(3.6 * GB, 1 * GB, "Raspberry Pi 3: LPDDR2-900, 32 bits", integers=False),
    "pi4": Device(12.8 * GB, 4 * GB, "Raspberry Pi 4: LPDDR4-3200, 32 bits", integers=False),
    "pi5": Device(17.1 * GB, 8 * GB, "Raspberry Pi 5: LPDDR4X-4267, 32 bits"),
    "phone": Device(51.2 * GB, 8 * GB, "phones with LPDDR5-6400, 64 bits"),
    "laptop": Device(76.8 * GB, 16 * GB, "laptops with two channels of DDR5-4800"),
    "mac": Device(102.4 * GB, 16 * GB, "Apple M2 and M3: LPDDR5-6400, 128 bits"),
}


def parse_bandwidth(text: str) -> float:
    """Bytes a second of "25GB/s" or "25"; InputError otherwise."""
    match = RATE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise InputError(f"expected a bandwidth like 25GB/s, got {shown(text)}; correct it")
    return float(match[1]) * GB


def plan_export(checkpoint: "Checkpoint", *, bandwidth: str | None = None, device: str | None = None) -> Facts:
    """Parameters, bytes, memory and speed of what a checkpoint will become; at `bandwidth`, on `device`, or here."""
    from xlstm_edge_exporters.bundle import count_parameters  # noqa: PLC0415  # loads torch

    if bandwidth is not None and device is not None:
        raise InputError("expected a bandwidth or a device, got both; leave one out")
    if device is not None and device not in DEVICES:
        raise InputError(
            f"expected a device of {', '.join(DEVICES)}, got {shown(device)}; choose one, or pass --bandwidth"
        )
    chosen = None if device is None else DEVICES[device]
    rate = chosen.bandwidth if chosen else parse_bandwidth(bandwidth) if bandwidth else _here()
    spec, sizes = checkpoint.spec, {scheme: _sizes(checkpoint, scheme) for scheme in SCHEMES}
    state = spec.state_table().nbytes
    read = {scheme: _read(checkpoint, tensors) + 2 * state for scheme, tensors in sizes.items()}
    if chosen is not None and not chosen.integers:  # integers are made float there, by tune
        read = dict.fromkeys(SCHEMES, read["float32"])
    totals = {scheme: sum(tensors.values()) for scheme, tensors in sizes.items()}
    parameters = count_parameters(spec)
    rounded = START_SECONDS + ROUNDING_SECONDS * parameters
    more_seconds, calibrated_memory = _calibration(checkpoint, parameters)
    rounded_memory = _memory(checkpoint, FIXED_MEMORY)
    return {
        "family": spec.family,
        "parameters": parameters,
        "bytes": totals,
        "state_bytes": state,
        "export": {
            "seconds": rounded + more_seconds,
            "seconds_rounded": rounded,
            "memory": int(max(calibrated_memory, rounded_memory)),
            "memory_rounded": int(rounded_memory),
        },
        "bandwidth": rate,
        "bandwidth_source": chosen.source if chosen else "given" if bandwidth else "measured here",
        "tokens_per_second": {scheme: rate / count for scheme, count in read.items()},
        "fits": {
            name: [scheme for scheme in SCHEMES if totals[scheme] + state + RUNTIME_MEMORY <= known.memory]
            for name, known in DEVICES.items()
        },
        "advice": _advice(device),
    }


def _memory(checkpoint: "Checkpoint", fixed: float) -> float:
    """Bytes of an export that takes so much whatever the model, and a few of its tensors at once."""
    return fixed + TENSORS_AT_ONCE * 4 * max(prod(weight.shape) for weight in checkpoint.weights.values())


def _calibration(checkpoint: "Checkpoint", parameters: int) -> tuple[float, float]:
    """(seconds that writing a text and learning from it add, bytes of memory of such an export); none for stacks of vectors."""
    from xlstm_edge_exporters.calibration import calibration_tokens, text_memory  # noqa: PLC0415  # loads torch
    from xlstm_edge_exporters.recipe import Recipe  # noqa: PLC0415  # same

    if checkpoint.spec.vocab_size is None:
        return 0.0, 0.0
    tokens = calibration_tokens(checkpoint.spec, Recipe(quantize="int4"))
    seconds = tokens * (TOKEN_SECONDS + WEIGHT_SECONDS * parameters)
    seconds += GPTQ_SECONDS * parameters * checkpoint.spec.width
    return seconds, max(_memory(checkpoint, CALIBRATION_MEMORY), FIXED_MEMORY + text_memory(checkpoint, tokens))


def _sizes(checkpoint: "Checkpoint", scheme: str) -> dict[str, int]:
    """Bytes of each tensor as an export with this scheme stores it."""
    from xlstm_edge_exporters.quantize.plan import make_plan, planned_bytes  # noqa: PLC0415  # loads torch
    from xlstm_edge_exporters.recipe import Recipe  # noqa: PLC0415  # same

    plan = {}
    if scheme != "float32":
        recipe = Recipe(quantize=scheme)
        recipe = recipe.for_vectors() if checkpoint.spec.vocab_size is None else recipe
        plan = make_plan(checkpoint.spec, checkpoint.weights, recipe)
    return {name: planned_bytes({name: weight.shape}, plan) for name, weight in checkpoint.weights.items()}


def _read(checkpoint: "Checkpoint", sizes: dict[str, int]) -> int:
    """Bytes of weights that one token reads: of an untied embedding only one row."""
    total, vocab = sum(sizes.values()), checkpoint.spec.vocab_size
    if vocab is None or checkpoint.spec.tied:
        return total
    return total - sizes["embedding.weight"] * (vocab - 1) // vocab


def _here() -> float:
    """What this machine reads in a second on all cores."""
    import os  # noqa: PLC0415  # needed here alone

    return ReadProbe(os.cpu_count() or 1).measure()


def _advice(device: str | None) -> list[str]:
    lines = [
        "tokens a second are bounds: memory read at its full rate, nothing else; bench and tune measure on the device"
    ]
    if device is not None and not DEVICES[device].integers:
        lines.append(
            "this chip has no dot products of integers: int8 and int4 take about three times the work of float32 there, until "
            "tune opens the bundle with float weights, which take the memory of float32"
        )
    return lines
