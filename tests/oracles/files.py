"""Checkpoint files for the numpy reference: tensors in float64, each to be read exactly once, and the config.

Torch only reads the files here (numpy knows no bfloat16); it computes nothing.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from .recurrence import Array, head_wise


class Weights:
    """Named float64 tensors that are taken out one by one, so that what nobody read can be seen."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        self.left = dict(tensors)
        self.names = frozenset(tensors)

    def take(self, name: str) -> Array:
        """The tensor; KeyError if the checkpoint lacks it or it was read before."""
        return self.left.pop(name)

    def find(self, name: str) -> Array | None:
        """The tensor, or None if the checkpoint lacks it."""
        return self.take(name) if name in self.names else None


class Linear:
    """Dense W x (+ b if a bias is stored), W (out, in)."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self.weight, self.bias = weights.take(f"{prefix}.weight"), weights.find(f"{prefix}.bias")

    def __call__(self, x: Array) -> Array:
        y = self.weight @ x
        return y if self.bias is None else y + self.bias


class HeadWise(Linear):
    """Block-diagonal W x (+ b), W (blocks, out, in)."""

    def __call__(self, x: Array) -> Array:
        y = head_wise(x, self.weight)
        return y if self.bias is None else y + self.bias


def folder_of(checkpoint: Path) -> Path:
    """A checkpoint is a folder, or a state dict file with its config beside it."""
    return checkpoint.parent if checkpoint.is_file() else checkpoint


def weight_files(checkpoint: Path) -> list[Path]:
    """The file itself, one model.safetensors, all shards, or one torch state dict."""
    if checkpoint.is_file():
        return [checkpoint]
    files = sorted(checkpoint.glob("model*.safetensors")) or sorted(checkpoint.glob("*.pt"))
    if not files:
        raise FileNotFoundError(f"no model*.safetensors and no *.pt in {checkpoint}")
    return files


def read_weights(checkpoint: Path) -> Weights:
    """Every tensor of every file, up-cast to float64; a name in two shards is an error."""
    tensors: dict[str, Array] = {}
    for path in weight_files(checkpoint):
        stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        twice = tensors.keys() & stored.keys()
        if twice:
            raise ValueError(f"tensors stored twice: {sorted(twice)}")
        tensors |= {name: np.asarray(tensor.to(torch.float64)) for name, tensor in stored.items()}
    return Weights(tensors)


def read_config(checkpoint: Path) -> dict[str, Any]:
    """config.yaml, or config.json; the nested `_xlstm_config` of a wrapped v1 model is opened."""
    folder = folder_of(checkpoint)
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text()) if path.exists() else json.loads((folder / "config.json").read_text())
    opened = config.get("_xlstm_config", config)
    if not isinstance(opened, dict):
        raise TypeError(f"a config is a mapping, not {type(opened).__name__}")
    return opened
