"""stdout gets whole lines, at once; a reader that does not read is noticed."""

from __future__ import annotations

import fcntl
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from adedge.runtime import line_stream
from adedge.runtime.disk import DiskFull
from adedge.runtime.line_stream import LineStream

LINE = b"x" * 999 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The reader's descriptor, and a stream to write to, of a pipe that holds 16 KiB."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16_384)
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


def test_lines_are_there_at_once_after_what_was_written_before(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    stream.write("before ")
    LineStream(stream).append(b"line\n")
    assert os.read(reader, 100) == b"before line\n"


def test_a_stream_that_is_no_file_is_flushed() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    LineStream(stream).append("é\n".encode())
    assert stream.buffer.getvalue() == "é\n".encode()  # type: ignore[attr-defined]


@pytest.mark.fault("nobody reads the verdicts on stdout")
@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_does_not_read_is_named(
    pipe: tuple[int, TextIO], blocking: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader, stream = pipe
    os.set_blocking(stream.fileno(), blocking)
    monkeypatch.setattr(line_stream, "BLOCKED_S", 0.05)
    lines = LineStream(stream)

    def write() -> None:
        for _ in range(60):
            lines.append(LINE)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "nobody has read the verdicts" in caplog.text
    assert "--jsonl" in caplog.text
    assert len(caplog.records) == 1
    time.sleep(0.2)
    assert len(caplog.records) == 1  # said once
    received = b""
    while len(received) < 60 * len(LINE):
        received += os.read(reader, 1000)
    thread.join(timeout=10)
    assert received == LINE * 60
    assert "stdout is read again" in caplog.text


@pytest.mark.fault("nobody reads the verdicts on stdout")
def test_a_reader_that_has_left_is_a_broken_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, pytest.raises(BrokenPipeError):
        LineStream(stream).append(LINE)


@pytest.mark.fault("the disk is full while verdicts are written")
def test_a_full_disk_keeps_nothing_to_write_later() -> None:
    with Path("/dev/full").open("w") as stream:
        with pytest.raises(DiskFull, match="holds stdout is full"):
            LineStream(stream).append(LINE)
        stream.flush()  # with a buffered line this would raise, as it would at the end of the process


def test_a_line_after_a_torn_one_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.jsonl"
    write = os.write
    with path.open("w") as stream:
        lines = LineStream(stream)

        def torn(descriptor: int, data: bytes) -> int:
            monkeypatch.setattr(os, "write", refuse)
            return write(descriptor, data[:3])

        def refuse(descriptor: int, data: bytes) -> int:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(os, "write", torn)
        with pytest.raises(DiskFull):
            lines.append(b"first\n")
        monkeypatch.undo()
        lines.append(b"second\n")
        lines.append(b"third\n")
    assert path.read_bytes() == b"fir\nsecond\nthird\n"
