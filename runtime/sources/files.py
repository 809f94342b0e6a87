"""Frames from files: pictures and videos."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2

from adedge.data.folders import find_pictures
from adedge.data.pictures import read_picture
from adedge.errors import DataError, SourceError
from adedge.runtime.sources.container import read_container
from adedge.runtime.sources.frame import Frame, FrameSource, Notify, ignore
from adedge.runtime.sources.reader import Reader


class FolderSource(FrameSource):
    """The pictures in a folder and its sub-folders, sorted by name, or a single picture file; sizes may differ.

    An unreadable picture is reported to ``notify`` and skipped; so are, once, folders that cannot be read and pictures
    and videos of kinds that are not read. ``skipped`` counts them all. With ``strict`` each raises `DataError`.
    """

    def __init__(self, path: Path, *, strict: bool = False, notify: Notify | None = None) -> None:
        self.name = str(path)
        self.skipped = 0
        self._path = path
        self._strict = strict
        self._notify = notify or ignore
        self._paths: list[Path] = []
        self._closed = threading.Event()

    def open(self) -> None:
        """List the pictures. Raises `SourceError` if there are none, `DataError` if ``strict`` and one is left out."""
        if self._path.is_dir():
            try:
                listing = find_pictures(self._path)
            except DataError as error:
                raise SourceError(str(error)) from error
            self._paths = list(listing.pictures)
            self.skipped = listing.left_out.missed
            if listing.left_out:
                sentence = f"{self.name}: left out {listing.left_out}"
                if self._strict and self.skipped:
                    raise DataError(sentence)
                self._notify(sentence)
        else:
            self._paths = [self._path]
        self.total = len(self._paths)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the pictures in order. Raises `SourceError` if none of them can be read."""
        root = self._path if self._path.is_dir() else self._path.parent
        unreadable = 0
        for index, path in enumerate(self._paths):
            if self._closed.is_set():
                return
            try:
                image = read_picture(path)
            except DataError as error:
                if self._strict:
                    raise
                unreadable += 1
                self.skipped += 1
                self._notify(f"{error} (skipped)")
                continue
            yield Frame(index, time.monotonic_ns(), image, path.relative_to(root).as_posix())
        if unreadable == len(self._paths):
            raise SourceError(f"none of the {unreadable} picture(s) in {self.name} can be read: see the warnings above")

    def close(self) -> None:
        """End the iteration."""
        self._closed.set()


_ATTEMPTS = 64  # failed reads before a video without a known number of frames is taken to have ended


class VideoSource(FrameSource):
    """Every frame of a video file that can be decoded.

    A frame that cannot is skipped and counted; ``notify`` is told, also if the video ends before its index says it
    should. With ``strict`` both raise `DataError`.
    """

    def __init__(self, path: Path, *, strict: bool = False, notify: Notify | None = None) -> None:
        self.name = str(path)
        self.skipped = 0
        self._path = path
        self._strict = strict
        self._notify = notify or ignore
        self._reader: Reader | None = None

    def open(self) -> None:
        """Open the file. Raises `SourceError` if it is not a video or its index is missing."""
        for backend in (cv2.CAP_FFMPEG, cv2.CAP_GSTREAMER):
            if not cv2.videoio_registry.hasBackend(backend):
                continue
            capture = cv2.VideoCapture(str(self._path), backend)
            if capture.isOpened():
                self._reader = Reader(capture)
                self.fps = self._reader.property(cv2.CAP_PROP_FPS)
                count = self._reader.property(cv2.CAP_PROP_FRAME_COUNT)
                self.total = round(count) if count else None
                return
            capture.release()
        raise SourceError(
            f"{self._path} cannot be opened as a video: it is another kind of file, or it was cut off and lost its "
            "index (MP4 stores it at the end); record or convert it again"
        )

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order. Raises `SourceError` if there are none."""
        if self._reader is None:
            raise SourceError(f"{self.name} is not open: call open() first")
        index = failures = 0
        # Each failed read may be a damaged frame before one that can be decoded, so the end is not believed at once.
        while failures <= max(_ATTEMPTS, (self.total or 0) - index):
            reading = self._reader.read()
            if self._reader.closed:
                return
            if reading is None:
                failures += 1
                continue
            if failures:
                self._skip(failures, f"{self.name}: {failures} frame(s) from {index} on cannot be decoded")
                index += failures
                failures = 0
            yield Frame(index, *reading, f"{self._path.name}#{index}")
            index += 1
        if index == self.skipped:
            raise SourceError(
                f"no frame of {self.name} can be decoded: the video is damaged; record or convert it again"
            )
        if self.total is not None and index < self.total:
            self._explain_missing(index, self.total)

    def _explain_missing(self, index: int, total: int) -> None:
        container = read_container(self._path)
        if container.cut_off:
            self._skip(0, f"{self.name} ends after {index} of about {total} frames: it is cut off")
        elif container.counted:
            self._skip(total - index, f"{self.name}: {total - index} of {total} frames cannot be decoded")
        elif container.estimated and total - index > max(1, 0.02 * total):
            self._notify(
                f"{self.name} has {index} frames, and its length suggests about {total}: its frame rate varies, or "
                "frames are missing"
            )

    def _skip(self, frames: int, what: str) -> None:
        if self._strict:
            raise DataError(f"{what}: record or convert it again, or leave out --strict to inspect the other frames")
        self.skipped += frames
        self._notify(f"{what}; the other frames are inspected")

    def close(self) -> None:
        """Release the file."""
        if self._reader is not None:
            self._reader.close()
