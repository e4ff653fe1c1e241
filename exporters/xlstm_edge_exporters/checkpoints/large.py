"""xLSTM-Large: the `xlstm` package's form (xlstm_large), its bare blocks (xlstm_large_stack), Hugging Face's (xlstm_hf).

Same mathematics and almost the same keys. Sources: `xlstm/xlstm_large/model.py`,
`transformers/models/xlstm/modeling_xlstm.py`. Dimensions come from tensor shapes: a Hugging Face config that gives only
`embedding_dim` and `num_blocks` is read as its author meant it.
"""

import re

from xlstm_edge_runtime.errors import CheckpointError, escaped

from ..spec import MLSTM, Block, FeedForward, ModelSpec, Norm
from ..weights import Stored, Weight, concat
from .base import Canonical, Config, Shapes, agree, biased, count_blocks, flag, number
from .large_config import agree_either, check_config, require

BLOCK = re.compile(r"backbone\.blocks\.([0-9]+)\.")


def load_package(stored: Stored, config: Config) -> Canonical:
    """xlstm_large: config.yaml with the fields of xLSTMLargeConfig."""
    require(config, "embedding_dim", "num_heads", "num_blocks", "vocab_size")
    if "lm_head.weight" not in stored:
        raise CheckpointError(f"expected lm_head.weight, got a checkpoint without it; {_alone(stored)}")
    return _load(
        stored, config, "xlstm_large", embedding="embedding.weight", out_norm=flag(config, "add_out_norm", True)
    )


def load_stack(stored: Stored, config: Config, *, alone: bool = True, hugging_face: bool = False) -> Canonical:
    """xlstm_large_stack: the blocks of xLSTM-Large alone, and its out_norm if the config has one: float vectors in and out.

    In a `hugging_face` model the out_norm always exists and never has a bias.
    """
    require(config, "num_heads", "num_blocks" if config.get("num_hidden_layers") is None else "num_hidden_layers")
    out_norm = hugging_face or flag(config, "add_out_norm", True)
    return _load(
        stored,
        config,
        "xlstm_large_stack",
        embedding=None,
        out_norm=out_norm,
        shared=not alone,
        plain_norm=hugging_face,
    )


def load_hugging_face(stored: Stored, config: Config) -> Canonical:
    """xlstm_hf: out_norm always exists, never has a bias; a missing head is the embedding only if the config says so."""
    return _load(stored, config, "xlstm_hf", embedding="backbone.embeddings.weight", out_norm=True, plain_norm=True)


def _load(
    stored: Stored,
    config: Config,
    family: str,
    *,
    embedding: str | None,
    out_norm: bool,
    shared: bool = False,
    plain_norm: bool = False,
) -> Canonical:
    ignored = check_config(config, shared=shared)
    count = count_blocks({match[1] for name in stored.names if (match := BLOCK.match(name))})
    width = stored.shape("backbone.blocks.0.norm_mlstm.weight", 1)[0]
    vocab = None if embedding is None else stored.shape(embedding, 2)[0]
    heads = stored.shape(_gate_name(stored), 2)[0] // (2 if _fused(stored) else 1)
    agree(config, "num_heads", heads)
    agree_either(config, ("embedding_dim", "hidden_size"), width)
    agree_either(config, ("num_blocks", "num_hidden_layers"), count)
    if vocab is not None:
        agree(config, "vocab_size", vocab)
    bias, tied = flag(config, "use_bias", False), family == "xlstm_hf" and _tied(stored, config)
    expected: Shapes = {}
    if embedding is not None and vocab is not None:
        expected = {name: (vocab, width) for name in (embedding, "lm_head.weight") if not (tied and name != embedding)}
    if out_norm:
        expected |= biased("backbone.out_norm", (width,), bias and not plain_norm)
    shapes = [_block_shapes(stored, i, width, heads, bias) for i in range(count)]
    for block in shapes:
        expected |= block
    stored.audit_names(expected)
    stored.audit_shapes(expected)
    spec, weights = _canonical(
        stored, config, family, embedding, heads, shapes, tied=tied, out_norm=_out_norm(config, out_norm, plain_norm)
    )
    return Canonical(spec, weights, tuple(ignored))


def _tied(stored: Stored, config: Config) -> bool:
    """A head that is not in the file is the embedding if the config says so; the form's default is that it is not."""
    stored.refuse_odd("lm_head.weight")
    if "lm_head.weight" in stored:
        return False
    if not flag(config, "tie_word_embeddings", False):
        raise CheckpointError(
            "expected lm_head.weight, got a checkpoint without it and a config that does not tie it to the embedding; "
            + _alone(stored)
        )
    return True


def _alone(stored: Stored) -> str:
    stack = stored.label("backbone.blocks.0.norm_mlstm.weight").removesuffix("blocks.0.norm_mlstm.weight")
    return (
        f"export the complete checkpoint with its own config, or pass --prefix {escaped(stack)} if only its stack of float "
        "vectors is meant"
    )


def _canonical(
    stored: Stored,
    config: Config,
    family: str,
    embedding: str | None,
    heads: int,
    shapes: list[Shapes],
    *,
    tied: bool,
    out_norm: Norm | None,
) -> tuple[ModelSpec, dict[str, Weight]]:
    cap = _cap(config, "gate_soft_cap", 15.0)
    weights = {} if embedding is None else {"embedding.weight": stored[embedding]}
    for index in range(len(shapes)):
        block = _block_weights(stored, f"backbone.blocks.{index}.", cap)
        weights |= {f"blocks.{index}.{name}": weight for name, weight in block.items()}
    if embedding is not None and not tied:
        weights["head.weight"] = stored["lm_head.weight"]
    if out_norm is not None:
        weights |= _affine(stored, "norm", "backbone.out_norm", out_norm.bias)
    spec = ModelSpec(
        family=family,
        width=stored["backbone.blocks.0.norm_mlstm.weight"].shape[0],
        blocks=tuple(_block_spec(config, index, heads, block) for index, block in enumerate(shapes)),
        norm=out_norm,
        vocab_size=None if embedding is None else stored[embedding].shape[0],
        tied=tied,
        logit_soft_cap=None if embedding is None else _cap(config, "output_logit_soft_cap", 30.0),
    )
    return spec, weights


def _out_norm(config: Config, exists: bool, plain: bool) -> Norm | None:
    bias = flag(config, "use_bias", False) and not plain
    return Norm(kind="rms", eps=number(config, "norm_eps", 1e-6), bias=bias) if exists else None


def _block_spec(config: Config, index: int, heads: int, shapes: Shapes) -> Block:
    prefix = f"backbone.blocks.{index}."
    bias, eps = flag(config, "use_bias", False), number(config, "norm_eps", 1e-6)
    v_width, ffn_width = (shapes[prefix + n][1] for n in ("mlstm_layer.out_proj.weight", "ffn.proj_down.weight"))
    mixer = MLSTM(
        heads=heads,
        qk_width=_qk_width(shapes, prefix, v_width),
        v_width=v_width,
        gate_soft_cap=_cap(config, "gate_soft_cap", 15.0),
        head_norm=Norm(kind="layer", eps=eps, bias=bias, weight=bias),
        bias=bias,
        eps=number(config, "eps", 1e-6),
    )
    rms = Norm(kind="rms", eps=eps, bias=bias)
    ffn = FeedForward(width=ffn_width, activation="silu", bias=bias)
    return Block(norm=rms, mixer=mixer, ffn_norm=rms, ffn=ffn)


def block_shapes(
    prefix: str, *, width: int, heads: int, qk: int, v: int, ffn: int, bias: bool, fused: bool = False
) -> Shapes:
    """Every tensor of one block, its weights single or fused, by the names that begin with `prefix` in the files."""
    layer, up = prefix + "mlstm_layer.", prefix + "ffn."
    rows = {"qkv_opreact": 2 * qk + 2 * v} if fused else {"q": qk, "k": qk, "v": v, "ogate_preact": v}
    gates = {"ifgate_preact": 2 * heads} if fused else {"igate_preact": heads, "fgate_preact": heads}
    ups = {"proj_up_gate_z": 2 * ffn} if fused else {"proj_up_gate": ffn, "proj_up": ffn}
    shapes = biased(prefix + "norm_mlstm", (width,), bias) | biased(prefix + "norm_ffn", (width,), bias)
    shapes |= biased(layer + "multihead_norm", (v,), bias) | biased(layer + "out_proj", (width, v), bias)
    shapes |= biased(up + "proj_down", (width, ffn), bias)
    for owner, sizes, has_bias in ((layer, rows, bias), (layer, gates, True), (up, ups, bias)):
        for name, size in sizes.items():
            shapes |= biased(owner + name, (size, width), has_bias)
    return shapes


def _block_shapes(stored: Stored, index: int, width: int, heads: int, bias: bool) -> Shapes:
    """Those of a stored block; the free widths are read from the two output projections and the query."""
    prefix = f"backbone.blocks.{index}."
    layer = prefix + "mlstm_layer."
    v, ffn = stored.shape(layer + "out_proj.weight", 2)[1], stored.shape(prefix + "ffn.proj_down.weight", 2)[1]
    fused = layer + "qkv_opreact.weight" in stored
    rows = stored.shape(layer + ("qkv_opreact.weight" if fused else "q.weight"), 2)[0]
    qk = (rows - 2 * v) // 2 if fused else rows
    if qk <= 0 or qk % heads or v % heads:
        raise CheckpointError(
            f"expected q, k and v widths divisible by {heads} heads, got {qk} and {v}; use the config of this training"
        )
    return block_shapes(prefix, width=width, heads=heads, qk=qk, v=v, ffn=ffn, bias=bias, fused=fused)


def _block_weights(stored: Stored, prefix: str, cap: float | None) -> dict[str, Weight]:
    layer, ffn = prefix + "mlstm_layer.", prefix + "ffn."
    fused = layer + "qkv_opreact.weight" in stored
    qkvo = ["qkv_opreact"] if fused else ["q", "k", "v", "ogate_preact"]
    gate_up = ["proj_up_gate_z"] if fused else ["proj_up_gate", "proj_up"]
    weights = {"mixer.gates.weight": _gates(stored, layer, "weight", cap).transpose()}
    weights["mixer.gates.bias"] = _gates(stored, layer, "bias", cap)
    for name, sources in {
        "mixer.qkvo": [layer + s for s in qkvo],
        "mixer.out": [layer + "out_proj"],
        "ffn.gate_up": [ffn + s for s in gate_up],
        "ffn.down": [ffn + "proj_down"],
    }.items():
        weights[name + ".weight"] = concat([stored[s + ".weight"] for s in sources]).transpose()
        if sources[0] + ".bias" in stored:
            weights[name + ".bias"] = concat([stored[s + ".bias"] for s in sources])
    norms = {"norm": "norm_mlstm", "ffn_norm": "norm_ffn"}
    if layer + "multihead_norm.bias" in stored:
        norms["mixer.head_norm"] = "mlstm_layer.multihead_norm"
    else:  # a plain weight commutes with the output gate, so it goes into the rows of the output projection
        weights["mixer.out.weight"] = weights["mixer.out.weight"].scale_rows(stored[layer + "multihead_norm.weight"])
    for name, source in norms.items():
        weights |= _affine(stored, name, prefix + source, prefix + source + ".bias" in stored)
    return weights


def _gates(stored: Stored, layer: str, part: str, cap: float | None) -> Weight:
    """[i | -f] rows, divided by the soft cap so that the graph's tanh needs no division."""
    if layer + "ifgate_preact." + part in stored:
        both = stored[layer + "ifgate_preact." + part]
        heads = both.shape[0] // 2
        i, f = (_rows(both, slice(0, heads)), _rows(both, slice(heads, None)))
    else:
        i, f = stored[layer + "igate_preact." + part], stored[layer + "fgate_preact." + part]
    gates = concat([i, -f])
    return gates if cap is None else gates / cap


def _rows(weight: Weight, rows: slice) -> Weight:
    count = len(range(*rows.indices(weight.shape[0])))
    return Weight((count, *weight.shape[1:]), lambda: weight.load()[rows])


def _affine(stored: Stored, name: str, source: str, bias: bool) -> dict[str, Weight]:
    parts = ("weight", "bias") if bias else ("weight",)
    return {f"{name}.{part}": stored[f"{source}.{part}"] for part in parts}


def _qk_width(shapes: Shapes, prefix: str, v_width: int) -> int:
    fused = shapes.get(prefix + "mlstm_layer.qkv_opreact.weight")
    return (fused[0] - 2 * v_width) // 2 if fused else shapes[prefix + "mlstm_layer.q.weight"][0]


def _fused(stored: Stored) -> bool:
    return "backbone.blocks.0.mlstm_layer.qkv_opreact.weight" in stored


def _gate_name(stored: Stored) -> str:
    return f"backbone.blocks.0.mlstm_layer.{'ifgate' if _fused(stored) else 'igate'}_preact.weight"


def _cap(config: Config, key: str, default: float) -> float | None:
    return None if key in config and config[key] is None else number(config, key, default)
