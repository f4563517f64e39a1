"""A progress bar on standard error, where that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(about: str) -> Iterator[Callable[[int, int], object]]:
    """While it is open, a function that is told how many are done, and of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Standard output is left alone: it may be a file.
    with Progress(
        *columns, console=console, disable=not console.is_terminal, redirect_stdout=False, transient=True
    ) as shown:
        task = shown.add_task(about, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
