"""Write a graph's weights into one data file beside it, one tensor in memory at a time.

Large tensors begin at multiples of 4096 bytes, so that they can be memory-mapped; tensors that hold the same bytes in
another shape (a tied embedding and head, quantized) point to one place.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from xlstm_edge_runtime.layout import weights_of
from xlstm_edge_runtime.progress import Progress, no_progress

INLINE = 256  # bytes: smaller tensors stay in the graph, where shape inference wants its constants
PAGE, LINE = 4096, 64
Sources = Mapping[str, Callable[[], NDArray[np.generic]]]


def save_graph(
    model: ir.Model,
    sources: Sources,
    path: Path,
    *,
    aliases: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Save `model` at `path` and its weights at `path` + .data; `aliases` maps a name to the one whose bytes it has.

    Every initializer named in `sources` gets its array from there; it must have the declared shape and type.
    """
    aliases = aliases or {}
    values, done = model.graph.initializers, 0
    with path.with_name(weights_of(path.name)).open("wb") as file:
        places: dict[str, tuple[int, int]] = {}
        progress("weights", 0, len(sources))
        for name, load in sources.items():
            array = load()
            if array.nbytes < INLINE:
                values[name].const_value = ir.Tensor(array, name=name)
            else:
                offset = _align(file.tell(), PAGE if array.nbytes >= PAGE else LINE)
                file.write(b"\0" * (offset - file.tell()))
                file.write(np.ascontiguousarray(array).data)
                places[name] = (offset, array.nbytes)
            del array
            done += 1
            progress("weights", done, len(sources))
    for name in [*sources, *aliases]:
        if (place := places.get(aliases.get(name, name))) is not None:
            values[name].const_value = _external(values[name], path, *place)
    ir.save(model, path)


def _external(value: ir.Value, path: Path, offset: int, length: int) -> ir.ExternalTensor:
    assert value.shape is not None and value.dtype is not None and value.name is not None
    return ir.ExternalTensor(
        weights_of(path.name),
        offset,
        length,
        value.dtype,
        shape=value.shape,
        name=value.name,
        base_dir=str(path.parent),
    )


def _align(offset: int, boundary: int) -> int:
    return -(-offset // boundary) * boundary
