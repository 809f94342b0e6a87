"""Every kind of source: order, names, numbers, and each way in which frames can stop coming."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from adedge.errors import DataError, SourceError, UsageError
from adedge.runtime.sources import ArraySource, FolderSource, Frame, LiveSource, VideoSource, open_source


def picture(level: int, shape: tuple[int, ...] = (24, 32, 3)) -> np.ndarray:
    return np.full(shape, level, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of three sizes, one of them grey and one in a sub-folder, and a file that is none."""
    (tmp_path / "sub").mkdir()
    cv2.imwrite(str(tmp_path / "b.png"), picture(2, (10, 20, 3)))
    cv2.imwrite(str(tmp_path / "a.png"), picture(1, (30, 40)))
    cv2.imwrite(str(tmp_path / "sub" / "c.png"), picture(3))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty noisy frames whose mean level is ten times their number and 20, Motion JPEG, 12 frames per second."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("video") / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (64, 48))
    for number in range(20):
        writer.write(rng.integers(10 * number, 10 * number + 41, (48, 64, 3), np.uint8))
    writer.release()
    return path


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


def test_folder_gives_its_pictures_in_order_with_their_own_sizes(folder: Path) -> None:
    source = open_source(str(folder))
    frames = list(source)
    assert [frame.name for frame in frames] == ["a.png", "b.png", "sub/c.png"]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.image.shape[:2] for frame in frames] == [(30, 40), (10, 20), (24, 32)]
    assert [int(frame.image.flat[0]) for frame in frames] == [1, 2, 3]
    assert [frame.captured_at_ns for frame in frames] == sorted(frame.captured_at_ns for frame in frames)
    assert (source.total, source.live, source.skipped) == (3, False, 0)


def test_one_picture_is_a_source(folder: Path) -> None:
    assert [frame.name for frame in open_source(str(folder / "b.png"))] == ["b.png"]


def test_unreadable_picture_is_named_skipped_and_counted(folder: Path) -> None:
    (folder / "aa.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    notices: list[str] = []
    source = open_source(str(folder), notify=notices.append)
    assert [frame.index for frame in source] == [0, 2, 3], "the number of a skipped picture is left out"
    assert source.skipped == 1
    assert len(notices) == 1
    assert "aa.png" in notices[0]


def test_strict_refuses_an_unreadable_picture(folder: Path) -> None:
    (folder / "aa.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    with pytest.raises(DataError, match=r"aa\.png"):
        list(open_source(str(folder), strict=True))


def test_folder_of_unreadable_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="none of the 1 picture"):
        list(open_source(str(tmp_path)))


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        open_source(str(tmp_path))


def test_closing_ends_the_iteration(folder: Path) -> None:
    source = FolderSource(folder)
    source.open()
    frames = iter(source)
    next(frames)
    source.close()
    assert list(frames) == []


def test_video_gives_every_frame_in_order(video: Path) -> None:
    source = open_source(str(video))
    levels = [float(frame.image.mean()) for frame in source]
    np.testing.assert_allclose(levels, [10 * number + 20 for number in range(20)], atol=3)
    assert (source.total, source.live) == (20, False)
    assert source.fps == pytest.approx(12)
    source.close()


def test_cut_off_video_gives_the_frames_before_the_cut_and_a_warning(video: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.avi"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    notices: list[str] = []
    frames = list(open_source(str(cut), notify=notices.append))
    assert 3 < len(frames) < 17
    np.testing.assert_allclose(frames[2].image.mean(), 40, atol=3)
    assert len(notices) == 1
    assert f"after {len(frames)} of about 20 frames" in notices[0]


def test_whole_video_gives_no_warning(video: Path) -> None:
    notices: list[str] = []
    list(open_source(str(video), notify=notices.append))
    assert notices == []


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100], ids=["empty", "text"])
def test_file_that_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"film\.mp4 cannot be opened as a video"):
        open_source(str(path))


def test_closed_video_ends_without_a_warning(video: Path) -> None:
    notices: list[str] = []
    source = VideoSource(video, notify=notices.append)
    source.open()
    frames = iter(source)
    next(frames)
    source.close()
    assert list(frames) == []
    assert notices == []


def test_lost_camera_is_an_error_and_never_a_black_frame() -> None:
    source = live(Camera(3))
    source.open()
    frames = iter(source)
    assert [next(frames).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SourceError, match=r"camera stopped giving frames after 3.*--reconnect"):
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
    assert [notice.split(":")[0] for notice in notices] == ["camera stopped giving frames", "camera gives frames again"]
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


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("no/such/file.mp4", SourceError, "does not exist"),
        ("0?size=3", UsageError, "unknown option 'size': it takes width, height, fps"),
        ("0?width=wide", UsageError, "width must be a whole number"),
        ("synthetic:brick?size=4000", UsageError, "size is 32 to"),
        ("synthetic:concrete", UsageError, "unknown texture 'concrete'"),
        ("csi://front", UsageError, "names no sensor"),
        ("csi://0?format=i420", UsageError, "format must be bgr or nv12, not 'i420'"),
        ("csi://0?format=nv12&width=1281", UsageError, "an even width and height, not 1281 × 720"),
        ("csi://0?depth=8", UsageError, "unknown option 'depth': it takes width, height, fps, format"),
        ("ftp://host/film", UsageError, "unknown kind of source 'ftp://host/film'"),
    ],
)
def test_wrong_uri(uri: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(uri)


def test_password_of_a_stream_is_not_shown() -> None:
    with pytest.raises(SourceError) as caught:
        open_source("rtsp://admin:secret@127.0.0.1:9/line")
    assert "secret" not in str(caught.value)
    assert "rtsp://127.0.0.1:9/line" in str(caught.value)


# NV12


def nv12(height: int = 48, width: int = 64) -> np.ndarray:
    """A picture whose left half is black and whose right half is red, in limited range BT.601."""
    image = np.full((height * 3 // 2, width), 16, np.uint8)
    image[:height, width // 2 :] = 81
    image[height:] = 128
    image[height:, width // 2 :: 2], image[height:, width // 2 + 1 :: 2] = 90, 240
    return image


def test_an_nv12_frame_becomes_bgr_once() -> None:
    frame = Frame(0, 0, nv12(), "camera#0", nv12=True)
    assert frame.size == (48, 64)
    assert frame.picture.shape == (48, 64, 3)
    np.testing.assert_allclose(frame.picture[:, :32], 0)
    np.testing.assert_allclose(frame.picture[:, 32:], [[[0, 0, 255]]] * np.ones((48, 32, 1)), atol=2)
    assert frame.picture is frame.picture


@pytest.mark.parametrize("shape", [(24, 32, 3), (24, 32, 1), (24, 32)])
def test_any_other_frame_is_its_own_picture(shape: tuple[int, ...]) -> None:
    frame = Frame(0, 0, picture(5, shape), "a.png")
    assert frame.picture is frame.image
    assert frame.size == (24, 32)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((72, 64, 1), np.uint8),
        np.zeros((72, 63), np.uint8),
        np.zeros((73, 64), np.uint8),  # of 49 rows of pixels
        np.zeros((72, 64), np.uint16),
        np.zeros((0, 64), np.uint8),
    ],
    ids=["bgr", "three axes", "odd width", "odd height", "16 bits", "empty"],
)
def test_what_cannot_be_nv12_is_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"frame 7 \(camera#7\) is not NV12.*even width and height"):
        Frame(7, 0, image, "camera#7", nv12=True)


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
    opened = gstreamer(monkeypatch, nv12())
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
    opened = gstreamer(monkeypatch, nv12())
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
    with pytest.raises(DataError, match=r"frame 0 \(camera csi://0#0\) is not NV12, with the shape \(48, 64, 3\)"):
        next(iter(open_source("csi://0?format=nv12")))


def test_array_source_numbers_its_frames() -> None:
    images = [picture(1), picture(2)]
    from_list = ArraySource(images, name="made")
    assert [(frame.index, frame.name) for frame in from_list] == [(0, "made#0"), (1, "made#1")]
    assert from_list.total == 2
    assert [frame.image for frame in ArraySource(lambda: iter(images))] == images


def test_synthetic_source_is_repeatable() -> None:
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    first, again = (open_source("synthetic:gravel?seed=3&frames=7&size=64") for _ in range(2))
    frames = list(first)
    assert [frame.index for frame in frames] == list(range(7))
    assert {frame.image.shape for frame in frames} == {(64, 64)}
    np.testing.assert_array_equal([frame.image for frame in frames], [frame.image for frame in again])
    assert (first.total, first.fps, first.live) == (7, 25.0, False)
