"""How long work tells of itself: one type, whoever does the work and whoever shows it."""

from collections.abc import Callable

# (stage, done, total): called when a stage begins and as it goes on; total 0 where the work cannot tell how much there is.
Progress = Callable[[str, int, int], None]


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """Nobody asked."""
