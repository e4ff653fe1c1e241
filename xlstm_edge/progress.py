"""Progress bars on standard error, one a stage; silent where nobody looks."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from . import facade
from .terminal import instant_interrupt

Report = Callable[[str, int, int], None]


class CountColumn(ProgressColumn):
    """How many of how many, where that is known."""

    def render(self, task: Task) -> Text:
        """Nothing while a stage cannot tell."""
        return Text("" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f}")


@contextlib.contextmanager
def bars(console: Console) -> Iterator[Report]:
    """Yield `report(stage, done, total)`; each new stage gets a bar, a moving one while `total` is 0 (not known)."""
    columns = (TextColumn("{task.description:<14}"), BarColumn(), CountColumn(), TimeElapsedColumn())
    hidden = console.quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                _finish(progress)
                tasks[stage] = progress.add_task(stage, total=total or None)
            progress.update(tasks[stage], completed=done, total=total or None)

        yield report
        _finish(progress)


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


def _finish(progress: Progress) -> None:
    """A stage that could not tell how long it takes is over when the next begins."""
    for task in progress.tasks:
        if task.total is None:
            progress.update(task.id, completed=1, total=1)


def load_exporters(report: Report) -> None:
    """torch takes seconds, in which Ctrl-C must work and somebody is looking."""
    report("loading torch", 0, 0)
    with instant_interrupt():
        facade.load_exporters()
