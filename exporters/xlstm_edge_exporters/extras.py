"""Packages that only an extra brings: imported where they are needed, and named where they are missing."""

import importlib
from typing import Any

from xlstm_edge_runtime.errors import DependencyError


def import_extra(package: str, purpose: str, extra: str, *, module: str | None = None) -> Any:
    """A package's module, by default of its own name; DependencyError, which says what for and how to get it, without it."""
    try:
        return importlib.import_module(module or package)
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"expected the package {package} for {purpose}, got none; pip install 'xlstm-edge[{extra}]'"
        ) from error
