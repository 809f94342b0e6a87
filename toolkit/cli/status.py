"""What `adedge run` shows on the terminal: a status line while it runs, a summary, and what the runtime logs."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table
from rich.text import Text

from adedge.console import console, note, warn

if TYPE_CHECKING:
    from adedge.runtime.pipeline import Stream
    from adedge.runtime.sources import FrameSource
    from adedge.runtime.statistics import Statistics

PERCENTILES = (50, 95, 99)


@contextmanager
def status_line(
    frames: Sequence[FrameSource], *, stdout_is_used: bool
) -> Iterator[Callable[[Statistics], None] | None]:
    """Show a status line on the terminal, unless verdicts scroll over the same terminal."""
    if not console.is_terminal or (stdout_is_used and sys.stdout.isatty()):
        yield None
        return
    drawn_at = 0.0
    totals = [one.total for one in frames if one.total is not None]
    total = sum(totals) if len(totals) == len(frames) else None
    # By default Live replaces sys.stdout, which carries the verdicts.
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:

        def watch(statistics: Statistics) -> None:
            nonlocal drawn_at
            if time.monotonic() - drawn_at > 0.2:
                drawn_at = time.monotonic()
                try:
                    live.update(_status(statistics, total), refresh=True)
                except Exception as error:  # it only shows what happens
                    drawn_at = math.inf
                    warn(f"the status line failed and is gone ({error}); the inspection goes on")

        yield watch


def _status(statistics: Statistics, total: int | None) -> Text:
    position = f"{statistics.frames}" if total is None else f"{statistics.frames}/{total}"
    rate = statistics.frames_per_second if statistics.frames > 1 else 0.0
    return Text.assemble(
        (f"{position} frames", "bold"),
        f"  {rate:.1f}/s  verdict p50 {statistics.latency_ms('verdict', 50):.1f} ms  ",
        (f"{statistics.rejects} rejected", "bold red" if statistics.rejects else ""),
        f"  {statistics.dropped} dropped",
    )


def summarise(streams: Sequence[Stream], statistics: Statistics, engine: str) -> None:
    """Print the counts of each source and of all, and a table of latencies."""
    from adedge.runtime.statistics import LATENCIES, WINDOW

    if len(streams) > 1:
        for index, stream in enumerate(streams):
            note(f"camera {index}, {stream.source.name}: {_counts(stream.statistics)}")
    rate = f"; {statistics.frames_per_second:.1f}/s" if statistics.frames > 1 else ""
    note(f"{_counts(statistics)}{rate}")
    if statistics.frames == 0:
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(f"latency in ms, last {min(statistics.frames, WINDOW)} frames, {engine}", no_wrap=True)
    for percentile in PERCENTILES:
        table.add_column(f"p{percentile}", justify="right")
    for name in LATENCIES:
        table.add_row(name, *(f"{statistics.latency_ms(name, percentile):.1f}" for percentile in PERCENTILES))
    console.print(table)


def _counts(statistics: Statistics) -> str:
    return (
        f"{statistics.frames} frames: {statistics.frames - statistics.rejects} passed, "
        f"{statistics.rejects} rejected; {statistics.dropped} dropped, {statistics.skipped} skipped"
    )


class _ConsoleHandler(logging.Handler):
    """Prints what the runtime logs to stderr, except errors: those are raised and printed as such."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            show = warn if record.levelno >= logging.WARNING else note
            show(record.getMessage())


def show_logging() -> None:
    """Print the runtime's warnings, and the notices that kernels are being compiled or no CUDA graph is used."""
    logging.getLogger("adedge.runtime").addHandler(_ConsoleHandler())
    for name in ("kernel_cache", "inspector"):
        logging.getLogger(f"adedge.runtime.cuda.{name}").setLevel(logging.INFO)


def quiet_opencv() -> None:
    """Silence OpenCV and its FFmpeg, which print errors that adedge reports itself.

    Both read the environment when they are loaded; the ways to set this later differ between versions.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
