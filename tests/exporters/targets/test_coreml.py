"""onnxruntime's own checker of what Core ML takes."""

import contextlib
import io
import logging
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnxruntime.tools.mobile_helpers import usability_checker

from ...oracles.cases import CASES, Case

BundleOf = Callable[[Case, str], Path]


def verdict(graph: Path) -> str:
    """What the checker logs of an ML program."""
    log, stream = logging.getLogger("checker"), io.StringIO()
    log.handlers, log.propagate = [logging.StreamHandler(stream)], False
    log.setLevel(logging.INFO)
    with contextlib.redirect_stdout(stream):
        usability_checker.analyze_model(graph, skip_optimize=True, logger=log)
    return stream.getvalue().partition("Checking CoreML MLProgram")[2]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_partition_with_nothing_outside(case: Case, bundle_of: BundleOf) -> None:
    whole_on_core_ml(bundle_of(case, "coreml") / "model.onnx")


@pytest.mark.parametrize("case", ["lm-mixed", "stack-slstm"])
def test_nor_of_the_graph_for_prompts(case: str, export_of: Callable[..., Path]) -> None:
    whole_on_core_ml(export_of(case, target="coreml", chunk=5) / "prompt.onnx")


def whole_on_core_ml(graph: Path) -> None:
    nodes = len(onnx.load(graph, load_external_data=False).graph.node)
    text = verdict(graph)
    assert f"1 partitions with a total of {nodes}/{nodes} nodes" in text
    assert "Unsupported nodes due to operator=0" in text
    assert re.search(r"Model should perform well with CoreML MLProgram as is: YES", text)


def test_the_checker_sees_what_core_ml_lacks(bundle_of: BundleOf) -> None:
    text = verdict(bundle_of(CASES[0], "portable") / "model.onnx")
    assert "1 partitions" not in text
