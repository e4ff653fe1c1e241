"""Work on a large matrix some rows at a time, on all cores, with pieces that stay in a core's cache."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

PIECE = 1 << 17  # numbers worked on at once
LARGE_PIECE = 1 << 25  # numbers of a part that need not stay in a cache


def by_rows(rows: int, columns: int, work: Callable[[slice], None]) -> None:
    """Call `work` for parts of the rows: numpy lets go of Python while it computes."""
    step = max(1, PIECE // columns)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, [slice(start, start + step) for start in range(0, rows, step)]):
            pass


def large_parts(rows: int, columns: int) -> Iterator[slice]:
    """Parts of a matrix's rows that take little memory beside it."""
    step = max(1, LARGE_PIECE // columns)
    for start in range(0, rows, step):
        yield slice(start, start + step)
