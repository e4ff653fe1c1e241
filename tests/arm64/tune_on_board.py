"""Runs on a board: tunes a bundle there and prints what was chosen. An emulated board's times are counts of instructions.

PYTHONPATH=runtime python tests/arm64/boards.py run .boards pi4 tests/arm64/tune_on_board.py BUNDLE
"""

import sys

from xlstm_edge_runtime.tune import tune_bundle

if __name__ == "__main__":
    tuning = tune_bundle(sys.argv[1])
    print(f"{tuning.weights} weights, {tuning.threads} threads, {tuning.decode_per_second:.0f} tokens/s")
