"""OpenVINO's own form of an accelerator's graph, made ahead of time: stateful, so that a caller passes a token and no state.

    model.openvino.xml   the graph; one input, one output, a variable for each row of the state table, named as the row is
    model.openvino.bin   its weights, float32, or the dense matrices as integers of 8 or 4 bits

A variable starts with its row's start value, again after `reset_state`. Gates, norms, convolutions and recurrent kernels stay
float32, as in quantized bundles. The same graph gives the same bytes.

OpenVINO and its compressor report their use over the network, and keep an identifier in the home folder, from the moment they
are imported, unless the package `openvino_telemetry` cannot be: in a process that writes or reads with this module it cannot.
"""

import contextlib
import io
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xlstm_edge_runtime.layout import GRAPH
from xlstm_edge_runtime.state import StateSpec, StateTable

from ..extras import import_extra

FORM = "OpenVINO's own form of a graph", "openvino-ir"  # what packages are for, and the extra that brings them
IR = f"{Path(GRAPH).stem}.openvino.xml"
# Weights of a column that share a scale: fewer round better and cost bytes and time. Where it does not divide a column 32
# may, else the matrix has 8 bits.
GROUP_SIZE = 64
COMPUTING = {"MatMul", "Gather", "Convolution", "GroupConvolution"}  # what the compressor compresses the weights of
Bits = Literal["int8", "int4"]


def write_ir(graph: Path, folder: Path, table: StateTable, *, weights: Bits | None = None) -> list[Path]:
    """Write the graph of an accelerator's bundle into `folder` as OpenVINO's IR; the two files, `IR` first.

    `table` is the bundle's state table. `weights` None is float32. int8 has a scale for each column of a matrix, int4 one for
    each `GROUP_SIZE` weights of it, and 8 bits for embedding and head. DependencyError without openvino, and for integers
    without nncf.
    """
    openvino = import_openvino()
    model = openvino.Core().read_model(graph)
    _look_up_with_gather(openvino, model)
    for row in table:
        _keep_inside(openvino, model, row)
    model.validate_nodes_and_infer_types()
    if weights is not None:
        model = _compressed(model, weights)
    _name_in_order(model)
    openvino.save_model(model, folder / IR, compress_to_fp16=False)
    return [folder / IR, (folder / IR).with_suffix(".bin")]


def import_openvino() -> Any:
    """The module `openvino`, without its telemetry; DependencyError without the package."""
    _leave_out_telemetry()
    return import_extra("openvino", *FORM)


def _import_nncf() -> Any:
    _leave_out_telemetry()
    nncf = import_extra("nncf", *FORM)  # loads torch
    nncf.set_log_level(logging.ERROR)
    return nncf


def _leave_out_telemetry() -> None:
    """None is Python's own mark for a module that is not there; both packages do without it then."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # typeshed does not know the mark


def _keep_inside(openvino: Any, model: Any, row: StateSpec) -> None:
    """A variable in the place of the input and the output of one state tensor."""
    ops, util = openvino.opset13, openvino.op.util
    past = next(node for node in model.get_parameters() if row.input_name in node.output(0).names)
    present = next(node for node in model.get_results() if row.output_name in node.input_value(0).names)
    info = util.VariableInfo()
    info.data_shape, info.data_type, info.variable_id = past.partial_shape, past.element_type, row.name
    variable = util.Variable(info)
    # 0 without being told
    start = [] if row.initial == 0.0 else [np.full((1, *row.graph_shape), row.initial, np.float32)]
    read = ops.read_value(*start, variable, name=row.input_name)
    past.output(0).replace(read.output(0))
    write = ops.assign(present.input_value(0).get_node(), variable, name=row.output_name)
    model.remove_result(present)
    model.remove_parameter(past)
    model.add_variables([variable])
    model.add_sinks([write])


def _look_up_with_gather(openvino: Any, model: Any) -> None:
    """The embedding as a Gather, the only look-up that integers stay integers under."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "GatherND":
            rows = openvino.opset13.gather(node.input_value(0), model.input(0), 0, name=node.get_friendly_name())
            node.output(0).replace(rows.output(0))


def _compressed(model: Any, weights: Bits) -> Any:
    """The dense matrices in integers, rounded to nearest; no data is needed."""
    nncf = _import_nncf()
    modes, advanced = nncf.CompressWeightsMode, nncf.quantization.advanced_parameters
    adjust = advanced.AdvancedCompressionParameters(group_size_fallback_mode=advanced.GroupSizeFallbackMode.ADJUST)
    options: Mapping[Bits, Mapping[str, Any]] = {
        "int8": {"mode": modes.INT8_SYM},
        "int4": {"mode": modes.INT4_SYM, "group_size": GROUP_SIZE, "advanced_parameters": adjust},
    }
    computing = [node for node in model.get_ordered_ops() if node.get_type_name() in COMPUTING]
    kept = [node.get_friendly_name() for node in computing if not any(map(_is_dense, node.input_values()))]
    with contextlib.redirect_stdout(io.StringIO()):  # it draws a bar
        return nncf.compress_weights(model, ignored_scope=nncf.IgnoredScope(names=kept), **options[weights])


def _is_dense(value: Any) -> bool:
    """Whether a value is a matrix of weights that is no gate's."""
    node = value.get_node()
    matrix = node.get_type_name() == "Constant" and len(node.get_output_shape(0)) == 2
    return matrix and not node.get_friendly_name().endswith("gates.weight")


def _name_in_order(model: Any) -> None:
    """Other names for what OpenVINO named by type and a number that grows from model to model of a process."""
    for index, node in enumerate(model.get_ordered_ops()):
        name = re.sub(r"[A-Z]\w*_\d+$", f"{node.get_type_name()}.{index}", node.get_friendly_name())
        node.set_friendly_name(name)
