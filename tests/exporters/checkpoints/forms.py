"""Checkpoints written in the forms that people have, and the comparison with the official packages that each must pass."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from xlstm_edge_exporters.checkpoints import Checkpoint
from xlstm_edge_exporters.reference import run_reference

from ...conftest import BY_NAME, sequence_for
from ...oracles.cases import Case
from ...oracles.models import Tensors
from ...oracles.official import official_parallel, official_step

CLOSE = 2e-5  # of the range: float32 official steps against float64


LENGTH = 20


CheckpointOf = Callable[[Case], Path]


Change = Callable[[Tensors], Any]


Outputs = NDArray[np.floating[Any]]


X, OTHER = torch.ones(3, 3), torch.zeros(5)
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(64, 64)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@cache
def official(name: str, folder: Path) -> Outputs:
    case = BY_NAME[name]
    sequence = sequence_for(case, LENGTH)
    step = official_step(case, folder, sequence)
    outputs = official_parallel(case, folder, sequence) if step is None else step
    assert outputs is not None
    return outputs


def tensors_of(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def rewritten(source: Path, target: Path, content: object, file: str = "model.ckpt") -> Path:
    """The config of `source` beside a torch file (or safetensors) with `content`."""
    target.mkdir(parents=True)
    for config in source.glob("config.*"):
        shutil.copy(config, target)
    if file.endswith(".safetensors"):
        assert isinstance(content, dict)
        save_file({name: tensor.clone() for name, tensor in content.items()}, target / file, {"format": "pt"})
    else:
        torch.save(content, target / file)
    return target


def configured(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    path = next(p for p in folder.iterdir() if p.name in ("config.yaml", "config.json"))
    value = change(yaml.safe_load(path.read_text()))
    path.write_text(json.dumps(value) if path.suffix == ".json" else yaml.safe_dump(value))
    return folder


def assert_equal_to_official(checkpoint: Checkpoint, expected: Outputs, case: Case) -> None:
    got = run_reference(checkpoint.spec, checkpoint.weights, sequence_for(case, LENGTH)).outputs
    assert np.abs(got - expected).max() <= CLOSE * np.ptp(expected)


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def inside(name: str, part: str, tensors: Tensors) -> Tensors:
    """One module of the model wrapped: `blocks.0.x` -> `blocks.0._orig_mod.x`."""
    return {key.replace(name, f"{name}{part}.", 1): tensor for key, tensor in tensors.items()}


def two_models(tensors: Tensors) -> Tensors:
    return {name: tensor * 0.5 for name, tensor in tensors.items()}
