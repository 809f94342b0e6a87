"""What `adedge run` shows: a status line that never ends a run, a summary, and the runtime's warnings."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from rich.console import Console

from adedge.cli import status
from adedge.runtime.pipeline import Stream
from adedge.runtime.sinks import ListSink
from adedge.runtime.sources import ArraySource
from adedge.runtime.statistics import Statistics
from adedge.runtime.verdict import Verdict


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the status line draws on."""
    drawn = io.StringIO()
    monkeypatch.setattr(status, "console", Console(file=drawn, force_terminal=True, width=200))
    return drawn


def counted(*scores: float) -> Statistics:
    """Verdicts 0.5 s apart, each 4 ms after its capture; above 0.5 a frame is rejected."""
    statistics = Statistics(dropped=3, skipped=2)
    for index, score in enumerate(scores):
        statistics.add(
            Verdict(
                frame_id=index,
                name="a",
                captured_at_ns=0,
                decided_at_ns=index * 500_000_000,
                score=score,
                threshold=0.5,
                anomalous=score > 0.5,
                timings_ms={"network": 2.0, "frame": 3.0, "verdict": 4.0},
            )
        )
    return statistics


def stream(frames: int) -> Stream:
    return Stream(ArraySource([np.zeros((2, 2, 3), np.uint8)] * frames), [ListSink()])


def test_the_status_line_tells_counts_rate_and_latency(terminal: io.StringIO) -> None:
    with status.status_line([stream(4).source, stream(6).source], stdout_is_used=False) as watch:
        assert watch is not None
        watch(counted(0.1, 0.9, 0.2))
    shown = terminal.getvalue()
    for part in ("3/10 frames", "2.0/s", "verdict p50 4.0 ms", "1 rejected", "3 dropped"):
        assert part in shown


def test_without_a_terminal_there_is_no_status_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "console", Console(file=io.StringIO()))
    with status.status_line([], stdout_is_used=False) as watch:
        assert watch is None


def test_verdicts_that_scroll_over_the_terminal_leave_no_room_for_a_status_line(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with status.status_line([], stdout_is_used=True) as watch:
        assert watch is None
    with status.status_line([], stdout_is_used=False) as watch:
        assert watch is not None


def test_a_status_line_that_fails_is_gone_and_the_run_goes_on(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(status, "_status", fail)
    with status.status_line([], stdout_is_used=False) as watch:
        assert watch is not None
        for _ in range(3):
            watch(Statistics())
    assert capsys.readouterr().err.count("the status line failed") == 1


def test_the_summary_counts_each_camera_and_all(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    status.summarise([stream(1), stream(1)], counted(0.1, 0.9, 0.2), "onnxruntime/fp32")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].split()[-2:] for line in lines[:2]] == [["camera", "0"], ["camera", "1"]]
    assert "3 frames: 2 passed, 1 rejected; 3 dropped, 2 skipped; 2.0/s" in lines[2]
    table = terminal.getvalue()
    assert "last 3 frames, onnxruntime/fp32" in table
    for row in ("network", "frame", "verdict"):
        assert row in table


def test_the_summary_of_no_frames_has_no_table(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    status.summarise([stream(0)], Statistics(), "onnxruntime/fp32")
    assert "0 frames: 0 passed, 0 rejected; 0 dropped, 0 skipped" in capsys.readouterr().err
    assert terminal.getvalue() == ""


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(f"adedge.runtime{name}") for name in ("", ".cuda.kernel_cache", ".cuda.inspector")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.mark.usefixtures("logging_as_before")
def test_warnings_and_some_notices_are_shown_but_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    status.show_logging()
    logging.getLogger("adedge.runtime.page").warning("a warning")
    logging.getLogger("adedge.runtime.cuda.kernel_cache").info("a notice")
    logging.getLogger("adedge.runtime.page").info("a detail")
    logging.getLogger("adedge.runtime.page").error("an error, which is raised too")
    shown = capsys.readouterr().err
    assert "a warning" in shown
    assert "a notice" in shown
    assert "a detail" not in shown
    assert "an error" not in shown


def test_opencv_is_silenced_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENCV_LOG_LEVEL", "DEBUG")
    monkeypatch.delenv("OPENCV_FFMPEG_LOGLEVEL", raising=False)
    status.quiet_opencv()
    assert os.environ["OPENCV_LOG_LEVEL"] == "DEBUG"
    assert os.environ["OPENCV_FFMPEG_LOGLEVEL"] == "-8"
