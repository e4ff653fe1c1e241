"""Make checkpoints with the official packages in each family's own format, and run the official models on them.

>>> folder = make_checkpoint(CASES[0], Path("somewhere"))
>>> official_step(CASES[0], folder, sequence)  # (T, V) float32, or None: `limit` says why
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from .cases import CASES, V1, Case, sequence_of
from .models import Tensors, build, is_tied, load, relayout, to_cuda_layout
from .randomness import randomize

__all__ = [
    "CASES",
    "LIMITS",
    "Case",
    "limit",
    "make_checkpoint",
    "official_parallel",
    "official_states",
    "official_step",
    "sequence_of",
    "to_cuda_layout",
]
Floats = NDArray[np.floating[Any]]
Form = Literal["step", "parallel"]


@dataclass(frozen=True)
class Limit:
    """What an official path cannot run, and why."""

    path: Form
    applies: Callable[[Case], bool]
    reason: str


def _one_tap(case: Case) -> bool:
    """A v1 convolution of kernel size 1."""
    blocks = [(case.config.get(f"{kind}_block") or {}).get(kind) or {} for kind in ("mlstm", "slstm")]
    return case.family in V1 and any(block.get("conv1d_kernel_size", 4) == 1 for block in blocks)


def _ragged_cache(case: Case) -> bool:
    """A Hugging Face model whose q or v width is no multiple of 64."""
    width, config = case.config["embedding_dim"], case.config
    factors = (config.get("qk_dim_factor", 0.5), config.get("v_dim_factor", 1.0))
    return case.family == "xlstm_hf" and any(int(width * factor) % 64 for factor in factors)


LIMITS = (
    Limit("parallel", _one_tap, "xlstm/components/conv.py cuts [: -pad], which with one tap is the whole sequence"),
    Limit("step", _ragged_cache, "xLSTMCache of modeling_xlstm.py rounds widths to multiples of 64, the layers do not"),
)


def limit(case: Case, path: Form) -> str | None:
    """Why the official path cannot run the case, or None if it can."""
    return next((entry.reason for entry in LIMITS if entry.path == path and entry.applies(case)), None)


def make_checkpoint(case: Case, directory: Path, dtype: str | torch.dtype = "float32", seed: int = 0) -> Path:
    """A folder as the family's own tool writes it, weights stored as `dtype`."""
    kind: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    directory.mkdir(parents=True, exist_ok=True)
    model = build(case)
    randomize(model, seed, is_tied(case))
    savers = {"xlstm_large": _save_large, "xlstm_hf": _save_hugging_face}
    savers.get(case.family, _save_v1)(case, model, directory, kind)
    return directory


def _tensors(model: nn.Module, dtype: torch.dtype) -> Tensors:
    return {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}


def _save_v1(case: Case, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """config.yaml beside model.safetensors or a torch state dict; for xlstm_lm_hf config.json, prefixed names, no head."""
    state, config = _tensors(model, dtype), case.config | case.store.get("extra", {})
    if case.store.get("slstm_layout") == "cuda":
        state = relayout(state, to_cuda=True)
    if case.family == "xlstm_lm_hf":
        state = {f"model.{name}": tensor for name, tensor in state.items() if name != "lm_head.weight"}
        shared = {key: config[key] for key in ("vocab_size", "embedding_dim", "context_length")}
        auto_map = {"AutoConfig": "configuration_xlstm.xLSTMConfig", "AutoModel": "modeling_xlstm.xLSTMModel"}
        names = {"model_type": "xlstm", "torch_dtype": str(dtype).removeprefix("torch."), "auto_map": auto_map}
        (folder / "config.json").write_text(json.dumps({**shared, **names, "_xlstm_config": config}, indent=2))
    else:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if case.store.get("format") == "pt":  # torch stores a tied matrix under both of its names
        torch.save(state, folder / "model.pt")
        return
    twins = {"lm_head.weight", "token_embedding.weight"}
    dropped = twins - {case.store["keep"]} if "keep" in case.store else set()
    save_file({name: tensor for name, tensor in state.items() if name not in dropped}, folder / "model.safetensors")


def _save_large(case: Case, model: Any, folder: Path, dtype: torch.dtype) -> None:
    """config.yaml with every field of the dataclass; model.safetensors, or consecutive shards model_0, model_1, ..."""
    state, count = _tensors(model, dtype), case.store.get("shards", 1)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(model.config)))
    names = sorted(state)
    for shard in range(count):
        file = "model.safetensors" if count == 1 else f"model_{shard}.safetensors"
        save_file({name: state[name] for name in names[shard::count]}, folder / file)


def _save_hugging_face(case: Case, model: Any, folder: Path, dtype: torch.dtype) -> None:
    """save_pretrained, with an index and shards if asked for."""
    shards = case.store.get("shards", 1)
    total = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    model.to(dtype).save_pretrained(folder, max_shard_size=total // shards if shards > 1 else "1GB")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if case.store.get("head") is False:
        state = load_file(weights)
        del state["lm_head.weight"]
        save_file(state, weights, {"format": "pt"})
        keys = json.loads(config.read_text())
        config.write_text(json.dumps(keys | {"tie_word_embeddings": True}))
    if case.store.get("old_names"):  # as the published 7B file: neither hidden_size nor num_hidden_layers
        keys = json.loads(config.read_text())
        config.write_text(json.dumps({k: v for k, v in keys.items() if k not in ("hidden_size", "num_hidden_layers")}))


def official_step(case: Case, directory: Path, sequence: Any, dtype: str = "float32") -> Floats | None:
    """(T, V) or (T, D): one token at a time with the official state. None where `limit` has a reason."""
    return None if limit(case, "step") else run_steps(case, directory, sequence, dtype)[0]


def official_states(case: Case, directory: Path, sequence: Any, dtype: str = "float32") -> dict[str, Floats] | None:
    """States after the sequence, with the reference's names, shapes and scaling. None where `limit` has a reason."""
    return None if limit(case, "step") else run_steps(case, directory, sequence, dtype)[1]


def official_parallel(case: Case, directory: Path, sequence: Any, dtype: str = "float32") -> Floats | None:
    """(T, V) or (T, D): the whole sequence in one forward pass. None where `limit` has a reason."""
    return None if limit(case, "parallel") else run_parallel(case, directory, sequence, dtype)


@torch.no_grad()
def run_steps(case: Case, directory: Path, sequence: Any, dtype: str) -> tuple[Floats, dict[str, Floats]]:
    """Outputs and final states of the step path, whether it can run or not."""
    kind = getattr(torch, dtype)
    model, state, outputs = load(case, directory, kind), None, []
    for token in _inputs(sequence, kind):
        output, state = _step(case, model, token[None, None], state)
        outputs.append(output.reshape(-1).numpy())
    return np.stack(outputs), _named_states(case, state)


@torch.no_grad()
def run_parallel(case: Case, directory: Path, sequence: Any, dtype: str) -> Floats:
    """Outputs of the full-sequence path, whether it can run or not."""
    kind = getattr(torch, dtype)
    model, x = load(case, directory, kind), _inputs(sequence, kind)[None]
    if case.family in V1:
        output = model(x)
    else:
        output = model(x)[0] if case.family == "xlstm_large" else _hugging_face(model, x, None, use_cache=False)[0]
    return np.asarray(output[0])


def _inputs(sequence: Any, kind: torch.dtype) -> torch.Tensor:
    """Ids stay integers, vectors become the model's dtype."""
    x = torch.as_tensor(np.asarray(sequence))
    return x.to(kind) if x.is_floating_point() else x


def _step(case: Case, model: Any, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    """x (1, 1) or (1, 1, D) and a state -> output and state."""
    if case.family in V1:
        output, state = model.step(x, state=state)
    else:
        output, state = (
            model(x, state) if case.family == "xlstm_large" else _hugging_face(model, x, state, use_cache=True)
        )
    return output, state


def _hugging_face(model: Any, x: torch.Tensor, cache: Any, *, use_cache: bool) -> tuple[torch.Tensor, Any]:
    """Logits and cache. In float64 the head is called here: forward() itself rounds the logits to float32."""
    if model.dtype == torch.float32:
        result = model(input_ids=x, cache=cache, use_cache=use_cache)
        return result.logits, result.cache
    from xlstm.xlstm_large.components import soft_cap

    result = model.backbone(input_ids=x, cache=cache, use_cache=use_cache)
    return soft_cap(model.lm_head(result.last_hidden_state), model.config.output_logit_soft_cap), result.cache


def _named_states(case: Case, state: Any) -> dict[str, Floats]:
    """The official containers in the reference's convention."""
    if case.family in V1:
        heads = ((case.config["slstm_block"] or {}).get("slstm") or {}).get("num_heads", 4)
        blocks = [_v1_state(state[f"block_{index}"], heads) for index in range(len(state))]
    else:
        layers = state if case.family == "xlstm_large" else state.rnn_state
        blocks = [dict(zip("Cnm", (t[0] for t in layers[i]), strict=True)) for i in range(len(layers))]
        blocks = [block | {"m": block["m"].reshape(-1)} for block in blocks]
    return {f"blocks.{i}.{name}": tensor.numpy() for i, block in enumerate(blocks) for name, tensor in block.items()}


def _v1_state(state: dict[str, Any], slstm_heads: int) -> Tensors:
    """v1 scales k by dk ** -0.5, so C and n are taken times dk ** 0.5; its window of K rows loses the oldest."""
    if "mlstm_state" in state:
        C, n, m = (tensor[0] for tensor in state["mlstm_state"])
        scale = C.shape[1] ** 0.5
        named = {"C": C * scale, "n": n[..., 0] * scale, "m": m.reshape(-1)}
    else:
        flat = state["slstm_state"][:, 0]
        named = dict(zip("ycnm", flat.reshape(4, slstm_heads, -1), strict=True))
    window = state["conv_state"]
    return named if window is None else named | {"conv": window[0][0, 1:].T}
