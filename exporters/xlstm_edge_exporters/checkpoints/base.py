"""What every checkpoint family hands over, and the checks they share. Adding a family: see CONTRIBUTING.md."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlstm_edge_runtime.errors import CheckpointError, shown

from ..spec import ModelSpec
from ..weights import Weights

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Canonical:
    """A checkpoint with no foreign names left, and the settings that were not needed for it."""

    spec: ModelSpec
    weights: Weights
    ignored_settings: tuple[str, ...] = ()


def agree(config: Config, key: str, actual: object, where: str = "the tensors") -> None:
    """Raise CheckpointError if the config states `key` and the tensors say otherwise."""
    stated = config.get(key)
    if stated is not None and (isinstance(stated, bool) or stated != actual):
        raise CheckpointError(
            f"expected {key} {shown(stated)} as in the config, got {shown(actual)} from {where}; use the config of "
            "this training"
        )


def section(config: Config, key: str) -> Config | None:
    """A nested mapping; None if absent or null."""
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"expected {key} to be a mapping, got {shown(value)}; use the config of this training")
    return value


def number(config: Config, key: str, default: float) -> float:
    """A finite positive number."""
    value = config.get(key, default)
    if isinstance(value, str):  # YAML 1.1 reads 1e-6 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise CheckpointError(
            f"expected {key} to be a positive number, got {shown(value)}; use the config of this training"
        )
    return float(value)


def flag(config: Config, key: str, default: bool) -> bool:
    """true or false."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(
            f"expected {key} to be true or false, got {shown(value)}; use the config of this training"
        )
    return value


def biased(name: str, shape: tuple[int, ...], bias: bool) -> Shapes:
    """A weight by its stored name, with its bias where there is one."""
    return {name + ".weight": shape} | ({name + ".bias": shape[:1]} if bias else {})


def count_blocks(indices: set[str]) -> int:
    """How many blocks have these numbers; CheckpointError unless they are 0, 1, 2... without a gap."""
    wanted = {str(index) for index in range(len(indices))}
    if indices != wanted:
        odd = min(indices - wanted, key=lambda index: (len(index), index))
        raise CheckpointError(
            f"expected {len(indices)} blocks numbered from 0 without a gap, got block {shown(odd)}; export the complete "
            "checkpoint"
        )
    return len(indices)
