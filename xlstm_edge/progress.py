"""Progress bars on standard error, one a stage; silent where nobody looks."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from xlstm_edge_runtime.progress import Progress

from . import facade
from .terminal import instant_interrupt


class CountColumn(ProgressColumn):
    """How many of how many, where that is known."""

    def render(self, task: Task) -> Text:
        """Nothing while a stage cannot tell."""
        return Text("" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f}")


@contextlib.contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """Yield a `Progress`; each new stage gets a bar, a moving one while `total` is 0 (not known)."""
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        CountColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = console.quiet or not console.is_terminal
    with Bars(*columns, console=console, disable=hidden) as shown:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                _finish(shown)
                tasks[stage] = shown.add_task(stage, total=total or None)
            shown.update(tasks[stage], completed=done, total=total or None)

        yield report
        _finish(shown)


@contextlib.contextmanager
def until_done(console: Console) -> Iterator[Progress]:
    """As `bars`, from the first report until a stage is complete: afterwards the terminal belongs to what is printed."""
    with contextlib.ExitStack() as stack:
        shown: list[Progress] = []

        def report(stage: str, done: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(bars(console)))
            shown[0](stage, done, total)
            if done >= total:
                stack.close()
                shown.clear()

        yield report


def _finish(shown: Bars) -> None:
    """A stage that could not tell how long it takes is over when the next begins."""
    for task in shown.tasks:
        if task.total is None:
            shown.update(task.id, completed=1, total=1)


def load_exporters(progress: Progress) -> None:
    """torch takes seconds, in which Ctrl-C must work and somebody is looking."""
    progress("loading torch", 0, 0)
    with instant_interrupt():
        facade.load_exporters()
