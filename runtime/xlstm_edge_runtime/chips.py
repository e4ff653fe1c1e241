"""Qualcomm's chips by name: what their compiler wants to know to compile for one.

Architecture of the HTP and model number of the chip, as Qualcomm's own headers and ExecuTorch's `qc_schema.py` list them.
Older chips (v68 and before) have no float16 and are not here.
"""

from collections.abc import Mapping

SOC = "soc"  # our name of the option that stands for both
# Marketing name -> (htp_arch, soc_model)
CHIPS: Mapping[str, tuple[str, str]] = {
    "8gen1": ("69", "36"),  # SM8450
    "8gen2": ("73", "43"),  # SM8550
    "8gen3": ("75", "57"),  # SM8650
    "8elite": ("79", "69"),  # SM8750
    "8elite5": ("81", "87"),  # SM8850
    "xelite": ("73", "60"),  # SC8380XP
}


def chip_options(name: str) -> dict[str, str]:
    """Options of the QNN provider for a chip of `CHIPS`."""
    arch, model = CHIPS[name]
    return {"htp_arch": arch, "soc_model": model}


def chip_of(options: Mapping[str, str]) -> str | None:
    """The chip that options of the QNN provider are for; None for none, or one that is not known here."""
    given = options.get("htp_arch"), options.get("soc_model")
    return next((name for name, numbers in CHIPS.items() if numbers == given), None)
