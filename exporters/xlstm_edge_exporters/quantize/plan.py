"""Which tensor is quantized how: from a few options to one scheme a tensor.

Quantized are the dense matrices, the embedding and the head, which are nearly all of a model's bytes. Gates, norms,
convolutions and the sLSTM's recurrent kernels stay float32: they are small, and the recurrence multiplies their error.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from xlstm_edge_runtime.errors import InputError, shown

from ..spec import ModelSpec
from .scheme import BITS, Scheme

if TYPE_CHECKING:
    from ..weights import Weights  # loads torch, which the options of an export are checked without

KEEP_FLOAT = 32
SMALLEST_FIT, LARGEST_TABLE_GROUP = 32, 128  # groups below 32 cost more speed than padding does
DENSE = (
    "mixer.up.weight",
    "mixer.down.weight",
    "mixer.qkvo.weight",
    "mixer.out.weight",
    "ffn.gate_up.weight",
    "ffn.down.weight",
)
EMBEDDING, HEAD = "embedding.weight", "head.weight"
PRESETS = {"int8": 8, "int4": 4}
Plan = Mapping[str, Scheme]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """`bits` of the dense matrices; embedding and head follow unless given; `keep` maps patterns of names to bits.

    `method` is rtn (round to nearest) or gptq (needs a calibration text).
    """

    bits: int
    group: int = 32
    embedding_bits: int | None = None
    head_bits: int | None = None
    keep: Mapping[str, int] = field(default_factory=dict)
    method: str = "rtn"

    def __post_init__(self) -> None:
        Scheme(self.bits, self.group)
        if self.method not in ("rtn", "gptq"):
            raise InputError(f"expected method rtn or gptq, came {shown(self.method)}; choose one")
        for bits in (self.embedding_bits, self.head_bits, *self.keep.values()):
            if bits is not None and (type(bits) is not int or bits not in (*BITS, KEEP_FLOAT)):
                raise InputError(f"expected 2, 4, 8 or 32 bits, came {shown(bits)}; no CPU kernel runs others")

    def by_hand(self, name: str, *, tied: bool) -> int | None:
        """Bits chosen for this tensor itself, by a pattern (the last that matches) or an option; None: `bits` decides."""
        for pattern, bits in reversed(list(self.keep.items())):
            if fnmatch.fnmatchcase(name, pattern):
                return bits
        if name == EMBEDDING and tied:  # one matrix, for the one that needs more
            return max(self.head_bits or 0, self.embedding_bits or 0) or None
        return {HEAD: self.head_bits, EMBEDDING: self.embedding_bits}.get(name)


def make_plan(spec: ModelSpec, weights: "Weights", options: QuantizeOptions) -> dict[str, Scheme]:
    """Canonical name -> scheme; names that are not in it stay float32. InputError for a pattern that matches nothing."""
    if spec.vocab_size is None and (options.head_bits or options.embedding_bits):
        raise InputError("expected a model with an embedding and a head, came a bare stack; leave their bits out")
    names = [name for name in weights if name in (EMBEDDING, HEAD) or name.endswith(DENSE)]
    if missed := sorted(p for p in options.keep if not any(fnmatch.fnmatchcase(name, p) for name in names)):
        kinds = ", ".join(sorted({name.split(".", 2)[-1] for name in names}))
        raise InputError(
            f"expected patterns that match quantized tensors ({kinds}), came {shown(missed[0])}; correct it"
        )
    bits = {name: options.by_hand(name, tied=spec.tied) or options.bits for name in names}
    return {
        name: Scheme(bits[name], fitting_group(name, weights[name].shape, options.group))
        for name in names
        if bits[name] != KEEP_FLOAT
    }


def fitting_group(name: str, shape: Sequence[int], group: int) -> int:
    """`group`, halved while the padding of a row's last group is more than a sixteenth of the row.

    Embedding and head get at most `LARGEST_TABLE_GROUP`: nothing after them makes up for their error.
    """
    columns = matrix_shape(name, shape)[1]
    group = min(group, LARGEST_TABLE_GROUP) if name in (EMBEDDING, HEAD) else group
    while group > SMALLEST_FIT and -columns % group > columns // 16:
        group //= 2
    return group


def planned_bytes(shapes: Mapping[str, tuple[int, ...]], plan: Plan) -> int:
    """Bytes of all tensors under a plan."""
    total = 0
    for name, shape in shapes.items():
        rows, columns = matrix_shape(name, shape) if name in plan else (0, 0)
        total += plan[name].nbytes(rows, columns) if name in plan else 4 * prod(shape)
    return total


def matrix_shape(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """(N, K) = (outputs, inputs): dense weights are stored (in, out), embedding and head (out, in)."""
    first, second = shape
    return (first, second) if name in (EMBEDDING, HEAD) else (second, first)
