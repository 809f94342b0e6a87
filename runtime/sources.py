"""Where frames come from: cameras, videos, folders, network streams. A URI picks the source; see `open_source`.

A source never makes a frame up. A lost camera ends the iteration with `SourceError`; it does not become a black
picture that scores as good.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.data.pictures import PICTURE_SUFFIXES, list_pictures, read_picture
from adedge.errors import DataError, SourceError, UsageError

Notify = Callable[[str], None]
Connect = Callable[[], cv2.VideoCapture]

FORMS = (
    "a camera (0, /dev/video0, csi://0), a video or picture file, a folder of pictures, rtsp://HOST/PATH, "
    "gst:PIPELINE or synthetic:brick"
)


@dataclass(frozen=True)
class Frame:
    """One picture from a source.

    index           counted by the source from 0; numbers of skipped pictures are left out
    captured_at_ns  time.monotonic_ns() when a camera delivered it, or when it had been read from its file
    image           uint8 (H, W, 3) BGR, or (H, W) or (H, W, 1) grey; with ``nv12`` (3 H / 2, W)
    name            file name, or the source and the frame's number
    nv12            the image is NV12, as a Jetson's cameras give it: H rows of luma, then H / 2 rows that hold U and V
                    of two by two pixels in turn; H and W are even

    Raises `DataError` where ``nv12`` is set and the image cannot be that.
    """

    index: int
    captured_at_ns: int
    image: NDArray[np.uint8]
    name: str
    nv12: bool = False

    def __post_init__(self) -> None:
        image = self.image
        if self.nv12 and not (
            image.dtype == np.uint8 and image.ndim == 2 and image.size and image.shape[0] % 3 == image.shape[1] % 2 == 0
        ):
            raise DataError(
                f"frame {self.index} ({self.name}) is not NV12, with the shape {image.shape} and dtype {image.dtype}: "
                "NV12 of H × W pixels is uint8 of shape (3 H / 2, W), H and W even; choose an even width and height, "
                "or another pixel format"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        rows, width = self.image.shape[:2]
        return (rows * 2 // 3 if self.nv12 else rows), width

    @cached_property
    def picture(self) -> NDArray[np.uint8]:
        """The pixels in BGR or grey, for the processor: ``image`` itself, or converted from NV12, once.

        NV12 becomes BGR as OpenCV converts it: BT.601, limited range, each U and V for the four pixels they cover.
        """
        return np.asarray(cv2.cvtColor(self.image, cv2.COLOR_YUV2BGR_NV12), np.uint8) if self.nv12 else self.image


class FrameSource(Protocol):
    """Opened once, iterated once, closed once.

    ``close`` may be called by another thread while frames are being iterated: the iteration then ends.

    name     what messages call the source; without a password
    live     frames come at the source's own pace and never end by themselves
    fps      frames per second where the source knows
    total    number of frames where the source knows
    skipped  pictures that could not be read so far
    """

    name: str
    live: bool = False
    fps: float | None = None
    total: int | None = None
    skipped: int = 0

    def open(self) -> None:
        """Get ready. Raises `SourceError` where there is nothing to read frames from."""

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames. Raises `SourceError` where a source stops before its end."""

    def close(self) -> None:
        """Release the device; a second call does nothing."""


class ArraySource(FrameSource):
    """Frames made by a function or taken from a list: for tests, benchmarks and generated pictures.

    ``frames`` is called when iteration begins and gives uint8 images (H, W, C), BGR or grey.
    """

    def __init__(
        self,
        frames: Callable[[], Iterator[NDArray[np.uint8]]] | Sequence[NDArray[np.uint8]],
        *,
        name: str = "array",
        total: int | None = None,
        fps: float | None = None,
    ) -> None:
        self.name = name
        self.total = total if callable(frames) else len(frames)
        self.fps = fps
        self._frames = frames
        self._closed = threading.Event()

    def open(self) -> None:
        """Nothing to open."""

    def __iter__(self) -> Iterator[Frame]:
        """Yield the images in order."""
        images = self._frames() if callable(self._frames) else iter(self._frames)
        for index, image in enumerate(images):
            if self._closed.is_set():
                return
            yield Frame(index, time.monotonic_ns(), image, f"{self.name}#{index}")

    def close(self) -> None:
        """End the iteration."""
        self._closed.set()


class FolderSource(FrameSource):
    """The pictures of a folder (sorted, with its sub-folders), or one picture file; sizes may differ.

    An unreadable picture is named to ``notify`` and skipped, or refused when ``strict``.
    """

    def __init__(self, path: Path, *, strict: bool = False, notify: Notify | None = None) -> None:
        self.name = str(path)
        self.skipped = 0
        self._path = path
        self._strict = strict
        self._notify = notify or _ignore
        self._pictures: list[Path] = []
        self._closed = threading.Event()

    def open(self) -> None:
        """List the pictures. Raises `SourceError` where there is none."""
        try:
            self._pictures = [self._path] if self._path.is_file() else list_pictures(self._path)
        except DataError as error:
            raise SourceError(str(error)) from error
        self.total = len(self._pictures)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the pictures in order. Raises `SourceError` where none of them can be read."""
        root = self._path.parent if self._path.is_file() else self._path
        for index, path in enumerate(self._pictures):
            if self._closed.is_set():
                return
            try:
                image = read_picture(path)
            except DataError as error:
                if self._strict:
                    raise
                self.skipped += 1
                self._notify(f"{error} (skipped)")
                continue
            yield Frame(index, time.monotonic_ns(), image, path.relative_to(root).as_posix())
        if self.skipped == len(self._pictures):
            raise SourceError(
                f"none of the {self.skipped} picture(s) of {self.name} can be read: see the warnings above"
            )

    def close(self) -> None:
        """End the iteration."""
        self._closed.set()


class VideoSource(FrameSource):
    """A video file, every frame of it; ``notify`` hears of a video that ends before its index says."""

    def __init__(self, path: Path, *, notify: Notify | None = None) -> None:
        self.name = str(path)
        self._path = path
        self._notify = notify or _ignore
        self._reader: _Reader | None = None

    def open(self) -> None:
        """Open the file. Raises `SourceError` where it is no video, or its index is missing."""
        for backend in (cv2.CAP_FFMPEG, cv2.CAP_GSTREAMER):
            if not cv2.videoio_registry.hasBackend(backend):
                continue
            capture = cv2.VideoCapture(str(self._path), backend)
            if capture.isOpened():
                self._reader = _Reader(capture)
                self.fps = self._reader.property(cv2.CAP_PROP_FPS)
                count = self._reader.property(cv2.CAP_PROP_FRAME_COUNT)
                self.total = round(count) if count else None
                return
            capture.release()
        raise SourceError(
            f"{self._path} cannot be opened as a video: it is of another kind, or it is cut off and lost its index "
            "(an MP4 has it at the end)"
        )

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order. Raises `SourceError` where there is not a single one."""
        if self._reader is None:
            raise SourceError(f"{self.name} is not open")
        index = 0
        while (taken := self._reader.read()) is not None:
            yield Frame(index, *taken, f"{self._path.name}#{index}")
            index += 1
        if self._reader.closed:
            return
        if index == 0:
            raise SourceError(f"{self.name} holds no frame that can be decoded: the video is damaged")
        if self.total is not None and index < self.total:
            self._notify(
                f"{self.name} ends after {index} of about {self.total} frames: it is cut off or damaged; "
                "the frames before that were judged"
            )

    def close(self) -> None:
        """Release the file."""
        if self._reader is not None:
            self._reader.close()


class LiveSource(FrameSource):
    """A camera or a network stream: endless, at its own pace.

    ``connect`` opens it, and raises `SourceError` where that fails. When frames stop coming it is called again, once a
    second, for ``reconnect_s`` seconds; after that the iteration ends with `SourceError`. ``nv12`` says that it gives
    frames in NV12; one that is none is a `DataError`.
    """

    live = True

    def __init__(
        self,
        name: str,
        connect: Connect,
        *,
        nv12: bool = False,
        reconnect_s: float = 0.0,
        notify: Notify | None = None,
    ) -> None:
        self.name = name
        self._connect = connect
        self._nv12 = nv12
        self._reconnect_s = reconnect_s
        self._notify = notify or _ignore
        self._closed = threading.Event()
        self._reader: _Reader | None = None

    def open(self) -> None:
        """Connect. Raises `SourceError` where the camera or stream is not there."""
        self._reader = _Reader(self._connect())
        self.fps = self._reader.property(cv2.CAP_PROP_FPS)

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until closed. Raises `SourceError` when they stop coming."""
        index = 0
        while not self._closed.is_set():
            taken = self._reader.read() if self._reader is not None else None
            if taken is None:
                taken = self._restored(index)
            if taken is None:
                return
            yield Frame(index, *taken, f"{self.name}#{index}", self._nv12)
            index += 1

    def _restored(self, frames: int) -> tuple[int, NDArray[np.uint8]] | None:
        """The first frame after the connection came back; None when closed meanwhile."""
        if self._closed.is_set():
            return None
        if self._reconnect_s > 0:
            self._notify(f"{self.name} stopped giving frames: trying again for {self._reconnect_s:g} s")
        deadline = time.monotonic() + self._reconnect_s
        while time.monotonic() < deadline:
            if self._reader is not None:
                self._reader.close()
            if self._closed.wait(min(1.0, max(deadline - time.monotonic(), 0))):
                return None
            try:
                self._reader = _Reader(self._connect())
            except SourceError:
                continue
            if (taken := self._reader.read()) is not None:
                self._notify(f"{self.name} gives frames again")
                return taken
        if self._closed.is_set():
            return None
        remedy = "" if self._reconnect_s > 0 else "; --reconnect SECONDS keeps trying"
        raise SourceError(
            f"{self.name} stopped giving frames after {frames}: check its cable, power and network{remedy}"
        )

    def close(self) -> None:
        """Release the device, or stop waiting for it."""
        self._closed.set()
        if self._reader is not None:
            self._reader.close()


class _Reader:
    """A cv2.VideoCapture that one thread may close while another reads."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self._capture = capture
        self._lock = threading.Lock()
        self.closed = False

    def read(self) -> tuple[int, NDArray[np.uint8]] | None:
        """(captured_at_ns, image), or None at the end. The time is taken before the frame is decoded."""
        with self._lock:
            if self.closed or not self._capture.grab():
                return None
            captured_at_ns = time.monotonic_ns()
            decoded, image = self._capture.retrieve()
        return (captured_at_ns, np.asarray(image, np.uint8)) if decoded else None

    def property(self, identifier: int) -> float | None:
        """A property of the capture; None where it is not known (0, negative or not a number)."""
        value = self._capture.get(identifier)
        return value if np.isfinite(value) and value > 0 else None

    def close(self) -> None:
        """Release it. A driver that hangs inside a read keeps the device until the process ends: releasing it
        under the reading thread would crash both."""
        self.closed = True
        if self._lock.acquire(timeout=2):
            self._capture.release()
            self._lock.release()


def open_source(
    uri: str, *, strict: bool = False, reconnect_s: float = 0.0, notify: Notify | None = None
) -> FrameSource:
    """The source that ``uri`` names, opened.

    ``0``, ``/dev/video0`` (``?width=1280&height=720&fps=30``) a camera; ``csi://0`` a Jetson's CSI camera, in BGR or,
    with ``?format=nv12``, in NV12; ``rtsp://``, ``http://`` a network stream; ``gst:PIPELINE`` a GStreamer pipeline,
    in NV12 where its last caps are ``video/x-raw,format=NV12``, else in BGR; ``synthetic:brick?seed=0&frames=200``
    (also size, speed) a photograph passing a camera, with defects drawn into it; anything else is a video file, a
    picture file or a folder of pictures.

    ``strict`` refuses unreadable pictures, ``reconnect_s`` is how long a lost camera is waited for, ``notify`` hears
    warnings, from the thread that iterates. Raises `SourceError` where there is nothing to read, `UsageError` for an
    option that the source does not have.
    """
    source = _source_from_uri(uri, strict=strict, reconnect_s=reconnect_s, notify=notify)
    source.open()
    return source


def _source_from_uri(uri: str, *, strict: bool, reconnect_s: float, notify: Notify | None) -> FrameSource:
    address, _, query = uri.partition("?")

    def live(name: str, connect: Connect, *, nv12: bool = False) -> FrameSource:
        return LiveSource(name, connect, nv12=nv12, reconnect_s=reconnect_s, notify=notify)

    if address.isdigit() or re.fullmatch(r"/dev/video\d+", address):
        device = f"/dev/video{address}" if address.isdigit() else address
        return live(f"camera {device}", _camera(device, _numbers(uri, query, _CAMERA_OPTIONS)))
    if address.startswith("csi://"):
        pipeline = _csi_pipeline(uri, address, query)
        return live(f"camera {address}", _gstreamer(pipeline, address), nv12=_gives_nv12(pipeline))
    if uri.startswith("gst:"):
        pipeline = uri.removeprefix("gst:")
        return live("the GStreamer pipeline", _gstreamer(pipeline, "this pipeline"), nv12=_gives_nv12(pipeline))
    if re.match(r"(rtsp|rtsps|http|https)://", uri):
        return live(_without_password(uri), _stream(uri))
    if uri.startswith("synthetic:"):
        return _synthetic(uri, address.removeprefix("synthetic:"), query)
    path = Path(uri)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES):
        return FolderSource(path, strict=strict, notify=notify)
    if path.is_file():
        return VideoSource(path, notify=notify)
    if "://" in uri:
        raise UsageError(f"unknown kind of source '{_without_password(uri)}': give {FORMS}")
    raise SourceError(f"{uri} does not exist: give {FORMS}")


_CAMERA_OPTIONS: Mapping[str, int] = {"width": 0, "height": 0, "fps": 0}  # 0: as the camera starts up


def _numbers(uri: str, query: str, known: Mapping[str, int], *, besides: Sequence[str] = ()) -> dict[str, int]:
    """The options behind '?', over their defaults; those named in ``besides`` are no numbers."""
    values = dict(known)
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key in besides:
            continue
        if key not in known:
            raise UsageError(f"'{uri}' has an unknown option '{key}': it takes {', '.join((*known, *besides))}")
        if not text.isdigit():
            raise UsageError(f"'{uri}': {key} must be a whole number, not '{text}'")
        values[key] = int(text)
    return values


def _camera(device: str, options: Mapping[str, int]) -> Connect:
    def connect() -> cv2.VideoCapture:
        if sys.platform == "linux" and not Path(device).exists():
            present = ", ".join(str(path) for path in sorted(Path("/dev").glob("video*"))) or "none"
            raise SourceError(f"there is no camera {device} (cameras on this machine: {present}): check its cable")
        backend = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
        capture = cv2.VideoCapture(int(device.removeprefix("/dev/video")), backend)
        if not capture.isOpened():
            raise SourceError(
                f"{device} cannot be opened: another program uses it, it takes no pictures, or this user may not "
                "(then: sudo usermod -aG video $USER)"
            )
        identifiers = {"width": cv2.CAP_PROP_FRAME_WIDTH, "height": cv2.CAP_PROP_FRAME_HEIGHT, "fps": cv2.CAP_PROP_FPS}
        for name, identifier in identifiers.items():
            if options[name] and not capture.set(identifier, options[name]):
                capture.release()
                raise SourceError(
                    f"{device} refuses {name}={options[name]}: 'v4l2-ctl --list-formats-ext' lists what it can"
                )
        return capture

    return connect


# Without these an unplugged network camera blocks a read for half a minute.
_STREAM_TIMEOUTS_MS = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 5_000]


def _stream(uri: str) -> Connect:
    def connect() -> cv2.VideoCapture:
        capture = cv2.VideoCapture(uri, cv2.CAP_FFMPEG, _STREAM_TIMEOUTS_MS)
        if not capture.isOpened():
            raise SourceError(f"{_without_password(uri)} gives no video: check address, user name and network")
        return capture

    return connect


def _gstreamer(pipeline: str, what: str) -> Connect:
    def connect() -> cv2.VideoCapture:
        if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
            raise SourceError(
                f"{what} needs an OpenCV built with GStreamer, and this one is not: on a Jetson or Debian use the "
                "system's python3-opencv in a virtual environment made with --system-site-packages"
            )
        # OpenCV reads from an appsink; drop=true keeps the newest frame there when the inspector is slower.
        convert = "" if _gives_nv12(pipeline) else " ! videoconvert ! video/x-raw,format=BGR"
        sink = "" if "appsink" in pipeline else f"{convert} ! appsink drop=true max-buffers=1"
        capture = _opened_within(lambda: cv2.VideoCapture(pipeline + sink, cv2.CAP_GSTREAMER), _GSTREAMER_TIMEOUT_S)
        if capture is None or not capture.isOpened():
            raise SourceError(f"GStreamer cannot run '{pipeline}': try it with gst-launch-1.0 first")
        return capture

    return connect


_GSTREAMER_TIMEOUT_S = 15


def _opened_within(open_capture: Connect, timeout_s: float) -> cv2.VideoCapture | None:
    """Open in a thread: a pipeline whose first element is unknown waits for its first frame forever."""
    opened: list[cv2.VideoCapture] = []
    thread = threading.Thread(target=lambda: opened.append(open_capture()), name="open", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return opened[0] if opened else None


def _gives_nv12(pipeline: str) -> bool:
    """Whether a pipeline ends, but for its appsink, in caps that say NV12 (in plain memory, not in NVMM)."""
    caps = r'video/x-raw\s*,[^!]*\bformat\s*=\s*(\(string\)\s*)?"?NV12\b[^!]*'
    return re.search(rf"{caps}(!\s*appsink\b[^!]*)?$", pipeline) is not None


def _csi_pipeline(uri: str, address: str, query: str) -> str:
    options = _numbers(uri, query, {"width": 1280, "height": 720, "fps": 30}, besides=("format",))
    wanted = dict(parse_qsl(query, keep_blank_values=True)).get("format", "bgr")
    if wanted not in ("bgr", "nv12"):
        raise UsageError(f"'{uri}': format must be bgr or nv12, not '{wanted}'")
    width, height = options["width"], options["height"]
    if wanted == "nv12" and (width % 2 or height % 2):
        raise UsageError(f"'{uri}': NV12 has an even width and height, not {width} × {height}")
    sensor = address.removeprefix("csi://")
    if not sensor.isdigit():
        raise UsageError(f"'{address}' names no sensor: give csi://0 or csi://1")
    # nvvidconv copies frames out of the camera's own buffers: NV12 as they are, or as BGRx, which the processor then
    # makes BGR of, pixel by pixel.
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! "
        f"video/x-raw(memory:NVMM),width={width},height={height},framerate={options['fps']}/1 ! "
        f"nvvidconv ! video/x-raw,format={'NV12' if wanted == 'nv12' else 'BGRx'}"
    )


def _synthetic(uri: str, texture: str, query: str) -> FrameSource:
    from adedge.data.synthesis import SIZE, STRIP, moving_frames, photograph

    options = _numbers(uri, query, {"seed": 0, "frames": 240, "size": SIZE, "speed": 2})
    if not 32 <= options["size"] <= STRIP or options["speed"] < 1:
        raise UsageError(f"'{uri}': size is 32 to {STRIP} pixels, speed at least 1 pixel a frame")
    photograph(texture)  # Refuses an unknown texture now, not in the thread that captures.
    frames = (frame for frame, _ in moving_frames(texture, **options))
    return ArraySource(lambda: frames, name=f"synthetic:{texture}", total=options["frames"], fps=25.0)


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _ignore(text: str) -> None:
    """Where nobody listens."""
