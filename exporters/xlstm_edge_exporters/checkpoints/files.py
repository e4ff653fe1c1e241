"""Find and open the files of a checkpoint, trusting none of them.

Weights come as safetensors (one file, Hugging Face shards with an index, or `model_0.safetensors`, `model_1...`) or as
a torch state dict, which is read with `weights_only`: a pickle that wants to run code is refused. Only headers are read
here; the data follow tensor by tensor. Knows nothing of families.
"""

import hashlib
import json
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open

from xlstm_edge_runtime.errors import CheckpointError

from ..weights import FloatArray, Weight, to_float32

FLOATS = {"F64", "F32", "F16", "BF16"}
TORCH_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
CONFIGS = ("config.yaml", "config.json", "config.yml")
HINT = "expected config.yaml or config.json beside model.safetensors, shards of it, or a torch state dict"


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint's folder, config file and weight files, existing and inside the folder."""

    folder: Path
    config: Path
    weights: tuple[Path, ...]


def locate(path: Path) -> Located:
    """Files of the checkpoint at `path` (a folder, or a weights file with its config beside it)."""
    if not path.exists():
        raise CheckpointError(f"{HINT}, came {path}, which does not exist; check the path")
    folder, weights = path.parent, tuple[Path, ...]([path])
    if path.is_dir():
        folder, weights = _weights_in(path)
    for name in CONFIGS:
        if (folder / name).is_file():
            return Located(folder, folder / name, weights)
    raise CheckpointError(f"{HINT}, came {folder} without a config; put the training config there")


def read_config(path: Path) -> dict[str, Any]:
    """The config as a plain mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(
            f"expected {path.name} to be valid {path.suffix[1:]}, came {_line(error)}; repair it"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"expected {path.name} to hold a mapping, came {type(config).__name__}; repair it")
    return config


def open_tensors(paths: tuple[Path, ...]) -> dict[str, Weight]:
    """All tensors of all files by name; CheckpointError for a name that two files hold."""
    tensors: dict[str, Weight] = {}
    for path in paths:
        for name, weight in _open_one(path):
            if name in tensors:
                raise CheckpointError(f"expected each tensor once, came {name} in two files; remove the stale shard")
            tensors[name] = weight
    return tensors


def sha256(paths: tuple[Path, ...]) -> str:
    """One hash over the files' contents, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _weights_in(folder: Path) -> tuple[Path, tuple[Path, ...]]:
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            return folder, _shards(folder / index)
    if (folder / "model.safetensors").is_file():
        return folder, (folder / "model.safetensors",)
    if (folder / "model_0.safetensors").is_file():
        return folder, _numbered(folder)
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        found = sorted(p for p in folder.iterdir() if p.suffix in suffixes and p.is_file())
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise CheckpointError(f"expected one weights file in {folder}, came {names}; name the file to export")
        if found:
            return folder, (found[0],)
    last = sorted(p for p in folder.glob("checkpoint-*-last") if p.is_dir())
    if len(last) == 1:  # a training run's folder as the Helibrunna trainer leaves it
        return _weights_in(last[0])
    raise CheckpointError(f"{HINT}, came {folder} without any weights; check the path")


def _numbered(folder: Path) -> tuple[Path, ...]:
    count = len(list(folder.glob("model_*.safetensors")))
    paths = tuple(folder / f"model_{i}.safetensors" for i in range(count))
    if missing := [path.name for path in paths if not path.is_file()]:
        raise CheckpointError(
            f"expected shards numbered without a gap, came without {missing[0]}; complete the download"
        )
    return paths


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_config(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"expected {index.name} with a weight_map of file names, came none; repair it")
    paths = []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise CheckpointError(
                f"expected shards inside the checkpoint's folder, came {name!r}; do not trust this index"
            )
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"expected the shard {name} that {index.name} names, came none; complete the download"
            )
        paths.append(index.parent / name)
    return tuple(paths)


def _open_one(path: Path) -> Iterator[tuple[str, Weight]]:
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def _open_safetensors(path: Path) -> Iterator[tuple[str, Weight]]:
    try:
        file: Any = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"expected {path.name} to be a complete safetensors file, came {_line(error)}; download it again"
        ) from error
    for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
        view = file.get_slice(name)
        if view.get_dtype() not in FLOATS:
            raise CheckpointError(
                f"expected float tensors, came {name} as {view.get_dtype()}; export the float checkpoint"
            )
        yield name, Weight(tuple(view.get_shape()), partial(_read_safetensor, file, name))


def _read_safetensor(file: Any, name: str) -> FloatArray:
    return to_float32(file.get_tensor(name))


def _open_torch(path: Path) -> Iterator[tuple[str, Weight]]:
    state = _load_torch(path)
    for key in ("state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise CheckpointError(
            f"expected {path.name} to hold a state dict, came {type(state).__name__}; save state_dict()"
        )
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in TORCH_FLOATS or not _holds_data(tensor):
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise CheckpointError(
                f"expected float tensors in {path.name}, came {name} as {kind}; save the model's state_dict()"
            )
        yield str(name), Weight(tuple(tensor.shape), partial(to_float32, tensor))


def _holds_data(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def _load_torch(path: Path) -> Any:
    """weights_only, memory-mapped where the file's format allows it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickle protocols; what counts is whether it loads
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before torch 1.6 cannot be mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(
            f"expected {path.name} to be a plain torch state dict, came a file that weights_only loading refuses "
            "(a pickle may run code); save the state_dict() again or convert it to safetensors"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
