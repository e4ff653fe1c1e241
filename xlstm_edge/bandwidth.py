"""Memory bandwidth: how fast this machine reads, and how much a token must read."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from xlstm_edge_runtime import Model
from xlstm_edge_runtime.layout import weights_of

SIZE = 64 << 20  # float32 values: 256 MB, beyond any cache
PASSES = 4


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


def bytes_per_token(model: Model) -> int:
    """Weights that one token reads, and its state read and written; of an untied embedding only one row counts."""
    manifest = model.manifest
    weights = manifest.files[weights_of(manifest.graph.file)].bytes
    vocab, width = manifest.model.vocab_size, manifest.model.width
    if vocab is not None and not manifest.model.tied:
        scheme = manifest.quantization.tensors.get("embedding.weight")
        row = 4 * width if scheme is None else width * scheme.bits // 8 + 4 * (width // scheme.block_size)
        weights -= (vocab - 1) * row
    return weights + 2 * manifest.state.nbytes
