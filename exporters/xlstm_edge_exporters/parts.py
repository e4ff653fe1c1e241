"""Trace each distinct part of a model once: what comes before the blocks, every kind of block, what comes after them.

A model's blocks are mostly alike (all 32 of the published 7B model are), and tracing one costs about a second. So the
traced module holds the first block, one block of each kind that follows, and the head, side by side, each with inputs
of its own; `assembly` puts the whole graph together out of them.
"""

import contextlib
import functools
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .interface import GraphOptions
from .model import Model, NewStates, States
from .quiet import quiet
from .spec import Block, ModelSpec

Pair = tuple[Tensor, Tensor]
KEPT = 4  # traces: quantizing one model in several ways traces it once
OPEN = {0: "batch", 1: "tokens"}
PARAMETER = "model."  # what the traced module puts before the names of parameters


@dataclass(frozen=True, slots=True)
class Parts:
    """A traced graph of independent parts: its inputs and outputs by name, to be copied from and not to be changed.

    Block k of it gives `x.k` and `delta.k`, its residual pair, and takes `given.x.k-1` and `given.delta.k-1`; block 0 takes
    `inputs`, and the head, which gives `output`, the given pair of the last. States are called `past.*` and `present.*`;
    `parameters` are the names of weights, all other initializers constants.
    """

    graph: ir.Graph
    inputs: Mapping[str, ir.Value]
    outputs: Mapping[str, ir.Value]
    parameters: frozenset[str]


def distinct_blocks(blocks: tuple[Block, ...]) -> tuple[tuple[Block, ...], tuple[int, ...]]:
    """(the first block and one of each kind after it, the index among them for every block).

    The first block is always a part of its own: nothing is added to its input yet.
    """
    later = list(dict.fromkeys(blocks[1:]))
    return (*blocks[:1], *later), (0, *(1 + later.index(block) for block in blocks[1:]))


def pair_names(index: int, given: str = "") -> tuple[str, str]:
    """Names of the residual pair of block `index`: what it gives, or with "given." what the part after it is given."""
    return f"{given}x.{index}", f"{given}delta.{index}"


def trace_parts(spec: ModelSpec, options: GraphOptions) -> Parts:
    """The parts of a model; equal ones are traced once, whatever the number of blocks."""
    return _trace(replace(spec, blocks=distinct_blocks(spec.blocks)[0]), options)


class _Module(nn.Module):
    """All parts side by side. Module names are the model's own, so that parameters are named as there."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, pairs: list[Pair], state: States) -> tuple[list[Pair], Tensor, NewStates]:
        """`pairs[i]` goes into block i + 1, the last into the head -> pairs of the blocks, output, new states."""
        model = self.model
        outputs, new = list[Pair](), dict[str, Tensor]()
        entries: list[tuple[Tensor, Tensor | None]] = [(model.embed(inputs), None), *pairs[:-1]]
        for index, entry in enumerate(entries):
            x, delta, own = model.run_block(index, *entry, state)
            outputs.append((x, delta))
            new |= own
        return outputs, model.output(*pairs[-1]), {name: new[name] for name in state}


@functools.lru_cache(KEPT)
def _trace(small: ModelSpec, options: GraphOptions) -> Parts:
    """One torch.onnx.export for all parts of a model that has each of its blocks once, of fake tensors."""
    target, table = options.lowering, options.lowering.states(small.state_table())
    # Sizes that stay open must not be 0 or 1, which torch would fix.
    batch, tokens = (1, options.chunk) if target.static else (2, 1 if options.chunk == 1 else 3)
    with FakeTensorMode():
        module = _Module(Model(small, target.ops(options.chunk), all_logits=options.all_logits)).eval()
        vectors = torch.zeros(batch, tokens, small.width)
        examples = {
            "inputs": vectors if small.vocab_size is None else torch.zeros(batch, tokens, dtype=torch.int64),
            "pairs": [(torch.zeros_like(vectors), torch.zeros_like(vectors)) for _ in small.blocks],
            "state": {name: torch.zeros(shape) for name, shape in table.initial_shapes(batch).items()},
        }
    sizes = OPEN if tokens > 1 else {0: OPEN[0]}
    dynamic = {
        "inputs": sizes,
        "pairs": [(sizes, sizes) for _ in small.blocks],
        "state": {row.name: {0: OPEN[0]} for row in table},
    }
    # torch's exporter prints its progress, and warns of packages that are not used here
    with quiet("torch.onnx"), contextlib.redirect_stdout(io.StringIO()), _interruptible():
        program = torch.onnx.export(
            module,
            (),
            kwargs=examples,
            dynamo=True,
            optimize=False,
            opset_version=target.traced_opset,
            dynamic_shapes=None if target.static else dynamic,
            verbose=False,
        )
    assert program is not None
    graph, blocks = program.model.graph, range(len(small.blocks))
    taken = ["inputs", *(name for i in blocks for name in pair_names(i, "given.")), *(row.input_name for row in table)]
    gives = [*(name for i in blocks for name in pair_names(i)), "output", *(row.output_name for row in table)]
    inputs, outputs = (zip(taken, graph.inputs, strict=True), zip(gives, graph.outputs, strict=True))
    return Parts(graph, dict(inputs), dict(outputs), frozenset(name for name, _ in module.named_parameters()))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C while torch traces may come out of it as a failed conversion; it is Ctrl-C all the same."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt) or KeyboardInterrupt.__name__ in str(cause):
                raise KeyboardInterrupt from error
            cause = cause.__cause__ or cause.__context__
        raise
