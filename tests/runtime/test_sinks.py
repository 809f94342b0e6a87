"""What is written can be read back by others, and stays whole when a disk fills up."""

from __future__ import annotations

import io
import json
import resource
import time
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import pytest

from adedge.errors import OutputError, UsageError
from adedge.runtime import sinks
from adedge.runtime.sinks import CODECS, JsonLinesSink, ListSink, MapsSink, RejectsSink, VideoSink
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
