"""The original checkpoint in its own package (`xlstm` or `transformers`), for a comparison of speed in one process.

Native PyTorch step kernels on the CPU, float32, one token at a time with the package's own state.
"""

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from xlstm_edge_runtime.errors import DependencyError, InputError

from .checkpoints import open_checkpoint
from .checkpoints.files import locate, open_tensors, read_config

NATIVE: dict[str, Any] = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
    "autocast_kernel_dtype": "float32",
}
PACKAGES = {"xlstm", "mlstm_kernels", "transformers", "dacite", "omegaconf", "einops"}
Step = Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]]


def official_rate(path: Path, threads: int | None) -> Callable[[int], float]:
    """A function: generate n tokens greedily in PyTorch, return tokens a second."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        step = _step(path)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise DependencyError(
            f"expected the package {error.name} to run the original checkpoint, came none; pip install --no-deps {error.name}"
        ) from error

    @torch.inference_mode()
    def rate(count: int) -> float:
        token, state = torch.tensor([[1]]), None
        begin = time.perf_counter()
        for _ in range(count):
            logits, state = step(token, state)
            token = logits.reshape(1, -1).argmax(-1, keepdim=True)
        return count / (time.perf_counter() - begin)

    return rate


def _step(path: Path) -> Step:
    family = open_checkpoint(path).spec.family
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the packages warn about CUDA and about each other
        if family in ("A1", "A2"):
            model = _v1(path, family)
            return lambda token, state: model.step(token, state=state)
        if family == "B":
            return _large(path)  # type: ignore[no-any-return]  # the package is untyped
        if family == "C":
            from transformers import xLSTMForCausalLM  # noqa: PLC0415  # optional

            hub: Any = xLSTMForCausalLM.from_pretrained(path, dtype=torch.float32, **NATIVE)
            hub.eval()
            return lambda token, state: _hub_step(hub, token, state)
    raise InputError(f"expected a model that takes tokens, came family {family}; no comparison for it")


def _hub_step(model: Any, token: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    result = model(input_ids=token, cache=state, use_cache=True)
    return result.logits, result.cache


def _v1(path: Path, family: str) -> Any:
    from dacite import from_dict  # noqa: PLC0415  # optional
    from xlstm import xLSTMLMModel, xLSTMLMModelConfig  # noqa: PLC0415  # optional

    located = locate(path)
    config = read_config(located.config)
    config = json.loads(json.dumps(config.get("_xlstm_config", config)))
    config.pop("type", None)
    cell = (config.get("slstm_block") or {}).get("slstm")
    if cell is not None:
        cell |= {"backend": "vanilla", "dtype": "float32", "enable_automatic_mixed_precision": False}
    model = xLSTMLMModel(from_dict(xLSTMLMModelConfig, config)).eval()
    # Speed does not depend on the values; what fits is taken, other storage layouts are left as initialized.
    own, stored = model.state_dict(), open_tensors(located.weights)
    for name, weight in stored.items():
        key = name.removeprefix("model.") if family == "A2" else name
        if key in own and own[key].shape == weight.shape:
            own[key].copy_(torch.from_numpy(weight.load()))
    return model


def _large(path: Path) -> Any:
    from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig  # noqa: PLC0415  # optional

    located = locate(path)
    model = xLSTMLarge(xLSTMLargeConfig(**{**read_config(located.config), **NATIVE})).eval()
    own = model.state_dict()
    for name, weight in open_tensors(located.weights).items():
        own[name].copy_(torch.from_numpy(weight.load()))
    return model
