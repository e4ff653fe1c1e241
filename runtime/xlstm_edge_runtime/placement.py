"""Where the nodes of an opened graph landed: on the provider that was asked for, or on the CPU.

A provider takes the nodes that it can and leaves the others to the CPU without a word. Then every token crosses from one to
the other, which is slower than the CPU alone: so a graph that is not whole is refused, unless that was allowed.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from .errors import BundleError, InputError, escaped
from .graph_file import GRAPH_NODE, LARGEST_GRAPH, MODEL_GRAPH
from .protobuf import children
from .providers import CPU, Choice
from .reading import read_bytes

RECORD, STRICT = "session.record_ep_graph_assignment_info", "session.disable_cpu_ep_fallback"
MOST_NAMED = 6
# Provider -> number of nodes; None where this onnxruntime tells that there are some, but not how many.
Placement = dict[str, int | None]


def can_tell() -> bool:
    """Whether this onnxruntime tells where nodes landed (1.24 and newer)."""
    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")


def record_placement(options: ort.SessionOptions, choice: Choice) -> None:
    """Have onnxruntime note where nodes land or, where it cannot, refuse by itself what is not whole."""
    if can_tell():
        options.add_session_config_entry(RECORD, "1")
    elif not choice.allow_fallback:
        options.add_session_config_entry(STRICT, "1")


def refused_by_itself(error: Exception) -> bool:
    """Whether onnxruntime refused a graph because nodes were left to the CPU."""
    return "fallback to CPU EP" in str(error)


def check_placement(inference: ort.InferenceSession, choice: Choice) -> None:
    """BundleError for a graph that is not whole where it was asked for; InputError if the provider did not start at all."""
    wanted = choice.provider.ort_name
    if wanted not in inference.get_providers():
        raise InputError(f"expected to start {choice}, got an error of the provider; check its options and its device")
    if choice.allow_fallback or not can_tell():
        return
    left = [part for part in inference.get_provider_graph_assignment_info() if part.ep_name != wanted]
    if left:
        raise BundleError(not_whole(choice, operators_of(left)))


def operators_of(parts: Sequence[Any]) -> Counter[str]:
    """Operators of onnxruntime's assigned parts of a graph, with their numbers."""
    return Counter(node.op_type for part in parts for node in part.get_nodes())


def not_whole(choice: Choice, left: Counter[str] | None = None) -> str:
    """The sentence that refuses a graph; `left` None where it is not known what is left."""
    got = f"nodes left to the CPU (onnxruntime {ort.__version__} does not say which)"
    if left is not None:
        named = [f"{count} {escaped(name, 40)}" for name, count in left.most_common(MOST_NAMED)]
        if more := len(left) - len(named):
            named.append(f"{more} other operators")
        total = left.total()
        got = f"{total} {'node' if total == 1 else 'nodes'} left to the CPU ({', '.join(named)})"
    return (
        f"expected the whole graph on {choice.provider.ort_name}, got {got}; export the bundle for this provider, or allow "
        "the fallback"
    )


def placement_of(inference: ort.InferenceSession, choice: Choice, graph: Path) -> Placement:
    """Nodes by provider. A part that a provider compiled counts as one; on the CPU they are those of the graph file.

    {provider: None} where onnxruntime refused anything else but does not tell the number; {} where nothing is known.
    """
    if choice.is_cpu:  # it has them all: counted when asked for, as recording it costs every start
        return {CPU.provider.ort_name: _nodes_of(graph)}
    if can_tell():
        return dict(Counter(part.ep_name for part in inference.get_provider_graph_assignment_info()))
    return {} if choice.allow_fallback else {choice.provider.ort_name: None}


def _nodes_of(graph: Path) -> int | None:
    """Nodes in a graph file, before onnxruntime fuses any; None where the file is gone."""
    try:
        data = read_bytes(graph, LARGEST_GRAPH)
        return sum(1 for body in children(data, (0, len(data)), MODEL_GRAPH) for _ in children(data, body, GRAPH_NODE))
    except (OSError, ValueError):
        return None
