"""How sources and outputs are opened together: names, order, what stays closed after a refusal, what is required."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adedge.cli.streams import Outputs, open_sinks, open_sources, report_failures
from adedge.errors import AdedgeError, OutputError, UsageError
from adedge.runtime import sources
from adedge.runtime.evidence import KEEP_ALL
from adedge.runtime.line_file import NO_ROTATION
from adedge.runtime.sinks import BestEffort, JsonLinesSink, ListSink, Sink
from adedge.runtime.sources import ArraySource, Frame
from adedge.runtime.verdict import Verdict

ONE, TWO = "synthetic:brick?frames=1", "synthetic:brick?frames=2"


def outputs(**changes: Any) -> Outputs:
    nothing: dict[str, Any] = dict.fromkeys(("jsonl", "video", "rejects", "maps"))
    options = {"rotation": NO_ROTATION, "retention": KEEP_ALL, "outline": True, "strict": False}
    return Outputs(**{**nothing, **options, **changes})


def cameras(count: int) -> list[sources.FrameSource]:
    return [ArraySource([np.zeros((16, 16, 3), np.uint8)]) for _ in range(count)]


def close(sinks: list[list[Sink]]) -> None:
    for own in sinks:
        for sink in own:
            sink.close()


def test_sources_open_in_their_order_under_the_names_given() -> None:
    opened = open_sources([ONE, TWO], ["left", "right"], strict=False, reconnect_s=0)
    assert [(source.name, source.total) for source in opened] == [("left", 1), ("right", 2)]
    for source in opened:
        source.close()


@pytest.mark.parametrize("names", [["one"], ["a", "a"], ["a", " "], ["a", "b\n"], ["a", "b", "c"]])
def test_names_that_do_not_tell_the_sources_apart_are_refused(names: list[str]) -> None:
    with pytest.raises(UsageError, match=rf"{len(names)} --name for 2 source\(s\): give each source one"):
        open_sources([ONE, TWO], names, strict=False, reconnect_s=0)


def test_a_source_that_is_missing_closes_those_already_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    closed: list[str] = []
    open_source = sources.open_source

    def watched(address: Any, **options: Any) -> Any:
        source = open_source(address, **options)
        monkeypatch.setattr(source, "close", lambda: closed.append(source.name))
        return source

    monkeypatch.setattr(sources, "open_source", watched)
    with pytest.raises(AdedgeError, match="nowhere"):
        open_sources([ONE, TWO, str(tmp_path / "nowhere.mp4")], [], strict=False, reconnect_s=0)
    assert len(closed) == 2


def test_verdicts_come_first_and_each_source_has_a_video_of_its_own(tmp_path: Path) -> None:
    wanted = outputs(
        jsonl=tmp_path / "v.jsonl", video=tmp_path / "v.avi", rejects=tmp_path / "rejects", maps=tmp_path / "maps"
    )
    left, right = open_sinks(cameras(2), wanted, None)
    names = [[sink.name for sink in own if isinstance(sink, BestEffort)] for own in (left, right)]
    assert names == [["verdicts", "rejects", "maps", "the video"]] * 2
    assert left[:-1] == right[:-1]
    assert left[-1] is not right[-1]
    close([left, right])


def test_strict_requires_every_output_and_lets_lost_verdicts_end_the_run(tmp_path: Path) -> None:
    for strict in (False, True):
        (own,) = open_sinks(
            cameras(1), outputs(jsonl=tmp_path / "v.jsonl", maps=tmp_path / "maps", strict=strict), None
        )
        assert isinstance(own[0], JsonLinesSink) is strict
        required = {sink.name: sink.required for sink in own if isinstance(sink, BestEffort)}
        assert required == ({"maps": True} if strict else {"verdicts": True, "maps": False})
        close([own])


def test_a_refused_output_leaves_the_file_of_verdicts_unopened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a supported kind of video"):
        open_sinks(cameras(1), outputs(jsonl=tmp_path / "v.jsonl", video=tmp_path / "film.gif"), None)
    assert not (tmp_path / "v.jsonl").exists()


class Full(ListSink):
    def take(self, verdict: Verdict, frame: Frame) -> None:
        raise OutputError("the disk is full")


@pytest.mark.parametrize("required", [False, True])
def test_an_output_that_several_sources_share_is_reported_once(
    capsys: pytest.CaptureFixture[str], required: bool
) -> None:
    verdict = Verdict(
        frame_id=0,
        name="a",
        captured_at_ns=0,
        decided_at_ns=0,
        score=0.1,
        threshold=0.5,
        anomalous=False,
        timings_ms={},
    )
    shared, whole = BestEffort(Full(), "maps", required=required), BestEffort(ListSink(), "rejects", required=True)
    for sink in (shared, whole):
        sink.take(verdict, Frame(0, 0, np.zeros((2, 2, 3), np.uint8), "a"))
    capsys.readouterr()
    assert report_failures([[shared, whole], [shared, whole]]) is required
    assert capsys.readouterr().err.count("maps: incomplete, 1 could not be written") == 1
