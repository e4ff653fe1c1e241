"""What stored integers mean: the one definition that exporter, runtime and every other reader share.

A matrix (N, K) is cut along K into blocks. Each has one float32 scale s and integers q of 2, 4 or 8 bits, `8 / bits` of them
a byte, low bits first; a weight is s * (q - 2**(bits-1)). It is the layout of onnxruntime's MatMulNBits.
"""

import numpy as np
from numpy.typing import NDArray


def to_float(data: NDArray[np.uint8], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """(N, blocks * block_size) float32 of `data` (N, blocks, block_size * bits / 8) and `scales` (N, blocks)."""
    rows, blocks, width = data.shape
    per_byte = 8 // bits
    values = np.empty((rows, blocks, width * per_byte), np.float32)
    for place in range(per_byte):
        values[..., place::per_byte] = (data >> np.uint8(place * bits)) & np.uint8(2**bits - 1)
    values -= 1 << (bits - 1)
    with np.errstate(over="ignore", invalid="ignore"):  # scales of a damaged file
        values *= scales[..., None]
    return values.reshape(rows, -1)
