"""Terminal output of commands and benchmarks: progress and notes on stderr, results on stdout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from adedge.progress import Progress

console = Console(stderr=True, highlight=False, emoji=False)  # else Rich draws ":brick:" in a source as an emoji
output = Console(highlight=False, emoji=False, markup=False)  # tables show names of others, such as "[/b]"


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Show a progress bar with elapsed and remaining time; yields the callback ``step(done, total, text)``.

    If stderr is not a terminal (a log file, CI), prints one line per tenth instead.
    """
    if not console.is_terminal:
        last_tenth = -1

        def log(done: int, total: int, text: str) -> None:
            nonlocal last_tenth
            tenth = 10 * done // max(total, 1)
            if tenth != last_tenth:  # not ">": the next part of the work starts again from 0
                last_tenth = tenth
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
        task = bar.add_task(escape(title), total=None, text="")

        def step(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, text=escape(text))

        yield step


def note(text: str, style: str | None = None) -> None:
    """Print one line to stderr, without markup: file names may contain brackets.

    It is never broken, so that a command in it can be copied, and a log be searched.
    """
    console.print(text, style=style, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print one line to stderr, marked as a warning."""
    console.print("[yellow]warning:[/yellow]", escape(text), soft_wrap=True)
