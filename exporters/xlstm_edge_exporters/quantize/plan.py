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
    return {
        name: Scheme(bits[name], fitting_block_size(name, weights[name].shape, recipe.chosen_block_size))
        for name in names
        if bits[name] != KEEP_FLOAT
    }


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
