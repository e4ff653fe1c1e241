"""Checkpoints of xLSTM-Large whose gates sit elsewhere."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def with_gates(
    source: Path, folder: Path, *, igate: float | None = None, fgate: float | None = None, factor: float = 1.0
) -> Path:
    """A copy with these biases, before the soft cap, and the input gates' weights times `factor`; None keeps a bias."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    biases = {"igate_preact.bias": igate, "fgate_preact.bias": fgate}
    for name, tensor in tensors.items():
        part = ".".join(name.split(".")[-2:])
        if (bias := biases.get(part)) is not None:
            tensor.fill_(bias)
        elif part == "igate_preact.weight":
            tensor.mul_(factor)
    save_file(tensors, folder / "model.safetensors")
    return folder
