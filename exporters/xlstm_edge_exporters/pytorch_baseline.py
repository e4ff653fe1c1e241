"""The original checkpoint in its own package (`xlstm` or `transformers`), for a comparison of speed in one process.

Native PyTorch step kernels on the CPU, float32, one token at a time with the package's own state.
"""

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from xlstm_edge_runtime.errors import DependencyError, InputError, escaped

from .checkpoints import Checkpoint, open_checkpoint

NATIVE: dict[str, Any] = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
    "autocast_kernel_dtype": "float32",
}
# Two names of one field: transformers follows the second, files often state the first.
HUGGING_FACE = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}
PACKAGES = {"xlstm", "mlstm_kernels", "transformers", "dacite", "omegaconf", "einops"}
Step = Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]]


def official_rate(
    path: Path, threads: int | None, *, prefix: str | None = None, weights: str | None = None
) -> Callable[[int], float]:
    """A function: generate n tokens greedily in PyTorch, return tokens a second.

    InputError if the checkpoint is one that its own package cannot run; `prefix` and `weights` as for `open_checkpoint`.
    """
    checkpoint = open_checkpoint(path, prefix=prefix, weights=weights)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        step = _step(checkpoint)
        with torch.inference_mode():
            step(torch.tensor([[0]]), step(torch.tensor([[0]]), None)[1])
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise DependencyError(
            f"expected the package {error.name} to run the original checkpoint, got none; pip install --no-deps {error.name}"
        ) from error
    except (AssertionError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = escaped(" ".join(str(error).split()), 120) or type(error).__name__
        raise InputError(
            f"expected a checkpoint that its own package can run step by step, got one on which it fails ({reason}); "
            "leave out the comparison"
        ) from error

    @torch.inference_mode()
    def rate(count: int) -> float:
        token, state = torch.tensor([[0]]), None
        begin = time.perf_counter()
        for _ in range(count):
            logits, state = step(token, state)
            token = logits.reshape(1, -1).argmax(-1, keepdim=True)
        return count / (time.perf_counter() - begin)

    return rate


def _step(checkpoint: Checkpoint) -> Step:
    family = checkpoint.spec.family
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the packages warn about CUDA and about each other
        model = official_model(checkpoint)
        # Speed does not depend on the values; what fits is taken, other storage layouts are left as initialized.
        _fill(model.state_dict(), checkpoint)
    if family == "xlstm_large":
        return model  # type: ignore[no-any-return]  # the package is untyped
    if family == "xlstm_hf":
        return lambda token, state: _hub_step(model, token, state)
    return lambda token, state: model.step(token, state=state)


def official_model(checkpoint: Checkpoint) -> Any:
    """The model as its own package builds it, weights as initialized; InputError for a stack of vectors."""
    makers = {"xlstm_lm": _v1, "xlstm_lm_hf": _v1, "xlstm_large": _large, "xlstm_hf": _hugging_face}
    family = checkpoint.spec.family
    if family not in makers:
        raise InputError(f"expected a model that takes tokens, got family {family}; no comparison for it")
    return makers[family](checkpoint).eval()


def _hub_step(model: Any, token: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    result = model(input_ids=token, cache=state, use_cache=True)
    return result.logits, result.cache


def _v1(checkpoint: Checkpoint) -> Any:
    from dacite import from_dict  # noqa: PLC0415  # optional
    from xlstm import xLSTMLMModel, xLSTMLMModelConfig  # noqa: PLC0415  # optional

    config = copy.deepcopy(checkpoint.config)
    config["vocab_size"] = checkpoint.spec.vocab_size
    if config.get("slstm_block") is not None:
        cell = config["slstm_block"].get("slstm") or {}
        config["slstm_block"]["slstm"] = cell | {
            "backend": "vanilla",
            "dtype": "float32",
            "enable_automatic_mixed_precision": False,
        }
    return xLSTMLMModel(from_dict(xLSTMLMModelConfig, config))


def _large(checkpoint: Checkpoint) -> Any:
    from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig  # noqa: PLC0415  # optional

    fields = xLSTMLargeConfig.__dataclass_fields__
    known = {key: value for key, value in checkpoint.config.items() if key in fields}
    return xLSTMLarge(xLSTMLargeConfig(**{**known, **NATIVE}))


def _hugging_face(checkpoint: Checkpoint) -> Any:
    """Built of the config's own fields, as the published file means it (`from_pretrained` would not)."""
    from transformers import xLSTMConfig, xLSTMForCausalLM  # noqa: PLC0415  # optional

    fields = xLSTMConfig.__dataclass_fields__.keys()
    named = {HUGGING_FACE.get(key, key): value for key, value in checkpoint.config.items()}
    own = {key: value for key, value in checkpoint.config.items() if key in HUGGING_FACE.values()}
    known = {key: value for key, value in {**named, **own}.items() if key in fields}
    shape = {"hidden_size": checkpoint.spec.width, "num_hidden_layers": len(checkpoint.spec.blocks)}
    config = xLSTMConfig(**{**known, **NATIVE, **shape, "vocab_size": checkpoint.spec.vocab_size})
    return xLSTMForCausalLM(config)


@torch.no_grad()
def _fill(own: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> None:
    for name in checkpoint.stored.names:
        weight = checkpoint.stored[name]
        if name in own and own[name].shape == weight.shape:
            own[name].copy_(torch.from_numpy(weight.load()))
