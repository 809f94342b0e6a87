"""Terminal output of commands and benchmarks: progress and notes on stderr, results on stdout.

File names can hold anything. What a terminal would take for a command is shown as an escape, in every message, bar and
table, and what the console's encoding lacks as well.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

from adedge.escaping import printable
from adedge.progress import Progress


class _Console(Console):
    """A console that escapes control characters in strings, those in the cells of tables included."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, lines=True), **options)


class _Stderr(io.TextIOBase):
    """Whatever sys.stderr is at the moment; a message that cannot be written (full disk, closed pipe) ends no run."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream().flush()

    def isatty(self) -> bool:
        return bool(self._stream().isatty())

    def fileno(self) -> int:
        return int(self._stream().fileno())

    @staticmethod
    def _stream() -> TextIO:
        # During a progress bar Rich puts a proxy for the console in the place of sys.stderr.
        stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return io.StringIO() if stream is None else stream


# Without emoji=False Rich draws ":brick:" in a source as an emoji.
console = _Console(file=cast(TextIO, _Stderr()), highlight=False, emoji=False)
output = _Console(highlight=False, emoji=False, markup=False)  # tables show names of others, such as "[/b]"


def escape_unencodable() -> None:
    """Let stdout and stderr show characters that their encoding lacks as escapes, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
                console.print(printable(f"{title}: {done}/{total} {text}"), markup=False)

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
        task = bar.add_task(escape(printable(title)), total=None, text="")

        def step(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, text=escape(printable(text)))

        yield step


def note(text: str, style: str | None = None) -> None:
    """Print one line to stderr, without markup: file names may contain brackets.

    It is never broken, so that a command in it can be copied, and a log be searched.
    """
    console.print(printable(text), style=style, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print one line to stderr, marked as a warning."""
    console.print("[yellow]warning:[/yellow]", escape(printable(text)), soft_wrap=True)
