"""xLSTM v1: the `xlstm` package's language model (xlstm_lm, xlstm_lm_hf) and bare block stack (xlstm_stack).

Sources: `xlstm/xlstm_lm_model.py`, `xlstm/blocks/{mlstm,slstm}/layer.py`, `xlstm/blocks/slstm/cell.py`. Three traps live
here: norm weights are stored less one; the sLSTM module called fgate makes the input gate and igate the forget gate;
the sLSTM's recurrent kernel and bias come in several layouts (`recurrent`).
"""

import re

from xlstm_edge_runtime.errors import CheckpointError, shown

from ..spec import SLSTM, Block, FeedForward, ModelSpec, Norm, UpMLSTM
from ..weights import Stored, Weight, concat, ones, stack
from . import recurrent
from .base import Canonical, Config, agree, count_blocks, flag, section
from .v1_config import check_config, context_length

ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "relu^2": "relu^2",
    "sigmoid": "sigmoid",
    "swish": "silu",
    "selu": "selu",
}
STEMS = {"xlstm_lm": "xlstm_block_stack.", "xlstm_lm_hf": "xlstm_block_stack.", "xlstm_stack": ""}
BLOCK = re.compile(r"blocks\.([0-9]+)\.xlstm\.(mlstm|slstm)_cell\.")
ANY_BLOCK = re.compile(r"blocks\.([0-9]+)\.")
LAYER_NORM = Norm(kind="layer", eps=1e-5)  # fixed in the reference, head norms too
Shapes = dict[str, tuple[int, ...]]


def load(stored: Stored, config: Config, family: str, *, alone: bool = True) -> Canonical:
    """Canonical form of a v1 checkpoint; `family` is one of STEMS, `alone` whether no tensors were left out."""
    if (kind := config.get("type", "xLSTMLMModel")) != "xLSTMLMModel":
        raise CheckpointError(
            f"expected type xLSTMLMModel, got {shown(kind)}, another model of the same trainer; not an xLSTM"
        )
    stem = STEMS[family]
    kinds, count = _find_blocks(stored, stem)
    width = stored.shape(f"{stem}blocks.0.xlstm_norm.weight", 1)[0]
    ignored = check_config(config, kinds, count, width, shared=family == "xlstm_stack" and not alone)
    blocks = [_Block(stored, config, f"{stem}blocks.{i}.", width, kinds.get(i, "mlstm")) for i in range(count)]
    vocab, ends = _ends(stored, config, family, width, alone)
    expected: Shapes = dict(ends.values())
    for block in blocks:
        expected |= block.shapes
    post = flag(config, "add_post_blocks_norm", True)
    if post:
        expected[f"{stem}post_blocks_norm.weight"] = (width,)
    stored.audit_names(expected)
    stored.audit_shapes(expected)
    weights = {f"blocks.{i}.{name}": w for i, block in enumerate(blocks) for name, w in block.weights().items()}
    if post:
        weights["norm.weight"] = stored[f"{stem}post_blocks_norm.weight"] + 1.0
    weights |= {name: stored[source] for name, (source, _) in ends.items()}
    spec = ModelSpec(
        family=family,
        width=width,
        blocks=tuple(block.spec() for block in blocks),
        norm=LAYER_NORM if post else None,
        vocab_size=vocab,
        tied=vocab is not None and "head.weight" not in ends,
        context_length=context_length(config),
    )
    return Canonical(spec, weights, tuple(ignored))


def _find_blocks(stored: Stored, stem: str) -> tuple[dict[int, str], int]:
    """The kind of each block, and how many there are."""
    names = [name.removeprefix(stem) for name in stored.names if name.startswith(stem)]
    count = count_blocks({match[1] for name in names if (match := ANY_BLOCK.match(name))})
    return {int(match[1]): match[2] for name in names if (match := BLOCK.match(name))}, count


def _ends(
    stored: Stored, config: Config, family: str, width: int, alone: bool
) -> tuple[int | None, dict[str, tuple[str, tuple[int, ...]]]]:
    """(vocabulary size, canonical name -> (stored name, shape)) of embedding and head; (None, {}) for a bare stack.

    xlstm_lm_hf ties always, xlstm_lm by its config. A safetensors file of a tied model holds one of the two names, a
    torch state dict both; then they must be equal where the config ties them: the package would overwrite one with the other.
    """
    if family == "xlstm_stack":
        return None, {}
    embedding, head = "token_embedding.weight", "lm_head.weight"
    stored.refuse_odd(embedding)
    stored.refuse_odd(head)
    stated = flag(config, "tie_weights", False)
    tied = (
        family == "xlstm_lm_hf" and alone and embedding in stored
    ) or stated  # that wrapper keeps the embedding's name
    if not tied and (embedding in stored) != (head in stored):
        there, missing = (embedding, head) if embedding in stored else (head, embedding)
        raise CheckpointError(
            f"expected {stored.label(missing)}, got only {stored.label(there)} and a config that does not tie the two; "
            "export the complete checkpoint with its own config"
        )
    if tied and embedding not in stored:
        embedding = head
    vocab = stored.shape(embedding, 2)[0]
    agree(config, "vocab_size", vocab)
    ends: dict[str, tuple[str, tuple[int, ...]]] = {"embedding.weight": (embedding, (vocab, width))}
    apart = tied and embedding != head and head in stored and not stored.equal(embedding, head)
    if stated and apart:
        raise CheckpointError(
            f"expected {stored.label(embedding)} and {stored.label(head)} as one matrix, which the config ties, got two; "
            "set tie_weights to what the training had"
        )
    if not tied or apart:
        ends["head.weight"] = (head, (vocab, width))
    elif head in stored and embedding != head:
        stored.drop(head)
    return vocab, ends


class _Block:
    """One block: its dimensions, read from the shapes, then expected tensors, spec and canonical weights."""

    def __init__(self, stored: Stored, config: Config, prefix: str, width: int, kind: str) -> None:
        self.stored, self.config, self.prefix, self.width, self.kind = stored, config, prefix, width, kind
        self.layer = prefix + "xlstm."
        self.shapes: Shapes = {prefix + "xlstm_norm.weight": (width,)}
        if kind == "mlstm":
            self._measure_mlstm()
        else:
            self._measure_slstm()

    def __getitem__(self, name: str) -> Weight:
        return self.stored[self.layer + name]

    def _measure_mlstm(self) -> None:
        layer, bias = self.layer, flag(self.config, "bias", False)
        inner = self.stored.shape(layer + "proj_down.weight", 2)[1]
        block = self.stored.shape(layer + "q_proj.weight", 3)[1]
        heads = self.stored.shape(layer + "mlstm_cell.igate.weight", 2)[0]
        taps = self.stored.shape(layer + "conv1d.conv.weight", 3)[2]
        if inner % heads or inner % block:
            raise CheckpointError(
                f"expected {layer} with {inner} channels divisible by {heads} heads and {block}-wide projections, "
                "got a remainder; check the checkpoint"
            )
        mlstm = section(self.config.get("mlstm_block") or {}, "mlstm") or {}
        agree(mlstm, "num_heads", heads)
        agree(mlstm, "conv1d_kernel_size", taps)
        if taps < 2:
            raise CheckpointError(
                f"expected mLSTM conv1d_kernel_size of 2 or more, got {taps}; the reference fails on it"
            )
        self.mixer: UpMLSTM | SLSTM = UpMLSTM(
            inner=inner, heads=heads, conv_kernel=taps, qkv_block=block, head_norm=LAYER_NORM, bias=bias
        )
        self.ffn: FeedForward | None = None
        self.shapes |= self._mlstm_shapes(self.mixer)

    def _mlstm_shapes(self, mixer: UpMLSTM) -> Shapes:
        layer, width, inner, heads = self.layer, self.width, mixer.inner, mixer.heads
        biased = {"proj_up": 2 * inner, "q_proj": inner, "k_proj": inner, "v_proj": inner, "proj_down": width}
        shapes: Shapes = {f"{layer}{name}.bias": (size,) for name, size in biased.items() if mixer.bias}
        headwise = (inner // mixer.qkv_block, mixer.qkv_block, mixer.qkv_block)
        shapes |= {f"{layer}{name}.weight": headwise for name in ("q_proj", "k_proj", "v_proj")}
        for gate in ("igate", "fgate"):
            shapes[f"{layer}mlstm_cell.{gate}.weight"] = (heads, 3 * inner)
            shapes[f"{layer}mlstm_cell.{gate}.bias"] = (heads,)
        return shapes | {
            layer + "proj_up.weight": (2 * inner, width),
            layer + "conv1d.conv.weight": (inner, 1, mixer.conv_kernel),
            layer + "conv1d.conv.bias": (inner,),
            layer + "mlstm_cell.outnorm.weight": (inner,),
            layer + "learnable_skip": (inner,),
            layer + "proj_down.weight": (width, inner),
        }

    def _measure_slstm(self) -> None:
        layer, width = self.layer, self.width
        slstm = section(self.config.get("slstm_block") or {}, "slstm") or {}
        heads = self.stored.shape(layer + "igate.weight", 3)[0]
        if width % heads:
            raise CheckpointError(f"expected a width divisible by {heads} heads, got {width}; check the checkpoint")
        dh = width // heads
        self.layout = recurrent.layout_of(self.stored, layer, heads, dh)
        taps = self.stored.shape(layer + "conv1d.conv.weight", 3)[2] if slstm.get("conv1d_kernel_size", 4) else 0
        agree(slstm, "num_heads", heads)
        agree(slstm, "conv1d_kernel_size", taps)
        self.weighted_norm = flag(slstm, "group_norm_weight", True)
        self.shapes |= {f"{layer}{gate}.weight": (heads, dh, dh) for gate in ("fgate", "igate", "zgate", "ogate")}
        self.shapes |= recurrent.shapes(layer, self.layout, heads, dh)
        if taps:
            self.shapes |= {layer + "conv1d.conv.weight": (width, 1, taps), layer + "conv1d.conv.bias": (width,)}
        if self.weighted_norm:
            self.shapes[layer + "group_norm.weight"] = (width,)
        self.mixer = SLSTM(heads=heads, width=width, conv_kernel=taps, head_norm=LAYER_NORM)
        self.ffn = self._measure_ffn()

    def _measure_ffn(self) -> FeedForward | None:
        block = self.config.get("slstm_block") or {}
        if "feedforward" in block and block["feedforward"] is None:
            return None
        ffn = section(block, "feedforward") or {}
        activation = ACTIVATIONS.get(str(ffn.get("act_fn", "gelu")))
        if activation is None:
            raise CheckpointError(
                f"expected act_fn one of {', '.join(ACTIVATIONS)}, got {shown(ffn['act_fn'])}; not supported"
            )
        bias, width = flag(ffn, "bias", False), self.stored.shape(self.prefix + "ffn.proj_down.weight", 2)[1]
        self.shapes |= {
            self.prefix + "ffn_norm.weight": (self.width,),
            self.prefix + "ffn.proj_up.weight": (2 * width, self.width),
            self.prefix + "ffn.proj_down.weight": (self.width, width),
        }
        if bias:
            self.shapes |= {
                self.prefix + "ffn.proj_up.bias": (2 * width,),
                self.prefix + "ffn.proj_down.bias": (self.width,),
            }
        return FeedForward(width=width, activation=activation, bias=bias)  # type: ignore[arg-type]  # values of ACTIVATIONS

    def spec(self) -> Block:
        """Canonical spec of the block."""
        return Block(norm=LAYER_NORM, mixer=self.mixer, ffn_norm=LAYER_NORM if self.ffn else None, ffn=self.ffn)

    def weights(self) -> dict[str, Weight]:
        """Canonical weights of the block, without its prefix."""
        weights = {"norm.weight": self.stored[self.prefix + "xlstm_norm.weight"] + 1.0}
        mixer = self._mlstm_weights() if self.kind == "mlstm" else self._slstm_weights()
        weights |= {f"mixer.{name}": weight for name, weight in mixer.items()}
        if self.ffn is not None:
            weights["ffn_norm.weight"] = self.stored[self.prefix + "ffn_norm.weight"] + 1.0
            for name, source in (("gate_up", "proj_up"), ("down", "proj_down")):
                weights |= _dense(self.stored, f"ffn.{name}", f"{self.prefix}ffn.{source}", self.ffn.bias)
        return weights

    def _mlstm_weights(self) -> dict[str, Weight]:
        assert isinstance(self.mixer, UpMLSTM)
        inner, block = self.mixer.inner, self.mixer.qkv_block
        projections = [self[f"{name}_proj.weight"].reshape(inner, block, 1) for name in "qkv"]
        weights = {
            "conv.weight": self["conv1d.conv.weight"],
            "conv.bias": self["conv1d.conv.bias"],
            "qkv.weight": concat(projections),
            "gates.weight": concat([self["mlstm_cell.igate.weight"], -self["mlstm_cell.fgate.weight"]]).transpose(),
            "gates.bias": concat([self["mlstm_cell.igate.bias"], -self["mlstm_cell.fgate.bias"]]),
            "head_norm.weight": self["mlstm_cell.outnorm.weight"] + 1.0,
            "skip": self["learnable_skip"].reshape(inner, 1),
        }
        for name in ("up", "down"):
            weights |= _dense(self.stored, name, f"{self.layer}proj_{name}", self.mixer.bias)
        if self.mixer.bias:
            weights["qkv.bias"] = concat([self[f"{name}_proj.bias"] for name in "qkv"])
        return weights

    def _slstm_weights(self) -> dict[str, Weight]:
        assert isinstance(self.mixer, SLSTM)
        width, heads, dh = self.width, self.mixer.heads, self.mixer.head_width
        i, f, z, o = (self[f"{gate}.weight"] for gate in ("fgate", "igate", "zgate", "ogate"))  # the swap of the names
        gates = [stack(pair, 1).reshape(2 * width, dh, 1) for pair in ((i, -f), (z, o))]
        kernel, bias = recurrent.canonical(self.stored, layer=self.layer, layout=self.layout, heads=heads, dh=dh)
        weights = {
            "gates.weight": concat(gates),
            "gates.bias": bias,
            "recurrent": kernel,
            "head_norm.weight": self["group_norm.weight"] + 1.0 if self.weighted_norm else ones(width),
        }
        if self.mixer.conv_kernel:
            weights |= {"conv.weight": self["conv1d.conv.weight"], "conv.bias": self["conv1d.conv.bias"]}
        return weights


def _dense(stored: Stored, name: str, source: str, bias: bool) -> dict[str, Weight]:
    weights = {name + ".weight": stored[source + ".weight"].transpose()}
    return weights | ({name + ".bias": stored[source + ".bias"]} if bias else {})
