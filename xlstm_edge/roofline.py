"""The two bounds of a token: how fast this machine reads and multiplies, and how much of each a token takes."""

import statistics
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from xlstm_edge_runtime import Model
from xlstm_edge_runtime.layout import GRAPH, weights_of
from xlstm_edge_runtime.opening import open_graph, session_options
from xlstm_edge_runtime.providers import CPU
from xlstm_edge_runtime.tuning import FLOAT

SIZE = 64 << 20  # float32 values: 256 MB, beyond any cache
PASSES = 4
ROWS, WIDTH = 64, 2048  # of a product that reads each weight once for many inputs


class Probe(Protocol):
    """Something that this machine does at a rate."""

    def measure(self) -> float:
        """How often a second, now: speeds drift, so measure beside what it is compared with."""


class ReadProbe:
    """How fast `threads` threads read from memory now: dot products over a large array, each thread its own part."""

    def __init__(self, threads: int) -> None:
        data = np.ones(SIZE, np.float32)
        self._bytes, self._parts = data.nbytes, np.array_split(data, threads)

    def measure(self) -> float:
        """Bytes a second, the median of a few passes; memory speed drifts, so measure beside what it is compared with."""
        rates = []
        with ThreadPoolExecutor(len(self._parts)) as pool:
            for _ in range(PASSES):
                begin = time.perf_counter()
                list(pool.map(lambda part: float(np.dot(part, part)), self._parts))
                rates.append(self._bytes / (time.perf_counter() - begin))
        return statistics.median(rates)


class ProductProbe:
    """How fast the kernel of most of a bundle's products multiplies on `threads` threads when memory does not hold it up."""

    def __init__(self, model: Model, threads: int | None) -> None:
        """Writes a graph, for which the packages of an export must be there."""
        from xlstm_edge_exporters.one_product import write_product  # noqa: PLC0415  # loads torch

        schemes = Counter((t.bits, t.block_size) for t in model.manifest.quantization.tensors.values())
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / GRAPH
            write_product(graph, WIDTH, ROWS, schemes.most_common(1)[0][0] if schemes else None)
            self._session = open_graph(graph, session_options(threads), CPU)
            self._inputs = {self._session.get_inputs()[0].name: np.ones((ROWS, WIDTH), np.float32)}
            self.measure()  # everything read and warm before the file goes

    def measure(self) -> float:
        """Multiplications with an addition a second, the median of a few passes."""
        rates = []
        for _ in range(PASSES):
            begin = time.perf_counter()
            self._session.run(None, self._inputs)
            rates.append(ROWS * WIDTH * WIDTH / (time.perf_counter() - begin))
        return statistics.median(rates)


def products_per_token(model: Model) -> int:
    """Multiplications with an addition: one for each weight but an untied embedding's, two for each number of the state."""
    manifest = model.manifest
    looked_up = 0 if manifest.model.tied else (manifest.model.vocab_size or 0) * manifest.model.width
    return manifest.model.parameters - looked_up + 2 * manifest.state.nbytes // 4


def bytes_per_token(model: Model) -> int:
    """Weights that one token reads, and its state read and written; of an untied embedding only one row counts."""
    manifest = model.manifest
    tuning = model.tuning
    files = tuning.files if tuning is not None and tuning.weights == FLOAT else manifest.files
    weights = files[weights_of(GRAPH)].bytes
    vocab, width = manifest.model.vocab_size, manifest.model.width
    if vocab is not None and not manifest.model.tied:
        scheme = manifest.quantization.tensors.get("embedding.weight")
        row = 4 * width if scheme is None else width * scheme.bits // 8 + 4 * (width // (scheme.block_size or width))
        weights -= (vocab - 1) * row
    return weights + 2 * manifest.state.nbytes
