"""The shapes that parity is shown on: odd on purpose, tiny so that all of them run in seconds."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

V1 = ("xlstm_lm", "xlstm_lm_hf", "xlstm_stack")  # families of xLSTM v1


@dataclass(frozen=True)
class Case:
    """One checkpoint to make.

    `config` is what the family's model class takes. `store` is how the files are written:
    format "safetensors" or "pt"; slstm_layout "vanilla" or "cuda"; shards, how many at least; keep, the one name of a tied
    matrix that is stored; head False drops lm_head (it is the embedding then); old_names leaves only embedding_dim and
    num_blocks in config.json; extra, more config keys that only the file has.
    """

    name: str
    family: str
    config: dict[str, Any]
    store: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def v1(width: int, blocks: int, slstm_at: list[int] | str, vocab: int | None, **options: Any) -> dict[str, Any]:
    """A v1 config; options prefixed m_, s_, f_ go to the mLSTM, the sLSTM and its feed-forward; ffn=False drops it."""
    sub = {p: {key[2:]: value for key, value in options.items() if key.startswith(p)} for p in ("m_", "s_", "f_")}
    top = {key: value for key, value in options.items() if key[:2] not in sub and key != "ffn"}
    config: dict[str, Any] = {"embedding_dim": width, "num_blocks": blocks, "context_length": 512, "slstm_at": slstm_at}
    if vocab is not None:
        config["vocab_size"] = vocab
    feed_forward = {"act_fn": "gelu", **sub["f_"]} if options.get("ffn", True) else None
    slstm_block = {"slstm": {"num_heads": 4, **sub["s_"]}, "feedforward": feed_forward}
    config["mlstm_block"] = None if slstm_at == "all" else {"mlstm": {"num_heads": 4, **sub["m_"]}}
    config["slstm_block"] = slstm_block if slstm_at else None
    return config | top


def large(width: int, blocks: int, heads: int, vocab: int, **options: Any) -> dict[str, Any]:
    """An xLSTM-Large config."""
    return {"embedding_dim": width, "num_blocks": blocks, "num_heads": heads, "vocab_size": vocab, **options}


def sequence_of(case: Case, length: int, seed: int = 3) -> NDArray[Any]:
    """Random ids (T,), or for a bare block stack standard normal float32 vectors (T, D)."""
    rng = np.random.default_rng(seed)
    if "vocab_size" in case.config:
        return rng.integers(0, case.config["vocab_size"], length)
    return rng.standard_normal((length, case.config["embedding_dim"])).astype(np.float32)


_ONE_HEAD = v1(
    24, 2, [0], 50, m_num_heads=1, s_num_heads=1, m_conv1d_kernel_size=2, m_qkv_proj_blocksize=2, tie_weights=True
)
_THREE_HEADS = v1(
    36, 3, [2], 61, m_num_heads=3, s_num_heads=3, bias=True, s_conv1d_kernel_size=0, f_bias=True, f_act_fn="swish",
    m_round_proj_up_to_multiple_of=12,
)  # fmt: skip
_FIVE_HEADS = v1(
    35, 2, [1], 33, m_num_heads=5, s_num_heads=5, m_conv1d_kernel_size=3, s_conv1d_kernel_size=2,
    m_proj_factor=1.5, m_round_proj_up_to_multiple_of=20, m_qkv_proj_blocksize=5, f_act_fn="relu^2",
)  # fmt: skip
_BARE = v1(
    32, 2, [1], 17, ffn=False, s_group_norm_weight=False, s_conv1d_kernel_size=1, add_post_blocks_norm=False,
    m_qkv_proj_blocksize=1,
)  # fmt: skip

CASES = [
    Case("lm-mixed", "xlstm_lm", v1(64, 3, [1], 97)),
    Case("lm-one-head", "xlstm_lm", _ONE_HEAD, {"keep": "lm_head.weight"}),
    Case("lm-three-heads", "xlstm_lm", _THREE_HEADS, {"slstm_layout": "cuda"}),
    Case("lm-five-heads", "xlstm_lm", _FIVE_HEADS, {"format": "pt"}),
    Case(
        "lm-all-slstm", "xlstm_lm", v1(48, 2, "all", 70, s_num_heads=6, s_conv1d_kernel_size=5, f_act_fn="relu"),
        {"extra": {"type": "xLSTMLMModel"}},
    ),
    Case("lm-no-slstm", "xlstm_lm", v1(32, 2, [], 300, m_num_heads=2, m_conv1d_kernel_size=5, m_qkv_proj_blocksize=8)),
    Case("lm-bare", "xlstm_lm", _BARE),
    Case("lm-wide-head", "xlstm_lm", v1(64, 2, [1], 45, m_num_heads=1)),
    Case(
        "lm-selu", "xlstm_lm", v1(32, 1, [0], 40, s_num_heads=2, s_conv1d_kernel_size=3, f_act_fn="selu", tie_weights=True),
        {"slstm_layout": "cuda", "keep": "token_embedding.weight"},
    ),
    Case(
        "lm-sigmoid", "xlstm_lm", v1(20, 4, [0, 3], 40, s_num_heads=2, f_act_fn="sigmoid", tie_weights=True),
        {"format": "pt"},
    ),
    # The wrapper drops the head whatever tie_weights says.
    Case("lm-hf-tied", "xlstm_lm_hf", v1(32, 2, [1], 80) | {"slstm_block": {}}, {"slstm_layout": "cuda"}),
    Case("lm-hf-mlstm", "xlstm_lm_hf", v1(24, 2, [], 50, m_num_heads=3, m_round_proj_up_to_multiple_of=24, tie_weights=True)),
    Case("stack-mixed", "xlstm_stack", v1(28, 3, [0, 2], None, m_num_heads=2, s_num_heads=7)),
    Case("stack-one-head", "xlstm_stack", v1(12, 1, [], None, m_num_heads=1, m_qkv_proj_blocksize=64)),
    Case("stack-slstm", "xlstm_stack", v1(27, 2, "all", None, s_num_heads=1, ffn=False), {"slstm_layout": "cuda"}),
    Case("large-plain", "xlstm_large", large(64, 3, 4, 120)),
    Case("large-one-head", "xlstm_large", large(25, 2, 1, 40, qk_dim_factor=1.0, norm_eps=1e-5, eps=1e-3)),
    Case(
        "large-three-heads", "xlstm_large",
        large(36, 2, 3, 50, use_bias=True, v_dim_factor=2.0, gate_soft_cap=7.0),
        {"shards": 3},
    ),
    Case("large-fused", "xlstm_large", large(40, 2, 5, 64, weight_mode="fused", use_bias=True, add_out_norm=False)),
    Case("large-wide-vocab", "xlstm_large", large(32, 1, 2, 300, output_logit_soft_cap=11.5, ffn_proj_factor=1.3)),
    Case("large-wide-heads", "xlstm_large", large(320, 1, 2, 50)),
    Case("large-uncapped", "xlstm_large", large(48, 2, 6, 45, gate_soft_cap=None, output_logit_soft_cap=None)),
    Case("hf-plain", "xlstm_hf", large(64, 2, 4, 90, qk_dim_factor=1.0)),
    Case("hf-one-head", "xlstm_hf", large(64, 2, 1, 40, use_bias=True, qk_dim_factor=1.0, v_dim_factor=2.0), {"shards": 2}),
    Case("hf-tied", "xlstm_hf", large(96, 1, 2, 50, qk_dim_factor=0.6667, v_dim_factor=0.6667), {"head": False}),
    Case(
        "hf-old-names", "xlstm_hf", large(96, 1, 3, 64, qk_dim_factor=2.0, v_dim_factor=2.0, norm_eps=1e-5),
        {"old_names": True},
    ),
    Case("hf-odd-widths", "xlstm_hf", large(40, 2, 5, 37)),
]  # fmt: skip
