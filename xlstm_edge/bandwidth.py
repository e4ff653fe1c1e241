"""The memory wall: how fast this machine reads, and how much a token must read."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from xlstm_edge_runtime import Model

SIZE = 64 << 20  # float32 values: 256 MB, beyond any cache
ROUNDS = 5


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read from memory at best, measured with dot products over a large array."""
    data = np.ones(SIZE, np.float32)
    parts = np.array_split(data, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            list(pool.map(lambda part: float(np.dot(part, part)), parts))
            best = max(best, data.nbytes / (time.perf_counter() - begin))
    return best


def bytes_per_token(model: Model) -> int:
    """Weights that one token reads, and its state read and written; of an untied embedding only one row counts."""
    manifest = model.manifest
    weights = manifest.files[f"{manifest.graph.file}.data"].bytes
    vocab, width = manifest.model.vocab_size, manifest.model.width
    if vocab is not None and not manifest.model.tied:
        scheme = manifest.quantization.get("tensors", {}).get("embedding.weight")
        row = 4 * width if scheme is None else width * scheme["bits"] // 8 + 4 * (width // scheme["group"])
        weights -= (vocab - 1) * row
    return weights + 2 * manifest.state.nbytes
