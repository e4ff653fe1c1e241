"""Canonical model -> ONNX graph without weights.

The model is built of fake tensors (shapes and dtypes, no memory), traced by `torch.onnx.export`, and tidied. Its
initializers keep the canonical parameter names; `bundle` gives them their data later, one at a time, so that a model
of any size is traced in the memory of a small one.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from xlstm_edge_runtime.state import StateSpec, StateTable

from .model import Model
from .ops.ort import Ort
from .ops.portable import Portable
from .passes.opset17 import ToOpset17
from .passes.scan import ExpandSLSTM
from .passes.tidy import Tidy
from .spec import ModelSpec

Flavour = Literal["ort", "portable"]
SPLIT_WIDTH, NARROWEST_SPLIT, DEEPEST_SPLIT = 32, 128, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """What the graph is for: `chunk` is the most tokens of one call, which `portable` fixes to 1."""

    flavour: Flavour = "ort"
    chunk: int = 64
    all_logits: bool = False

    @property
    def opset(self) -> int:
        """Opset of the finished graph."""
        return 23 if self.flavour == "ort" else 17


def input_name(spec: ModelSpec) -> str:
    """`input_ids` (B, T) int64, or `inputs_embeds` (B, T, D) float32 for a bare stack."""
    return "inputs_embeds" if spec.vocab_size is None else "input_ids"


def output_name(spec: ModelSpec) -> str:
    """`logits` or, for a bare stack, `last_hidden_state`."""
    return "last_hidden_state" if spec.vocab_size is None else "logits"


def graph_states(spec: ModelSpec, options: GraphOptions) -> StateTable:
    """The state table as this graph holds it: for onnxruntime, large matrix memories with split heads.

    Its LinearAttention keeps a row of `SPLIT_WIDTH` values in registers, where a wide row goes through the cache for every
    key; beyond `DEEPEST_SPLIT` keys it takes another path, which gains nothing.
    """
    rows = spec.state_table()
    return rows if options.flavour == "portable" else StateTable([_with_split_heads(row) for row in rows])


def _with_split_heads(row: StateSpec) -> StateSpec:
    if not row.name.endswith(".C"):
        return row
    _, dk, dv = row.shape
    pays = dk <= DEEPEST_SPLIT and dv >= NARROWEST_SPLIT and dv % SPLIT_WIDTH == 0
    return row.with_head_splits(dv // SPLIT_WIDTH) if pays else row


def trace(spec: ModelSpec, options: GraphOptions) -> ir.Model:
    """The graph, its weights named after the canonical parameters and without data.

    Inputs: tokens, then `past.*` in the order of the state table; outputs: logits, then `present.*`.
    """
    ort = options.flavour == "ort"
    model = _export(spec, options, opset=23 if ort else 18)
    for name in _parameter_names(spec, options):
        model.graph.initializers[name].const_value = None
    Tidy()(model)
    (ExpandSLSTM() if ort else ToOpset17())(model)
    model.producer_name, model.graph.name = "xlstm-edge", spec.family
    return model


def _export(spec: ModelSpec, options: GraphOptions, opset: int) -> ir.Model:
    table = graph_states(spec, options)
    with FakeTensorMode():
        module = _build(spec, options).eval()
        inputs, state = _example(spec, options, table.initial_shapes(2 if options.flavour == "ort" else 1))
    dynamic = None
    if options.flavour == "ort":
        dynamic = {"inputs": {0: "batch", 1: "tokens"}, "state": {row.name: {0: "batch"} for row in table}}
    with _quiet():
        program = torch.onnx.export(
            module,
            (),
            kwargs={"inputs": inputs, "state": state},
            dynamo=True,
            optimize=False,
            opset_version=opset,
            dynamic_shapes=dynamic,
            input_names=[input_name(spec), *(row.input_name for row in table)],
            output_names=[output_name(spec), *(row.output_name for row in table)],
            verbose=False,
        )
    assert program is not None
    return program.model


def _build(spec: ModelSpec, options: GraphOptions) -> Model:
    lowering = Ort(options.chunk) if options.flavour == "ort" else Portable()
    return Model(spec, lowering, all_logits=options.all_logits)


def _parameter_names(spec: ModelSpec, options: GraphOptions) -> list[str]:
    with FakeTensorMode():
        return [name for name, _ in _build(spec, options).named_parameters()]


def _example(
    spec: ModelSpec, options: GraphOptions, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Fake example inputs; sizes that are to stay dynamic must not be 0 or 1, which torch would fix."""
    size = (2, 3) if options.flavour == "ort" else (1, 1)
    ids = torch.zeros(size, dtype=torch.int64)
    inputs = ids if spec.vocab_size is not None else torch.zeros(*size, spec.width)
    return inputs, {name: torch.zeros(shape) for name, shape in shapes.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter talks of its own progress and of packages we do not use; real failures are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
