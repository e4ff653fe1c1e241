"""Progress bars on standard error, one a stage; silent where nobody looks."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Report = Callable[[str, int, int], None]


@contextlib.contextmanager
def bars(console: Console) -> Iterator[Report]:
    """Yield `report(stage, done, total)`; each new stage gets a bar."""
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield report


@contextlib.contextmanager
def until_done(console: Console) -> Iterator[Report]:
    """As `bars`, from the first report until a stage is complete: afterwards the terminal belongs to what is printed."""
    with contextlib.ExitStack() as stack:
        shown: list[Report] = []

        def report(stage: str, done: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(bars(console)))
            shown[0](stage, done, total)
            if done >= total:
                stack.close()
                shown.clear()

        yield report
