"""Lines to an open stream such as stdout: whole, unbuffered, and with a warning if its reader stops reading."""

from __future__ import annotations

import logging
import os
import select
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from adedge.runtime.disk import writing

log = logging.getLogger(__name__)

BLOCKED_S = 5.0
"""After this time without a reader a warning says that verdicts wait."""


class LineStream:
    """Appends lines of JSON to a text stream, which stays open.

    A stream that is a file for the operating system is written to directly: Python's buffer would keep a line that the
    disk refused, and write it again later. Others (`io.StringIO`) are written to and flushed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._in_line = False
        try:
            self._descriptor = stream.fileno()
        except (OSError, AttributeError):
            self._descriptor = -1

    def append(self, line: bytes) -> None:
        """Write one line. Raises `OutputError`, and `BrokenPipeError` if the reader has closed a pipe."""
        if self._descriptor < 0:
            self._stream.write(line.decode())
            self._stream.flush()
            return
        with writing(Path("stdout")):
            self._write(b"\n" + line if self._in_line else line)

    def close(self) -> None:
        """The stream stays open."""

    def _write(self, line: bytes) -> None:
        self._stream.flush()
        written = 0
        while written < len(line):
            self._wait_for_reader()
            with suppress(BlockingIOError):
                written += os.write(self._descriptor, line[written:])
            self._in_line = written < len(line)

    def _wait_for_reader(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        started = time.monotonic()
        if poll.poll(BLOCKED_S * 1000):
            return
        log.warning(
            "nobody has read the verdicts on stdout for %.0f s: further verdicts wait, and cameras drop frames; "
            "let the reader read on, or write the verdicts to a file with --jsonl",
            BLOCKED_S,
        )
        while not poll.poll(BLOCKED_S * 1000):
            pass
        log.warning("stdout is read again, after %.0f s", time.monotonic() - started)
