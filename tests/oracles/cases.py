"""The shapes that parity is shown on: odd on purpose, tiny so that all of them run in seconds."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One checkpoint to make: family, the official config, and how to store it."""

    name: str
    family: str
    config: dict[str, Any]
    store: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def v1(width: int, blocks: int, slstm_at: Any, vocab: int | None, **options: Any) -> dict[str, Any]:
    """A v1 config; options prefixed m_, s_, f_ go to the mLSTM, the sLSTM and its feed-forward."""
    sub = {p: {k[2:]: v for k, v in options.items() if k.startswith(p)} for p in ("m_", "s_", "f_")}
    top = {k: v for k, v in options.items() if k[:2] not in sub}
    config: dict[str, Any] = {"embedding_dim": width, "num_blocks": blocks, "context_length": 512, "slstm_at": slstm_at}
    if vocab is not None:
        config["vocab_size"] = vocab
    if slstm_at != "all":
        config["mlstm_block"] = {"mlstm": {"num_heads": 4, **sub["m_"]}}
    if slstm_at:
        config["slstm_block"] = {"slstm": {"num_heads": 4, **sub["s_"]}, "feedforward": {"act_fn": "gelu", **sub["f_"]}}
        if options.get("no_ffn"):
            config["slstm_block"]["feedforward"] = None
    top.pop("no_ffn", None)
    return config | top


def large(width: int, blocks: int, heads: int, vocab: int, **options: Any) -> dict[str, Any]:
    """An xLSTM-Large config."""
    return {"embedding_dim": width, "num_blocks": blocks, "num_heads": heads, "vocab_size": vocab, **options}


CASES = [
    Case("a1-mixed", "A1", v1(64, 3, [1], 97)),
    Case(
        "a1-one-head", "A1", v1(24, 2, [0], 50, m_num_heads=1, s_num_heads=1, m_conv1d_kernel_size=2, tie_weights=True)
    ),
    Case(
        "a1-three-heads",
        "A1",
        v1(
            36,
            3,
            [2],
            61,
            m_num_heads=3,
            s_num_heads=3,
            bias=True,
            s_conv1d_kernel_size=0,
            f_bias=True,
            f_act_fn="swish",
            m_round_proj_up_to_multiple_of=12,
        ),
        {"slstm_layout": "cuda"},
    ),
    Case(
        "a1-five-heads",
        "A1",
        v1(
            40,
            2,
            [1],
            33,
            m_num_heads=5,
            s_num_heads=5,
            m_conv1d_kernel_size=3,
            s_conv1d_kernel_size=2,
            m_proj_factor=1.5,
            m_round_proj_up_to_multiple_of=20,
            m_qkv_proj_blocksize=5,
            f_act_fn="relu^2",
        ),
        {"format": "pt"},
    ),
    Case("a1-all-slstm", "A1", v1(48, 2, "all", 70, s_num_heads=6, s_conv1d_kernel_size=5, f_act_fn="relu")),
    Case("a1-no-slstm", "A1", v1(32, 2, [], 300, m_num_heads=2, m_conv1d_kernel_size=5, m_qkv_proj_blocksize=8)),
    Case(
        "a1-bare",
        "A1",
        v1(
            32,
            2,
            [1],
            17,
            no_ffn=True,
            s_group_norm_weight=False,
            s_conv1d_kernel_size=1,
            add_post_blocks_norm=False,
            m_qkv_proj_blocksize=1,
        ),
    ),
    Case(
        "a1-selu",
        "A1",
        v1(32, 1, [0], 40, s_num_heads=2, s_conv1d_kernel_size=3, f_act_fn="selu"),
        {"slstm_layout": "cuda"},
    ),
    Case(
        "a1-sigmoid", "A1", v1(20, 2, [0, 1], 40, s_num_heads=2, f_act_fn="sigmoid", tie_weights=True), {"format": "pt"}
    ),
    Case("a2-tied", "A2", v1(32, 2, [1], 80)),
    Case("a2-mlstm", "A2", v1(24, 2, [], 50, m_num_heads=3, m_round_proj_up_to_multiple_of=24)),
    Case("a3-mixed", "A3", v1(28, 3, [0, 2], None, m_num_heads=2, s_num_heads=7)),
    Case("a3-one-head", "A3", v1(12, 1, [], None, m_num_heads=1, m_qkv_proj_blocksize=64)),
    Case("a3-slstm", "A3", v1(30, 2, "all", None, s_num_heads=1, no_ffn=True), {"slstm_layout": "cuda"}),
    Case("b-plain", "B", large(64, 3, 4, 120)),
    Case("b-one-head", "B", large(24, 2, 1, 40, qk_dim_factor=1.0, norm_eps=1e-5, eps=1e-3)),
    Case("b-three-heads", "B", large(36, 2, 3, 50, use_bias=True, v_dim_factor=2.0, gate_soft_cap=7.0), {"shards": 3}),
    Case("b-fused", "B", large(40, 2, 5, 64, weight_mode="fused", use_bias=True, add_out_norm=False)),
    Case("b-wide-vocab", "B", large(32, 1, 2, 300, output_logit_soft_cap=11.5, ffn_proj_factor=1.3)),
    Case("c-plain", "C", large(128, 2, 4, 90)),
    Case("c-one-head", "C", large(128, 2, 1, 40, use_bias=True), {"shards": 2}),
    Case("c-tied", "C", large(128, 1, 2, 50), {"tied": True}),
    Case("c-old-names", "C", large(192, 1, 3, 64, qk_dim_factor=1.0, norm_eps=1e-5), {"old_names": True}),
]
