"""What is written can be read back by others, and stays whole when a disk fills up."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import pytest

from adedge.errors import OutputError, UsageError
from adedge.runtime import sinks
from adedge.runtime.events import Event
from adedge.runtime.sinks import CODECS, BestEffort, JsonLinesSink, ListSink, MapsSink, RejectsSink, VideoSink
from adedge.runtime.sources import Frame
from adedge.runtime.verdict import Verdict

IMAGE = np.random.default_rng(3).integers(0, 256, (90, 121, 3), np.uint8)
RUN = "20260131T081502Z-4f2a"
MAP = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)


def frame(index: int = 0, image: np.ndarray = IMAGE) -> Frame:
    return Frame(index, time.monotonic_ns(), image, f"part {index}.png")


def verdict(of: Frame, score: float = 0.75) -> Verdict:
    return Verdict(
        frame_id=of.index,
        name=of.name,
        captured_at_ns=of.captured_at_ns,
        decided_at_ns=of.captured_at_ns + 5_000_000,
        score=score,
        threshold=0.5,
        anomalous=score > 0.5,
        z=2.5,
        map=MAP,
        timings_ms={"preprocess": 0.1, "network": 3.0, "scoring": 0.4, "frame": 3.5, "verdict": 5.0},
    )


def test_a_line_of_json_per_verdict() -> None:
    stream = io.StringIO()
    sink = JsonLinesSink(stream, run_id=RUN)
    before = datetime.now(timezone.utc)
    for index, score in enumerate((0.75, 0.25)):
        sink.take(verdict(frame(index), score), frame(index))
    sink.close()
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    age_s = (datetime.fromisoformat(first.pop("captured_at").replace("Z", "+00:00")) - before).total_seconds()
    assert abs(age_s) < 60
    assert first == {
        "run": RUN,
        "frame": 0,
        "name": "part 0.png",
        "score": 0.75,
        "threshold": 0.5,
        "anomalous": True,
        "z": 2.5,
        "latency_ms": {"preprocess": 0.1, "network": 3.0, "scoring": 0.4, "frame": 3.5, "verdict": 5.0},
    }
    assert (second["frame"], second["anomalous"]) == (1, False)


def test_lines_are_on_disk_before_the_sink_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "verdicts.jsonl"
    sink = JsonLinesSink(path)
    sink.take(verdict(frame()), frame())
    assert len(path.read_text().splitlines()) == 1
    sink.close()
    sink.close()


def test_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    sink = JsonLinesSink(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # The kernel then writes a part and refuses the rest.
    try:
        with pytest.raises(OutputError, match=r"verdicts\.jsonl"):
            for index in range(10):
                sink.take(verdict(frame(index)), frame(index))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sink.close()
    lines = path.read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(len(lines)))
    assert 1 <= len(lines) < 10
    assert path.read_text().endswith("\n")


def test_full_device_is_one_sentence() -> None:
    sink = JsonLinesSink(Path("/dev/full"))
    with pytest.raises(OutputError, match="the disk that holds /dev/full is full"):
        sink.take(verdict(frame()), frame())
    sink.close()


@pytest.mark.parametrize("make", [JsonLinesSink, RejectsSink, MapsSink, lambda path: VideoSink(path / "v.webm")])
def test_place_that_cannot_be_written(tmp_path: Path, make: type) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        make(tmp_path / "file" / "out")


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_video_can_be_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"line{suffix}"
    sink = VideoSink(path, fps=10, beside=False)
    for index in range(12):
        image = np.full((120, 160, 3), 20 * index, np.uint8)
        of = frame(index, image if index != 7 else np.full((60, 80, 3), 140, np.uint8))
        sink.take(verdict(of, score=0.1), of)
    sink.close()
    sink.close()
    reader = cv2.VideoCapture(str(path))
    levels = []
    while (read := reader.read())[0]:
        levels.append(float(read[1][5:60, 5:100].mean()))
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert len(levels) == 12
    # The map's hot corner lies elsewhere; what is left is the frame, up to the codec's loss.
    np.testing.assert_allclose(levels, [20 * index for index in range(12)], atol=12)


def test_video_of_large_frames_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "line.avi"
    sink = VideoSink(path, longest_side=640)
    of = frame(0, np.zeros((1500, 2000), np.uint8))
    sink.take(verdict(of), of)
    sink.close()
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_WIDTH) <= 645


def test_video_needs_a_known_suffix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in one of \.webm, \.mp4, \.avi, \.mkv"):
        VideoSink(tmp_path / "line.gif")


def test_no_frame_no_video(tmp_path: Path) -> None:
    VideoSink(tmp_path / "line.webm").close()
    assert list(tmp_path.iterdir()) == []


def test_video_stops_before_the_disk_is_full_and_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "line.avi"
    sink = VideoSink(path)
    for index in range(5):
        sink.take(verdict(frame(index)), frame(index))
    monkeypatch.setattr(sinks, "_RESERVE_BYTES", 1 << 62)
    with pytest.raises(OutputError, match=r"line\.avi is full"):
        sink.take(verdict(frame(5)), frame(5))
    sink.close()
    reader = cv2.VideoCapture(str(path))
    assert sum(1 for _ in iter(reader.grab, False)) == 5


def test_rejects_are_kept_as_seen_and_with_their_overlay(tmp_path: Path) -> None:
    sink = RejectsSink(tmp_path / "rejects", run_id=RUN)
    for index, score in enumerate((0.75, 0.25, 0.9)):
        sink.take(verdict(frame(index), score), frame(index))
    sink.close()
    written = sorted(path.name for path in (tmp_path / "rejects").iterdir())
    assert written == [
        f"{RUN}_000000_part_0.overlay.jpg",
        f"{RUN}_000000_part_0.png",
        f"{RUN}_000002_part_2.overlay.jpg",
        f"{RUN}_000002_part_2.png",
    ]
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "rejects" / written[1])), IMAGE)


def test_an_nv12_frame_is_drawn_as_opencv_converts_it(tmp_path: Path) -> None:
    image = np.random.default_rng(4).integers(0, 256, (135, 120), np.uint8)
    converted = cv2.cvtColor(image, cv2.COLOR_YUV2BGR_NV12)
    written = []
    for of in (Frame(0, 0, image, "camera#0", nv12=True), Frame(0, 0, converted, "camera#0")):
        folder = tmp_path / str(len(written))
        made = (RejectsSink(folder, run_id=RUN), VideoSink(folder / "line.avi"))
        for sink in made:
            sink.take(verdict(of), of)
            sink.close()
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(written[0]) == 3
    assert written[0] == written[1]
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "0" / f"{RUN}_000000_camera_0.png")), converted)


def test_name_of_a_frame_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    of = Frame(3, time.monotonic_ns(), IMAGE, "../../../etc/part.png")
    MapsSink(tmp_path / "maps", run_id=RUN).take(verdict(of), of)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.npy")] == [
        f"maps/{RUN}_000003_etc_part.npy"
    ]


def test_maps_are_kept_exactly(tmp_path: Path) -> None:
    sink = MapsSink(tmp_path, run_id=RUN)
    sink.take(verdict(frame(4)), frame(4))
    np.testing.assert_array_equal(np.load(tmp_path / f"{RUN}_000004_part_4.npy"), MAP)


@pytest.mark.fault("frame rates such as 0, nan, infinity and 90000")
@pytest.mark.parametrize(
    ("stated", "written"),
    [
        (30000 / 1001, 29.970),
        (24000 / 1001, 23.976),
        (119.88, 119.88),
        (119.8765, 119.88),  # 119.877 would be 119877/1000, and 16 bits end at 65535
        (1e5 / 3, 25.0),
        (90_000.0, 25.0),  # a still picture, such as cover art
        (0.0, 25.0),
        (math.nan, 25.0),
        (math.inf, 25.0),
        (-30.0, 25.0),
        (0.5, 0.5),
        (1000.0, 1000.0),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_every_frame_rate_gives_a_video(tmp_path: Path, stated: float, written: float, suffix: str) -> None:
    path = tmp_path / f"line{suffix}"
    sink = VideoSink(path, fps=stated)
    for index in range(3):
        sink.take(verdict(frame(index)), frame(index))
    sink.close()
    reader = cv2.VideoCapture(str(path))
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(written, rel=1e-4)
    assert sum(1 for _ in iter(reader.grab, False)) == 3


def test_a_rate_that_is_none_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    VideoSink(tmp_path / "line.mp4", fps=90_000)
    assert "states 90000 frames per second: the video plays at 25" in caplog.text


def test_an_existing_video_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "line.avi"
    path.write_bytes(b"of an earlier run")
    sink = VideoSink(path, run_id=RUN)
    sink.take(verdict(frame()), frame())
    sink.close()
    assert path.read_bytes() == b"of an earlier run"
    assert cv2.VideoCapture(str(tmp_path / f"line.{RUN}.avi")).grab()
    assert f"this run's video is line.{RUN}.avi" in caplog.text


@pytest.mark.fault("pictures too long for JPEG, H.264 or VP8")
@pytest.mark.parametrize("shape", [(70_000, 3), (40, 70_000), (70_000, 40)])
def test_a_picture_too_long_for_its_format_is_scaled_down(tmp_path: Path, shape: tuple[int, int]) -> None:
    long = frame(0, np.full((*shape, 3), 90, np.uint8))
    sinks_of_pictures = (RejectsSink(tmp_path / "rejects", run_id=RUN), VideoSink(tmp_path / "line.webm"))
    for sink in sinks_of_pictures:
        sink.take(verdict(long), long)
        sink.close()
    original = cv2.imread(str(tmp_path / "rejects" / f"{RUN}_000000_part_0.png"))
    overlay = cv2.imread(str(tmp_path / "rejects" / f"{RUN}_000000_part_0.overlay.jpg"))
    np.testing.assert_array_equal(original, long.image)
    assert overlay is not None
    assert max(overlay.shape) <= 65_535
    assert cv2.VideoCapture(str(tmp_path / "line.webm")).grab()


@pytest.mark.fault("the disk fills up with rejects and maps")
def test_half_a_map_is_never_left(tmp_path: Path) -> None:
    sink = MapsSink(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError):
            sink.take(verdict(frame()), frame())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


NOT_UTF8 = os.fsdecode(b"Gr\xf6\xdfe \x9b\x1b.png")


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "ascii"])
def test_every_name_makes_a_line_of_json_in_utf8(encoding: str) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    names = (NOT_UTF8, "Größe 中文 😀.png", "a\x9b2J\u2028\u202e\x7f.png")
    sink = JsonLinesSink(stream)
    for name in names:
        sink.take(replace(verdict(frame()), name=name), frame())
    lines = written.getvalue().decode("utf-8").split("\n")
    assert [json.loads(line)["name"] for line in lines[:-1]] == ["Gr\\xf6\\xdfe \\x9b\x1b.png", *names[1:]]
    assert not set("".join(lines)) & set("\x1b\x9b\x7f\u2028\u202e")


def test_a_file_of_lines_takes_every_name(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "v.jsonl")
    sink.take(replace(verdict(frame()), name=NOT_UTF8), frame())
    sink.close()
    assert json.loads((tmp_path / "v.jsonl").read_bytes().decode())["name"].startswith("Gr\\xf6")


class Failing(ListSink):
    """Fails for every verdict but the second, and when it is closed."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def take(self, verdict: Verdict, frame: Frame) -> None:
        if verdict.frame_id != 1:
            raise self._error
        super().take(verdict, frame)

    def close(self) -> None:
        super().close()
        raise self._error


@pytest.mark.fault("an overlay, video, map or page that fails during a run")
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OutputError("the disk is full"), "the disk is full"),
        (RuntimeError("bug"), "RuntimeError: bug"),
        (MemoryError(), "MemoryError"),
        (cv2.error("drawing"), "drawing"),
    ],
)
def test_an_output_that_fails_is_named_once_and_counted(
    error: Exception, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing(error)
    sink = BestEffort(failing, "rejects")
    for index in range(4):
        sink.take(verdict(frame(index)), frame(index))
    sink.close()
    assert (sink.failures, len(failing.verdicts), failing.closed) == (4, 1, True)
    (record,) = caplog.records
    assert record.getMessage().startswith("rejects: ")
    assert text in record.getMessage()


@pytest.mark.parametrize("error", [BrokenPipeError(), KeyboardInterrupt()])
def test_the_end_of_a_run_is_no_failure_of_an_output(error: BaseException) -> None:
    sink = BestEffort(Failing(error), "verdicts")  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        sink.take(verdict(frame()), frame())
    assert sink.failures == 0


def test_list_sink_keeps_copies_of_maps() -> None:
    sink = ListSink()
    reused = MAP.copy()
    of = frame()
    sink.take(verdict(of), of)
    mine = sink.verdicts[0].map
    assert mine is not None
    reused.fill(0)
    np.testing.assert_array_equal(mine, MAP)
    assert not np.shares_memory(mine, MAP)


def test_events_are_lines_among_the_verdicts(tmp_path: Path) -> None:
    event = Event(
        kind="camera_fault",
        fault="silent",
        at_ns=time.monotonic_ns(),
        seconds=2.0,
        name="line",
        message="line delivers no frame",
    )
    path, stream = tmp_path / "v.jsonl", io.StringIO()
    for target in (path, stream):
        sink = JsonLinesSink(target)
        sink.take(verdict(frame()), frame())
        sink.report(event)
        sink.close()
    for text in (path.read_text(), stream.getvalue()):
        first, second = map(json.loads, text.splitlines())
        assert "event" not in first
        assert (second["event"], second["fault"], second["name"]) == ("camera_fault", "silent", "line")
        assert "score" not in second
