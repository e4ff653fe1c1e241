"""Which tensor is quantized how: from the recipe of an export to one scheme a tensor.

Quantized are the dense matrices, the embedding and the head, which are nearly all of a model's bytes. Gates, norms,
convolutions and the sLSTM's recurrent kernels stay float32: they are small, and the recurrence multiplies their error.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from math import prod

from xlstm_edge_runtime.errors import InputError, shown

from ..recipe import KEEP_FLOAT, Recipe
from ..spec import ModelSpec
from ..weights import Weights
from .orientation import EMBEDDING, HEAD, is_table, matrix_shape
from .scheme import Scheme

SMALLEST_FIT, LARGEST_TABLE_BLOCK = 32, 128  # blocks below 32 cost more speed than padding does
# The default int4 spends up to this many bits a quantized weight, scales included, on what needs more than the rest.
LARGEST_AVERAGE = 4.45
DENSE = (
    "mixer.up.weight",
    "mixer.down.weight",
    "mixer.qkvo.weight",
    "mixer.out.weight",
    "ffn.gate_up.weight",
    "ffn.down.weight",
)
Plan = Mapping[str, Scheme]


def make_plan(spec: ModelSpec, weights: Weights, recipe: Recipe) -> dict[str, Scheme]:
    """Canonical name -> scheme; names that are not in it stay float32. InputError for a pattern that matches nothing.

    Mixed precision starts from 4 bits; `budget.spend_budget` raises some.
    """
    if spec.vocab_size is None and (recipe.head_bits or recipe.embedding_bits):
        raise InputError("expected a model with an embedding and a head, got a bare stack; leave their bits out")
    names = [name for name in weights if is_table(name) or name.endswith(DENSE)]
    if missed := sorted(pattern for pattern in recipe.keep if not fnmatch_any(names, pattern)):
        kinds = ", ".join(sorted({name.split(".", 2)[-1] for name in names}))
        raise InputError(
            f"expected patterns that match quantized tensors ({kinds}), got {shown(missed[0])}; correct it"
        )
    bits = {name: bits_by_hand(name, recipe, tied=spec.tied) or recipe.bits for name in names}
    plan = {
        name: Scheme(bits[name], fitting_block_size(name, weights[name].shape, recipe.chosen_block_size))
        for name in names
        if bits[name] != KEEP_FLOAT
    }
    if recipe.quantize != "int4" or recipe.chosen_method != "gptq" or recipe.block_size is not None:
        return plan
    return _with_care(plan, {name: weights[name].shape for name in plan}, recipe, tied=spec.tied)


def integer_products(spec: ModelSpec, weights: Weights) -> list[str]:
    """Weights of the products that an accelerator computes in integers; a tied head is also looked up, and stays float."""
    return [name for name in weights if name.endswith(DENSE) or (name == HEAD and not spec.tied)]


def _with_care(
    plan: dict[str, Scheme], shapes: Mapping[str, Sequence[int]], recipe: Recipe, *, tied: bool
) -> dict[str, Scheme]:
    """More bits for the tensors that lose most by 4, one after the other, as long as the average allows it.

    These are the first feed-forward, whose activations are the largest (known of transformers: Yu et al., arXiv:2411.07191),
    and head and embedding, after which nothing makes up for an error: 8 bits where the head is a small part of the model,
    else short blocks.
    """
    first = next((name.partition("ffn.")[0] for name in plan if ".ffn." in name), "")
    names = [name for name in (f"{first}ffn.down.weight", f"{first}ffn.gate_up.weight") if name in plan]
    wishes = [(name, 8, plan[name].block_size) for name in names]
    wishes += [(HEAD, 8, LARGEST_TABLE_BLOCK), (HEAD, 4, SMALLEST_FIT), (EMBEDDING, 4, SMALLEST_FIT)]
    chosen, settled = dict(plan), {name for name in plan if bits_by_hand(name, recipe, tied=tied)}
    for name, bits, block_size in wishes:
        scheme = Scheme(bits, block_size)
        if name in plan and name not in settled and average_bits(shapes, chosen | {name: scheme}) <= LARGEST_AVERAGE:
            chosen[name] = scheme
            settled.add(name)
    return chosen


def average_bits(shapes: Mapping[str, Sequence[int]], plan: Plan) -> float:
    """Bits a weight over the planned tensors, scales and padding included."""
    sizes = {name: matrix_shape(name, shapes[name]) for name in plan}
    return 8 * sum(plan[n].nbytes(*size) for n, size in sizes.items()) / sum(prod(size) for size in sizes.values())


def fnmatch_any(names: Sequence[str], pattern: str) -> bool:
    """Whether a pattern as of a shell, upper and lower case told apart, matches one of the names."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def bits_by_hand(name: str, recipe: Recipe, *, tied: bool) -> int | None:
    """Bits chosen for this tensor itself, by a pattern (the last that matches) or an option; None: `recipe.bits` decides."""
    for pattern, bits in reversed(list(recipe.keep.items())):
        if fnmatch.fnmatchcase(name, pattern):
            return bits
    if name == EMBEDDING and tied:  # one matrix, for the one that needs more
        return max(recipe.head_bits or 0, recipe.embedding_bits or 0) or None
    return {HEAD: recipe.head_bits, EMBEDDING: recipe.embedding_bits}.get(name)


def fitting_block_size(name: str, shape: Sequence[int], block_size: int) -> int:
    """`block_size`, halved while the padding of a row's last block is more than a sixteenth of the row.

    Embedding and head get at most `LARGEST_TABLE_BLOCK`: nothing after them makes up for their error.
    """
    columns = matrix_shape(name, shape)[1]
    if is_table(name):
        block_size = min(block_size, LARGEST_TABLE_BLOCK)
    while block_size > SMALLEST_FIT and -columns % block_size > columns // 16:
        block_size //= 2
    return block_size


def planned_bytes(shapes: Mapping[str, tuple[int, ...]], plan: Plan) -> int:
    """Bytes of all tensors under a plan."""
    total = 0
    for name, shape in shapes.items():
        rows, columns = matrix_shape(name, shape) if name in plan else (0, 0)
        total += plan[name].nbytes(rows, columns) if name in plan else 4 * prod(shape)
    return total
