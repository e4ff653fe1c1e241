"""Ways to spoil a good checkpoint folder, each a function of the folder."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

Spoil = Callable[[Path], object]
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
EMBEDDING, HEAD = "token_embedding.weight", "lm_head.weight"
NORM = "xlstm_block_stack.blocks.0.xlstm_norm.weight"


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")

    return spoil


def edit_config(**values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, **values}))

    return spoil


def torch_file(change: Callable[[dict[str, torch.Tensor]], Any], **options: Any) -> Spoil:
    """The tensors, changed, as a torch file instead of safetensors."""

    def spoil(folder: Path) -> None:
        torch.save(change(load_file(folder / "model.safetensors")), folder / "model.pt", **options)
        (folder / "model.safetensors").unlink()

    return spoil


def add(name: str, size: int) -> Spoil:
    """One more tensor."""
    return edit_tensors(lambda t: t.update({name: torch.ones(size)}))


def prefixed(more: dict[str, torch.Tensor]) -> Spoil:
    """The model under `model.`, and more tensors."""
    return edit_tensors(lambda t: t.update({f"model.{k}": t.pop(k) for k in list(t)} | more))


def only_yaml_of(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text()))))

    return spoil


def raw_file(content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.pt").write_bytes(content)

    return spoil


def header(entries: dict[str, Any]) -> Spoil:
    """A safetensors file that is all header."""
    text = json.dumps(entries).encode()
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def more_yaml(text: str) -> Spoil:
    def spoil(folder: Path) -> None:
        with (folder / "config.yaml").open("a") as file:
            file.write(text)

    return spoil


def only_yaml(text: str) -> Spoil:
    return lambda folder: (folder / "config.yaml").write_text(text)


def as_json(change: Callable[[str], str]) -> Spoil:
    def spoil(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.json").write_text(change(json.dumps(config)))
        (folder / "config.yaml").unlink()

    return spoil


def pipe(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def device(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")


def index(weight_map: object) -> Spoil:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
