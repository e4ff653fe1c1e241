"""The tensors that a config alone describes: names and shapes without data, before anything is downloaded or trained.

A family's loader reads them as it reads a checkpoint's, so that there is one description of each family. Widths are the
published formulas: `xlstm/utils.py` and `xlstm/xlstm_large/model.py`; defaults are those of the packages' configs.
"""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from xlstm_edge_runtime.errors import CheckpointError, shown

from ..weights import FloatArray, Weight
from .base import Config, Shapes, biased, flag, number, section
from .large import block_shapes

V1_SIGNS = ("mlstm_block", "slstm_block", "slstm_at")
LARGEST_WIDTH, MOST_BLOCKS = 1 << 20, 4096


def describe_tensors(config: Config, *, hugging_face: bool, wrapped: bool = False) -> dict[str, Weight]:
    """Every tensor of the model that a config describes; loading one raises CheckpointError.

    `wrapped` is a v1 model in the Hugging Face wrapper that ties embedding and head whatever the config says.
    """
    is_v1 = any(sign in config for sign in V1_SIGNS)
    shapes = _v1(config, tied=wrapped) if is_v1 else _large(config, hugging_face=hugging_face)
    return {name: Weight(shape, _no_data) for name, shape in shapes.items()}


def _no_data() -> FloatArray:
    return _refuse_data()


def _refuse_data() -> NoReturn:
    raise CheckpointError("expected the weights of the checkpoint, got its config alone; download it whole")


def _large(config: Config, *, hugging_face: bool) -> Shapes:
    """xLSTM-Large in the package's form or Hugging Face's, weights not fused."""
    width = _either(config, ("embedding_dim", "hidden_size"), 4096 if hugging_face else None)
    count = _either(config, ("num_blocks", "num_hidden_layers"), 32 if hugging_face else None, MOST_BLOCKS)
    heads = _integer(config, "num_heads", 8 if hugging_face else None)
    vocab = _integer(config, "vocab_size", 50304 if hugging_face else None)
    bias = flag(config, "use_bias", False)
    qk, v = (
        int(width * number(config, key, default)) for key, default in (("qk_dim_factor", 0.5), ("v_dim_factor", 1.0))
    )
    ffn = _large_ffn(config, width)
    embedding = "backbone.embeddings.weight" if hugging_face else "embedding.weight"
    tied = hugging_face and flag(config, "tie_word_embeddings", False)
    shapes: Shapes = {
        name: (vocab, width) for name in (embedding, "lm_head.weight") if not (tied and name != embedding)
    }
    if hugging_face or flag(config, "add_out_norm", True):
        shapes |= biased("backbone.out_norm", (width,), bias and not hugging_face)
    for index in range(count):
        prefix = f"backbone.blocks.{index}."
        shapes |= block_shapes(prefix, width=width, heads=heads, qk=qk, v=v, ffn=ffn, bias=bias)
    return shapes


def _large_ffn(config: Config, width: int) -> int:
    """No true ceiling: less than one beyond a multiple is dropped."""
    multiple = _integer(config, "ffn_round_up_to_multiple_of", 64)
    return multiple * int((width * number(config, "ffn_proj_factor", 2.667) + multiple - 1) // multiple)


def _v1(config: Config, *, tied: bool) -> Shapes:
    """xLSTM v1 language models; a config without vocab_size describes a bare stack."""
    width, count = _integer(config, "embedding_dim", 128), _integer(config, "num_blocks", 1, MOST_BLOCKS)
    vocab = config.get("vocab_size")
    stem = "" if vocab is None else "xlstm_block_stack."
    shapes: Shapes = {}
    if vocab is not None:
        shapes["token_embedding.weight"] = (_integer(config, "vocab_size", None), width)
        if not tied and not flag(config, "tie_weights", False):
            shapes["lm_head.weight"] = shapes["token_embedding.weight"]
    if flag(config, "add_post_blocks_norm", True):
        shapes[f"{stem}post_blocks_norm.weight"] = (width,)
    places = _places(config, count)
    for index in range(count):
        block = _slstm_block(config, width) if index in places else _mlstm_block(config, width)
        shapes |= {f"{stem}blocks.{index}.{name}": shape for name, shape in block.items()}
    return shapes


def _places(config: Config, count: int) -> set[int]:
    """Which blocks are sLSTM."""
    stated = config.get("slstm_at") or []
    if stated == "all" or (config.get("mlstm_block") is None and config.get("slstm_block") is not None):
        return set(range(count))
    if not isinstance(stated, list) or not all(type(place) is int and 0 <= place < count for place in stated):
        raise CheckpointError(
            f"expected slstm_at as block numbers below {count}, got {shown(stated)}; correct the config"
        )
    return set(stated)


def _mlstm_block(config: Config, width: int) -> Shapes:
    own = section(section(config, "mlstm_block") or {}, "mlstm") or {}
    inner, heads = _up(own, width, 2.0), _integer(own, "num_heads", 4)
    block, taps = _integer(own, "qkv_proj_blocksize", 4), _integer(own, "conv1d_kernel_size", 4)
    bias, layer = flag(config, "bias", False), "xlstm."
    shapes: Shapes = {"xlstm_norm.weight": (width,), layer + "learnable_skip": (inner,)}
    shapes |= biased(layer + "proj_up", (2 * inner, width), bias) | biased(layer + "proj_down", (width, inner), bias)
    shapes |= {layer + "conv1d.conv.weight": (inner, 1, taps), layer + "conv1d.conv.bias": (inner,)}
    for name in ("q_proj", "k_proj", "v_proj"):
        shapes[f"{layer}{name}.weight"] = (inner // block, block, block)
        shapes |= {f"{layer}{name}.bias": (inner,)} if bias else {}
    for name in ("igate", "fgate"):
        shapes |= biased(f"{layer}mlstm_cell.{name}", (heads, 3 * inner), True)
    return shapes | {layer + "mlstm_cell.outnorm.weight": (inner,)}


def _slstm_block(config: Config, width: int) -> Shapes:
    block = section(config, "slstm_block") or {}
    own, layer = section(block, "slstm") or {}, "xlstm."
    heads, taps = _integer(own, "num_heads", 4), _integer(own, "conv1d_kernel_size", 4, least=0)
    head = width // heads
    shapes: Shapes = {"xlstm_norm.weight": (width,)}
    shapes |= {f"{layer}{gate}.weight": (heads, head, head) for gate in ("fgate", "igate", "zgate", "ogate")}
    shapes |= {
        f"{layer}slstm_cell._recurrent_kernel_": (heads, head, 4 * head),
        f"{layer}slstm_cell._bias_": (4 * width,),
    }
    if taps:
        shapes |= {layer + "conv1d.conv.weight": (width, 1, taps), layer + "conv1d.conv.bias": (width,)}
    if flag(own, "group_norm_weight", True):
        shapes[layer + "group_norm.weight"] = (width,)
    if "feedforward" in block and block["feedforward"] is None:
        return shapes
    ffn = section(block, "feedforward") or {}
    inner, bias = _up(ffn, width, 1.3), flag(ffn, "bias", False)
    shapes |= biased("ffn.proj_up", (2 * inner, width), bias) | biased("ffn.proj_down", (width, inner), bias)
    return shapes | {"ffn_norm.weight": (width,)}


def _up(own: Config, width: int, factor: float) -> int:
    """The width of an up-projection (`UpProjConfigMixin` of the package)."""
    multiple = _integer(own, "round_proj_up_to_multiple_of", 64)
    parts = number(own, "proj_factor", factor) * width / multiple
    return multiple * (math.ceil(parts) if flag(own, "round_proj_up_dim_up", True) else math.floor(parts))


def _either(config: Config, keys: tuple[str, str], default: int | None, most: int = LARGEST_WIDTH) -> int:
    """A size that two names may state; the first is the one that the training meant."""
    key = next((key for key in keys if config.get(key) is not None), keys[0])
    return _integer(config, key, default, most)


def _integer(
    config: Mapping[str, Any], key: str, default: int | None, most: int = LARGEST_WIDTH, least: int = 1
) -> int:
    """A whole number within reason; CheckpointError for another, or none where there is no default."""
    value = config.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(
            f"expected {key} in the config as a number up to {most:,}, got {shown(value)}; correct it"
        )
    return value
