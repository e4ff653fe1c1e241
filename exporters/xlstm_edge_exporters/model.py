"""The canonical xLSTM: one model for every checkpoint family, in recurrent-step form.

Parameters are laid out for the graph: dense weights (in, out), block-diagonal ones as grouped convolutions of one tap,
projections that share an input fused into one matrix, the forget gate stored negated (softplus(-f) is all the
recurrence needs), 1 + w norms and soft-cap divisors folded in by the loaders. No torch state is hidden in a module:
every state tensor comes in and goes out by name.

Knows nothing of checkpoint families and nothing of ONNX; the operations with several lowerings come in as `Ops`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .ops import Ops
from .spec import MLSTM, SLSTM, Block, FeedForward, ModelSpec, Norm, UpMLSTM

States = Mapping[str, Tensor]
NewStates = dict[str, Tensor]


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)


class Affine(nn.Module):
    """A weight and, where the checkpoint has one, a bias: a dense (in, out) matrix, a norm, a convolution."""

    def __init__(self, shape: tuple[int, ...], bias: int | None = None) -> None:
        super().__init__()
        self.weight = _parameter(*shape)
        self.bias = None if bias is None else _parameter(bias)


def _dense(rows: int, columns: int, bias: bool = True) -> Affine:
    return Affine((rows, columns), columns if bias else None)


def _norm(width: int, spec: Norm) -> Affine:
    return Affine((width,), width if spec.bias else None)


class UpMLSTMLayer(nn.Module):
    """The mLSTM layer of xLSTM v1 (`xlstm/blocks/mlstm/layer.py`)."""

    def __init__(self, spec: UpMLSTM, width: int, ops: Ops) -> None:
        super().__init__()
        inner = spec.inner
        self.spec, self.ops = spec, ops
        self.up = _dense(width, 2 * inner, spec.bias)
        self.conv = Affine((inner, 1, spec.conv_kernel), inner)
        self.qkv = Affine((3 * inner, spec.qkv_block, 1), 3 * inner if spec.bias else None)
        self.gates = _dense(3 * inner, 2 * spec.heads)
        self.head_norm = _norm(inner, spec.head_norm)
        self.skip = _parameter(inner, 1)
        if spec.relative:
            self.offset = _parameter(1, spec.heads)
        self.down = _dense(inner, width, spec.bias)

    def forward(self, u: Tensor, state: States) -> tuple[Tensor, NewStates]:
        """u (B, T, D), state {conv, C, n, m} -> (B, T, D), new state. q, k see the convolved branch, v the raw one."""
        ops, inner = self.ops, self.spec.inner
        x, z = ops.split(ops.linear(u, self.up.weight, self.up.bias), [inner, inner])
        x = x.transpose(1, 2)
        c, window = ops.causal_conv_silu(x, self.conv.weight, _bias(self.conv), state.get("conv"))
        qkv = ops.block_diagonal(torch.cat([c, c, x], 1), self.qkv.weight, self.qkv.bias).transpose(1, 2)
        q, k, v = ops.split(qkv, [inner] * 3)
        h, new = _stabilized(self, q, k, v, ops.linear(qkv, self.gates.weight, self.gates.bias), state)
        h = ops.head_norm(h, self.head_norm.weight, self.head_norm.bias, self.spec.head_norm)
        y = (h + (self.skip * c).transpose(1, 2)) * ops.silu(z)
        return ops.linear(y, self.down.weight, self.down.bias), _with_window(window, **new)


class MLSTMLayer(nn.Module):
    """The mLSTM layer of xLSTM-Large (`xlstm/xlstm_large/model.py`)."""

    def __init__(self, spec: MLSTM, width: int, ops: Ops) -> None:
        super().__init__()
        self.spec, self.ops = spec, ops
        self.qkvo = _dense(width, 2 * spec.qk_width + 2 * spec.v_width, spec.bias)
        self.gates = _dense(width, 2 * spec.heads)
        if spec.relative:
            self.offset = _parameter(1, spec.heads)
        if spec.relative and spec.gate_soft_cap is not None:
            self.gate_scale, self.gate_pivot = _parameter(2 * spec.heads), _parameter(2 * spec.heads)
        if spec.head_norm.weight:
            self.head_norm = _norm(spec.v_width, spec.head_norm)
        self.out = _dense(spec.v_width, width, spec.bias)

    def forward(self, u: Tensor, state: States) -> tuple[Tensor, NewStates]:
        """u (B, T, D), state {C, n, m} -> (B, T, D), new state."""
        ops, spec = self.ops, self.spec
        q, k, v, o = ops.split(
            ops.linear(u, self.qkvo.weight, self.qkvo.bias), [spec.qk_width] * 2 + [spec.v_width] * 2
        )
        gates = self._gates(u)
        new: NewStates
        if spec.bounded:
            h, (C, n) = ops.bounded_mlstm(q, k, v, gates, (state["C"], state["n"]))
            new = {"C": C, "n": n}
        else:
            h, new = _stabilized(self, q, k, v, gates, state)
        weight, bias = (self.head_norm.weight, self.head_norm.bias) if spec.head_norm.weight else (None, None)
        h = ops.head_norm(h, weight, bias, spec.head_norm)
        return ops.linear(torch.sigmoid(o) * h, self.out.weight, self.out.bias), new

    def _gates(self, u: Tensor) -> Tensor:
        """[i | -f], soft-capped; the weights are stored divided by the cap."""
        gates = self.ops.linear(u, self.gates.weight, self.gates.bias)
        if self.spec.gate_soft_cap is None:
            return gates
        capped = torch.tanh(gates)
        if self.spec.relative:
            return self.gate_scale * capped / (self.gate_pivot * capped + 1.0)
        return self.spec.gate_soft_cap * capped


class SLSTMLayer(nn.Module):
    """The sLSTM layer of xLSTM v1 (`xlstm/blocks/slstm/layer.py`)."""

    def __init__(self, spec: SLSTM, width: int, ops: Ops) -> None:
        super().__init__()
        heads, dh = spec.heads, spec.head_width
        self.spec, self.ops = spec, ops
        if spec.conv_kernel:
            self.conv = Affine((width, 1, spec.conv_kernel), width)
        # Grouped convolution over [c | u]: first all heads' (i, -f), from c, then all heads' (z, o), from u.
        self.gates = Affine((4 * width, dh, 1), 4 * width)
        self.recurrent = _parameter(heads, dh, 4 * dh)
        self.head_norm = _norm(width, spec.head_norm)

    def forward(self, u: Tensor, state: States) -> tuple[Tensor, NewStates]:
        """u (B, T, D), state {conv, y, c, n, m} -> (B, T, D), new state. z and o see the raw input."""
        ops, spec, window = self.ops, self.spec, None
        u = c = u.transpose(1, 2)
        if spec.conv_kernel:
            c, window = ops.causal_conv_silu(u, self.conv.weight, _bias(self.conv), state.get("conv"))
        wx = ops.block_diagonal(torch.cat([c, u], 1), self.gates.weight, self.gates.bias)
        cell = (state["y"], state["c"], state["n"], state["m"])
        h, (y, cc, n, m) = ops.slstm(wx, self.recurrent, cell)
        h = ops.head_norm(h, self.head_norm.weight, self.head_norm.bias, spec.head_norm)
        return h, _with_window(window, y=y, c=cc, n=n, m=m)


class FeedForwardLayer(nn.Module):
    """Gated feed-forward of every family."""

    def __init__(self, spec: FeedForward, width: int, ops: Ops) -> None:
        super().__init__()
        self.spec, self.ops = spec, ops
        self.gate_up = _dense(width, 2 * spec.width, spec.bias)
        self.down = _dense(spec.width, width, spec.bias)

    def forward(self, u: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        ops = self.ops
        gate, up = ops.split(ops.linear(u, self.gate_up.weight, self.gate_up.bias), [self.spec.width] * 2)
        hidden = ops.activation(gate, self.spec.activation) * up
        del gate, up  # the widest vectors of a block, and done with
        return ops.linear(hidden, self.down.weight, self.down.bias)


def _stabilized(
    layer: UpMLSTMLayer | MLSTMLayer, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: States
) -> tuple[Tensor, NewStates]:
    """The mLSTM with its stabilizer, on relative gates where the layer has such: h and the new state {C, n, m}."""
    cell, eps = (state["C"], state["n"], state["m"]), layer.spec.eps
    if layer.spec.relative:
        h, (C, n, m) = layer.ops.relative_mlstm(q, k, v, gates, cell, eps, layer.offset)
    else:
        h, (C, n, m) = layer.ops.mlstm(q, k, v, gates, cell, eps)
    return h, {"C": C, "n": n, "m": m}


LAYERS = {UpMLSTM: UpMLSTMLayer, MLSTM: MLSTMLayer, SLSTM: SLSTMLayer}


class BlockModule(nn.Module):
    """One block; the residual stream travels as (x, delta) so that sum and norm can be one node."""

    def __init__(self, spec: Block, width: int, ops: Ops) -> None:
        super().__init__()
        self.spec, self.ops = spec, ops
        self.norm = _norm(width, spec.norm)
        self.mixer = LAYERS[type(spec.mixer)](spec.mixer, width, ops)
        if spec.ffn is not None and spec.ffn_norm is not None:
            self.ffn_norm = _norm(width, spec.ffn_norm)
            self.ffn = FeedForwardLayer(spec.ffn, width, ops)

    def forward(self, x: Tensor, delta: Tensor | None, state: States) -> tuple[Tensor, Tensor, NewStates]:
        """Residual x (B, T, D) and what is still to be added to it -> the same pair, new state."""
        x, u = add_norm(self.ops, x, delta, self.norm, self.spec.norm)
        delta, new = self.mixer(u, state)
        if self.spec.ffn is not None and self.spec.ffn_norm is not None:
            x, u = add_norm(self.ops, x, delta, self.ffn_norm, self.spec.ffn_norm)
            delta = self.ffn(u)
        return x, delta, new


class Model(nn.Module):
    """Token ids (B, T) or float vectors (B, T, D) in, logits or hidden vectors out, every state by name."""

    def __init__(self, spec: ModelSpec, ops: Ops, *, all_logits: bool = False) -> None:
        super().__init__()
        self.spec, self.ops, self.all_logits = spec, ops, all_logits
        self.blocks = nn.ModuleList(BlockModule(block, spec.width, ops) for block in spec.blocks)
        if spec.norm is not None:
            self.norm = _norm(spec.width, spec.norm)
        if spec.vocab_size is not None:
            self.embedding = Affine((spec.vocab_size, spec.width))
            if not spec.tied:
                self.head = Affine((spec.vocab_size, spec.width))

    def forward(self, inputs: Tensor, state: States) -> tuple[Tensor, NewStates]:
        """-> output for the last token (B, V or D), or for every token (B, T, V or D) with `all_logits`."""
        x, delta = self.embed(inputs), None
        new: NewStates = {}
        for index in range(len(self.blocks)):
            x, delta, own = self.run_block(index, x, delta, state)
            new |= own
        return self.output(x, delta), {name: new[name] for name in state}

    def run_block(self, index: int, x: Tensor, delta: Tensor | None, state: States) -> tuple[Tensor, Tensor, NewStates]:
        """The residual pair after one block, and its new states; states by the names they have in the model."""
        prefix = f"blocks.{index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        x, delta, new = self.blocks[index](x, delta, own)
        return x, delta, {prefix + name: tensor for name, tensor in new.items()}

    def embed(self, inputs: Tensor) -> Tensor:
        """Ids -> vectors; vectors pass."""
        return inputs if self.spec.vocab_size is None else self.ops.embed(inputs, self.embedding.weight)

    def output(self, x: Tensor, delta: Tensor | None) -> Tensor:
        """Residual pair -> final norm -> head."""
        if not self.all_logits:
            x, delta = self.ops.last(x), None if delta is None else self.ops.last(delta)
        if self.spec.norm is not None:
            _, x = add_norm(self.ops, x, delta, self.norm, self.spec.norm)
        elif delta is not None:
            x = x + delta
        if self.spec.vocab_size is None:
            return x
        cap = self.spec.logit_soft_cap
        head = self.embedding if self.spec.tied else self.head
        logits = self.ops.project(x, head.weight, 1.0 if cap is None else 1.0 / cap)
        return logits if cap is None else cap * torch.tanh(logits)


def add_norm(ops: Ops, x: Tensor, delta: Tensor | None, affine: Affine, spec: Norm) -> tuple[Tensor, Tensor]:
    """(x + delta, norm of it); without a delta (before the first block) x as it is."""
    if delta is None:
        return x, ops.norm(x, affine.weight, affine.bias, spec)
    return ops.add_norm(x, delta, affine.weight, affine.bias, spec)


def _bias(affine: Affine) -> Tensor:
    assert affine.bias is not None  # convolutions always have one; narrows the type
    return affine.bias


def _with_window(window: Tensor | None, **cell: Tensor) -> NewStates:
    return cell if window is None else {"conv": window, **cell}
