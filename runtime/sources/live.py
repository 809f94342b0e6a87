"""Frames from cameras and network streams, and how each kind is connected."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import SourceError
from adedge.runtime.sources.address import PERCENT_ENCODED
from adedge.runtime.sources.frame import Frame, FrameSource, Notify, ignore
from adedge.runtime.sources.reader import Reader

Connect = Callable[[], cv2.VideoCapture]
"""Opens a camera or stream. Raises `SourceError` if that fails."""

# Without these, reading from an unplugged network camera blocks for half a minute.
_STREAM_TIMEOUTS_MS = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 5_000]
_GSTREAMER_TIMEOUT_S = 15

LOST_AFTER = 10  # failed reads in a row: fewer are damaged frames
_TIMED_OUT_S = (
    4.0  # a read that fails after this time has waited for a camera that is gone: FFmpeg waits 5 s, V4L2 10 s
)


class LiveSource(FrameSource):
    """A camera or a network stream: endless, at its own pace.

    ``connect`` opens it. If that fails, or when frames stop arriving, it is retried once a second for ``reconnect_s``
    seconds; after that the iteration ends with `SourceError`. A frame that cannot be decoded is skipped and counted;
    `LOST_AFTER` in a row count as a lost camera. With ``nv12`` the source delivers NV12, and any other frame raises
    `DataError`.
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
        self.skipped = 0
        self._connect = connect
        self._nv12 = nv12
        self._reconnect_s = reconnect_s
        self._notify = notify or ignore
        self._closed = threading.Event()
        self._reader: Reader | None = None
        self._missing: SourceError | None = None

    def open(self) -> None:
        """Connect; with ``reconnect_s`` leave a camera that is not available to the iteration, which waits for it.

        Raises `SourceError` if the camera or stream is not available.
        """
        try:
            self._open_reader()
        except SourceError as error:
            if self._reconnect_s == 0:
                raise
            self._missing = error
            self._notify(f"{error} (waiting for it for up to {self._reconnect_s:g} s)")

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until closed. Raises `SourceError` when they stop arriving."""
        frames = 0
        while not self._closed.is_set():
            reading = self._read()
            if reading is None:
                reading = self._reconnect(frames)
            if reading is None:
                return
            yield Frame(frames + self.skipped, *reading, f"{self.name}#{frames + self.skipped}", self._nv12)
            frames += 1

    def _open_reader(self) -> None:
        self._reader = Reader(self._connect())
        self._missing = None
        self.fps = self._reader.property(cv2.CAP_PROP_FPS)

    def _read(self) -> tuple[int, NDArray[np.uint8]] | None:
        """The next reading, after those that cannot be decoded; None if the camera is lost, or closed meanwhile."""
        for failures in range(LOST_AFTER):
            if self._reader is None or self._closed.is_set():
                return None
            started = time.monotonic()
            if (reading := self._reader.read()) is not None:
                self.skipped += failures
                return reading
            if time.monotonic() - started > _TIMED_OUT_S:
                return None
        return None

    def _reconnect(self, frames: int) -> tuple[int, NDArray[np.uint8]] | None:
        """Connect again and return the first reading; None if closed meanwhile."""
        if self._closed.is_set():
            return None
        if self._reconnect_s > 0 and self._missing is None:
            self._notify(f"{self.name} stopped delivering frames: trying to reconnect for {self._reconnect_s:g} s")
        deadline = time.monotonic() + self._reconnect_s
        while time.monotonic() < deadline:
            if self._reader is not None:
                self._reader.close()
            if self._closed.wait(min(1.0, max(deadline - time.monotonic(), 0))):
                return None
            try:
                self._open_reader()
            except SourceError as error:
                self._missing = error
                continue
            if self._closed.is_set():
                self.close()
                return None
            if (reading := self._read()) is not None:
                self._notify(f"{self.name} delivers frames{' again' if frames else ''}")
                return reading
        if self._closed.is_set():
            return None
        if frames == 0 and self._missing is not None:
            raise SourceError(f"{self._missing} (waited for it for {self._reconnect_s:g} s)")
        remedy = "" if self._reconnect_s > 0 else "; --reconnect SECONDS keeps trying"
        raise SourceError(
            f"{self.name} stopped delivering frames after {frames}: check its cable, power and network{remedy}"
        )

    def close(self) -> None:
        """Release the device, or stop waiting for it."""
        self._closed.set()
        if self._reader is not None:
            self._reader.close()


def camera_connector(device: str, options: Mapping[str, int]) -> Connect:
    """A V4L2 camera, "/dev/video0", with ``options`` width, height and fps; 0 keeps the camera's default."""

    def connect() -> cv2.VideoCapture:
        if sys.platform == "linux" and not Path(device).exists():
            present = ", ".join(str(path) for path in sorted(Path("/dev").glob("video*"))) or "none"
            raise SourceError(f"there is no camera {device} (cameras on this machine: {present}): check its cable")
        backend = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
        capture = cv2.VideoCapture(int(device.removeprefix("/dev/video")), backend)
        if not capture.isOpened():
            raise SourceError(
                f"{device} cannot be opened: close other programs that use it, check that it is a capture device, and "
                "that this user may access it (sudo usermod -aG video $USER)"
            )
        identifiers = {"width": cv2.CAP_PROP_FRAME_WIDTH, "height": cv2.CAP_PROP_FRAME_HEIGHT, "fps": cv2.CAP_PROP_FPS}
        for name, identifier in identifiers.items():
            if options[name] and not capture.set(identifier, options[name]):
                capture.release()
                raise SourceError(
                    f"{device} does not support {name}={options[name]}: choose from 'v4l2-ctl --list-formats-ext'"
                )
        return capture

    return connect


def stream_connector(url: str, name: str) -> Connect:
    """A network stream, rtsp:// or http://, which errors call ``name``."""

    def connect() -> cv2.VideoCapture:
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, _STREAM_TIMEOUTS_MS)
        if not capture.isOpened():
            raise SourceError(
                f"{name} delivers no video: check address, network, user name and password (write {PERCENT_ENCODED})"
            )
        return capture

    return connect


def gstreamer_connector(pipeline: str, name: str) -> Connect:
    """A GStreamer pipeline, which errors call ``name``; an appsink is appended if it has none.

    Raises `SourceError` if OpenCV has no GStreamer.
    """
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise SourceError(
            f"{name} needs an OpenCV built with GStreamer, and this one is not: on a Jetson or Debian use the "
            "system's python3-opencv in a virtual environment made with --system-site-packages"
        )
    # OpenCV reads from an appsink; with drop=true it holds the newest frame if the inspector is slower.
    convert = "" if delivers_nv12(pipeline) else " ! videoconvert ! video/x-raw,format=BGR"
    sink = "" if "appsink" in pipeline else f"{convert} ! appsink drop=true max-buffers=1"

    def connect() -> cv2.VideoCapture:
        capture = _open_within(_GSTREAMER_TIMEOUT_S, lambda: cv2.VideoCapture(pipeline + sink, cv2.CAP_GSTREAMER))
        if capture is None or not capture.isOpened():
            raise SourceError(f"GStreamer cannot run {name}: try its pipeline with gst-launch-1.0 first")
        return capture

    return connect


def _open_within(timeout_s: float, open_capture: Connect) -> cv2.VideoCapture | None:
    """Open in a thread: a pipeline with an unknown first element waits for its first frame forever."""
    captures: list[cv2.VideoCapture] = []
    thread = threading.Thread(target=lambda: captures.append(open_capture()), name="open", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return captures[0] if captures else None


def delivers_nv12(pipeline: str) -> bool:
    """Whether the last caps of a pipeline, before any appsink, select NV12 (in plain memory, not in NVMM)."""
    caps = r'video/x-raw\s*,[^!]*\bformat\s*=\s*(\(string\)\s*)?"?NV12\b[^!]*'
    return re.search(rf"{caps}(!\s*appsink\b[^!]*)?$", pipeline) is not None
