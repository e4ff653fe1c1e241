"""What every checkpoint family hands over, and the checks they share. Adding a family: see CONTRIBUTING.md."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from xlstm_edge_runtime.errors import CheckpointError

from ..spec import ModelSpec
from ..weights import Weights, listed

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Canonical:
    """A checkpoint with no foreign names left."""

    spec: ModelSpec
    weights: Weights


def refuse_unknown(config: Config, known: Collection[str], where: str) -> None:
    """Raise CheckpointError for config keys that nobody knows the meaning of."""
    if unknown := sorted(str(key) for key in config if key not in known and not str(key).startswith("_")):
        raise CheckpointError(f"expected known settings in {where}, came {listed(unknown)}; remove or rename them")


def agree(config: Config, key: str, actual: object, where: str = "the tensors") -> None:
    """Raise CheckpointError if the config states `key` and the tensors say otherwise."""
    stated = config.get(key)
    if stated is not None and stated != actual:
        raise CheckpointError(
            f"expected {key} {stated} as in the config, came {actual} from {where}; correct the config"
        )


def section(config: Config, key: str) -> Config | None:
    """A nested mapping; None if absent or null."""
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"expected {key} to be a mapping, came {type(value).__name__}; correct the config")
    return value


def number(config: Config, key: str, default: float) -> float:
    """A finite positive number."""
    value = config.get(key, default)
    if isinstance(value, str):  # YAML 1.1 reads 1e-6 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise CheckpointError(f"expected {key} to be a positive number, came {value!r}; correct the config")
    return float(value)


def flag(config: Config, key: str, default: bool) -> bool:
    """true or false."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"expected {key} to be true or false, came {value!r}; correct the config")
    return value
