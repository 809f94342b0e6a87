"""Cameras and streams: lost connections, passwords, and the pipelines given to GStreamer."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from adedge.errors import DataError, SourceError
from adedge.runtime.sources import LiveSource, open_source
from adedge.runtime.sources import live as live_module
from adedge.runtime.sources.live import LOST_AFTER


def picture(level: int, shape: tuple[int, ...] = (24, 32, 3)) -> np.ndarray:
    return np.full(shape, level, np.uint8)


class Camera:
    """What cv2.VideoCapture is to a source: delivers ``frames`` frames, then nothing."""

    def __init__(self, frames: int) -> None:
        self.left = frames
        self.released = False

    def grab(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, picture(self.left)

    def get(self, identifier: int) -> float:
        return 15.0 if identifier == cv2.CAP_PROP_FPS else 0.0

    def release(self) -> None:
        self.released = True


def live(*cameras: Camera | None, reconnect_s: float = 0.0, notices: list[str] | None = None) -> LiveSource:
    """A camera that is a new one of ``cameras`` at each connection; None is a connection that fails."""
    remaining = iter(cameras)

    def connect() -> Camera:
        camera = next(remaining, None)
        if camera is None:
            raise SourceError("not there")
        return camera

    notify = notices.append if notices is not None else None
    return LiveSource("camera", connect, reconnect_s=reconnect_s, notify=notify)  # type: ignore[arg-type]


def test_lost_camera_is_an_error_and_never_a_black_frame() -> None:
    source = live(Camera(3))
    source.open()
    frames = iter(source)
    assert [next(frames).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SourceError, match=r"camera stopped delivering frames after 3.*--reconnect"):
        next(frames)
    assert (source.live, source.fps) == (True, 15.0)


def test_reconnecting_goes_on_counting() -> None:
    first, second = Camera(2), Camera(2)
    notices: list[str] = []
    source = live(first, second, reconnect_s=1.2, notices=notices)
    source.open()
    frames = iter(source)
    assert [next(frames).index for _ in range(4)] == [0, 1, 2, 3]
    assert first.released
    assert [notice.split(":")[0] for notice in notices] == [
        "camera stopped delivering frames",
        "camera delivers frames again",
    ]
    source.close()


def test_reconnecting_is_bounded() -> None:
    source = live(Camera(1), reconnect_s=0.3)
    source.open()
    frames = iter(source)
    next(frames)
    with pytest.raises(SourceError, match="after 1"):
        next(frames)


def test_closing_ends_the_wait_for_a_camera() -> None:
    source = live(Camera(0), reconnect_s=600)
    source.open()
    ended = threading.Event()

    def iterate() -> None:
        assert list(source) == []
        ended.set()

    thread = threading.Thread(target=iterate)
    thread.start()
    source.close()
    assert ended.wait(timeout=10)
    thread.join()


class Damaged(Camera):
    """Cannot decode the frames whose places in ``damaged`` are True, in ``grab`` as FFmpeg or else as V4L2."""

    def __init__(self, damaged: list[bool], *, in_grab: bool) -> None:
        super().__init__(len(damaged))
        self._damaged, self._in_grab, self._place = damaged, in_grab, -1

    def grab(self) -> bool:
        self._place += 1
        return super().grab() and not (self._in_grab and self._damaged[self._place])

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return (False, None) if self._damaged[self._place] else super().retrieve()  # type: ignore[return-value]


@pytest.mark.fault("frames of a camera that cannot be decoded")
@pytest.mark.parametrize("in_grab", [True, False], ids=["grab", "retrieve"])
def test_frames_that_cannot_be_decoded_are_skipped_and_counted(in_grab: bool) -> None:
    source = live(Damaged([False, True, False, *[True] * (LOST_AFTER - 1), False], in_grab=in_grab))
    source.open()
    frames = iter(source)
    assert [next(frames).index for _ in range(3)] == [0, 2, 12]
    assert source.skipped == 1 + (LOST_AFTER - 1)
    with pytest.raises(SourceError, match="stopped delivering frames after 3"):
        next(frames)
    assert source.skipped == LOST_AFTER, "what follows the last frame was no frame"


@pytest.mark.fault("frames of a camera that cannot be decoded")
def test_a_camera_that_delivers_nothing_but_damaged_frames_is_lost() -> None:
    source = live(Damaged([False, *[True] * 100], in_grab=False))
    source.open()
    with pytest.raises(SourceError, match="stopped delivering frames after 1"):
        list(source)


def test_a_read_that_timed_out_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(live_module.time, "monotonic", lambda: clock[0])
    grabs: list[float] = []

    class Gone(Camera):
        def grab(self) -> bool:
            grabs.append(clock[0])
            clock[0] += 5.0
            return False

    source = live(Gone(0))
    source.open()
    with pytest.raises(SourceError, match="after 0"):
        list(source)
    assert len(grabs) == 1


@pytest.mark.fault("a camera that comes late, or never")
def test_a_camera_that_is_not_there_yet_is_waited_for() -> None:
    notices: list[str] = []
    source = live(None, None, Camera(2), reconnect_s=5, notices=notices)
    source.open()
    assert (notices, source.fps) == (["not there (waiting for it for up to 5 s)"], None)
    frames = iter(source)
    assert [next(frames).index for _ in range(2)] == [0, 1]
    assert notices[1:] == ["camera delivers frames"]
    assert source.fps == 15.0
    source.close()


@pytest.mark.fault("a camera that comes late, or never")
def test_the_wait_for_a_camera_that_never_comes_is_bounded() -> None:
    source = live(reconnect_s=0.3)
    source.open()
    with pytest.raises(SourceError, match=r"not there \(waited for it for 0.3 s\)"):
        list(source)


def test_camera_that_is_not_there() -> None:
    with pytest.raises(SourceError, match="there is no camera /dev/video97"):
        open_source("97")


@pytest.mark.skipif(
    cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER), reason="this OpenCV has GStreamer, so nothing is missing"
)
@pytest.mark.parametrize("uri", ["gst:videotestsrc", "csi://0"])
def test_gstreamer_that_is_missing_is_said(uri: str) -> None:
    with pytest.raises(SourceError, match="needs an OpenCV built with GStreamer"):
        open_source(uri)


def test_password_of_a_stream_is_not_shown() -> None:
    with pytest.raises(SourceError) as caught:
        open_source("rtsp://admin:secret@127.0.0.1:9/line")
    assert "secret" not in str(caught.value)
    assert str(caught.value).startswith("rtsp://127.0.0.1:9 delivers no video")


def test_ffmpeg_gets_the_whole_address_with_its_scheme_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def capture(url: str, backend: int, options: list[int]) -> SimpleNamespace:
        opened.append(url)
        return SimpleNamespace(isOpened=lambda: True, get=lambda identifier: 0.0, release=lambda: None)

    monkeypatch.setattr(cv2, "VideoCapture", capture)
    source = open_source("RTSP://admin:Secret@10.0.0.5:554/Stream?x=Y")
    source.close()
    assert (opened, source.name) == (["rtsp://admin:Secret@10.0.0.5:554/Stream?x=Y"], "RTSP://10.0.0.5:554")
    source = open_source("rtsp://10.0.0.5/1", name="left")
    assert source.name == "left"


def gstreamer(monkeypatch: pytest.MonkeyPatch, image: np.ndarray) -> list[str]:
    """An OpenCV with GStreamer, whose pipelines give ``image`` without end; the pipelines that will be opened."""
    opened: list[str] = []

    def capture(pipeline: str, backend: int) -> SimpleNamespace:
        assert backend == cv2.CAP_GSTREAMER
        opened.append(pipeline)
        return SimpleNamespace(
            isOpened=lambda: True,
            grab=lambda: True,
            retrieve=lambda: (True, image),
            get=lambda identifier: 30.0,
            release=lambda: None,
        )

    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda backend: True)
    monkeypatch.setattr(cv2, "VideoCapture", capture)
    return opened


APPSINK = " ! appsink drop=true max-buffers=1"


@pytest.mark.parametrize(
    ("uri", "caps"),
    [
        ("csi://1?format=nv12&width=64&height=48", "nvvidconv ! video/x-raw,format=NV12"),
        ("gst:camera ! video/x-raw,format=NV12", "camera ! video/x-raw,format=NV12"),
        (
            "gst:camera ! video/x-raw, width=64, format=(string)NV12 ",
            "camera ! video/x-raw, width=64, format=(string)NV12 ",
        ),
    ],
)
def test_a_pipeline_that_says_so_gives_nv12_without_a_conversion(
    monkeypatch: pytest.MonkeyPatch, uri: str, caps: str
) -> None:
    opened = gstreamer(monkeypatch, np.zeros((72, 64), np.uint8))
    source = open_source(uri)
    frames = iter(source)
    for index in range(3):
        frame = next(frames)
        assert (frame.index, frame.nv12, frame.size) == (index, True, (48, 64))
    source.close()
    (pipeline,) = opened
    assert pipeline.endswith(caps + APPSINK)
    assert "videoconvert" not in pipeline


def test_an_appsink_behind_nv12_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = gstreamer(monkeypatch, np.zeros((72, 64), np.uint8))
    source = open_source("gst:camera ! video/x-raw,format=NV12 ! appsink max-buffers=2")
    assert next(iter(source)).nv12
    assert opened == ["camera ! video/x-raw,format=NV12 ! appsink max-buffers=2"]


@pytest.mark.parametrize(
    "uri",
    [
        "csi://0",
        "csi://0?format=bgr",
        "gst:camera",
        "gst:camera ! video/x-raw(memory:NVMM),format=NV12",
        "gst:camera ! video/x-raw,format=NV12 ! flip",
        "gst:camera ! video/x-raw,format=NV12 ! videoconvert ! video/x-raw,format=BGR ! appsink",
        "gst:camera ! video/x-raw,format=GRAY8 ! appsink",
    ],
)
def test_any_other_pipeline_gives_bgr_or_grey(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    opened = gstreamer(monkeypatch, picture(9, (48, 64, 3)))
    frame = next(iter(open_source(uri)))
    assert (frame.nv12, frame.size) == (False, (48, 64))
    converted = opened[0].endswith(" ! videoconvert ! video/x-raw,format=BGR" + APPSINK)
    assert converted == (not uri.endswith("appsink"))


def test_a_pipeline_that_does_not_give_what_its_caps_say(monkeypatch: pytest.MonkeyPatch) -> None:
    gstreamer(monkeypatch, picture(9, (48, 64, 3)))
    with pytest.raises(DataError, match=r"frame 0 \(camera csi://0#0\) is not NV12: its shape is \(48, 64, 3\)"):
        next(iter(open_source("csi://0?format=nv12")))
