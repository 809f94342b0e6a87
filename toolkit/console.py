"""What commands and benchmarks show the same way: progress, tables and notes; on stderr, so that stdout stays data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from adedge.progress import Progress

console = Console(stderr=True, highlight=False, emoji=False)  # "synthetic:brick:" is no emoji
output = Console(highlight=False, emoji=False)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar with elapsed and remaining time; yields the callback ``step(done, total, text)``.

    Not a terminal (a log file, CI): one line at each tenth instead of a bar.
    """
    if not console.is_terminal:
        shown = -1

        def log(done: int, total: int, text: str) -> None:
            nonlocal shown
            tenth = 10 * done // max(total, 1)
            if tenth != shown:  # smaller again: the next part of the work began
                shown = tenth
                console.print(f"{title}: {done}/{total} {text}", markup=False)

        yield log
        return
    bar = ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[text]}"),
        console=console,
    )
    with bar:
        task = bar.add_task(title, total=None, text="")

        def step(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield step


def note(text: str, style: str | None = None) -> None:
    """One line for the person at the terminal, printed as it is: file names may hold brackets."""
    console.print(text, style=style, markup=False)


def warn(text: str) -> None:
    """One line that should not be missed."""
    console.print("[yellow]warning:[/yellow]", escape(text))
