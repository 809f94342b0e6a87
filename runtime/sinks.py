"""Outputs for verdicts: JSON lines, an annotated video, pictures of rejects, raw maps.

The pipeline's thread calls the sinks one after another, so each must be cheap. A full disk or a missing permission
raises `OutputError`; everything written before it stays readable.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import OutputError, UsageError
from adedge.runtime.events import Event, record_from_event
from adedge.runtime.overlay import annotate, shrunk
from adedge.runtime.sources import Frame
from adedge.runtime.verdict import Verdict, record_from_verdict


class Sink(Protocol):
    """Interface of an output: takes every verdict, in frame order."""

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Write the verdict. ``verdict.map`` is valid only during this call. Raises `OutputError`."""

    def close(self) -> None:
        """Finish the output; a second call does nothing."""


class ListSink(Sink):
    """Collects the verdicts, with copies of their maps, in ``verdicts``: for tests and short runs."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self.closed = False

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Append the verdict."""
        self.verdicts.append(replace(verdict, map=None if verdict.map is None else verdict.map.copy()))

    def close(self) -> None:
        """Set ``closed``."""
        self.closed = True


class JsonLinesSink(Sink):
    """One JSON line per verdict and event, flushed immediately, to a text stream or to a file, which is replaced."""

    def __init__(self, target: TextIO | Path) -> None:
        """A stream is not closed. Raises `OutputError` if the file cannot be created."""
        self._stream = None if isinstance(target, Path) else target
        self._file: FileIO | None = None
        self._path = Path()
        self._whole_lines_bytes = 0
        if isinstance(target, Path):
            self._path = target
            with _writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._file = target.open("wb", buffering=0)

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Write one line; a file never ends in a partial line. `BrokenPipeError` from a stream is passed on."""
        self._write(record_from_verdict(verdict))

    def report(self, event: Event) -> None:
        """Write one line, which has the key "event"."""
        self._write(record_from_event(event))

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        if self._stream is not None:
            self._stream.write(line)
            self._stream.flush()
        elif self._file is not None:
            data = line.encode()
            written = 0
            try:
                with _writing(self._path):
                    while written < len(data):
                        written += self._file.write(data[written:])
            except OutputError:
                if written > 0:
                    self._file.truncate(self._whole_lines_bytes)
                raise
            self._whole_lines_bytes += len(data)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class VideoSink(Sink):
    """An annotated video: the frame and its overlay side by side above the verdict.

    The suffix selects the container; the codec is the first of `CODECS` for it that this OpenCV can write. ``.webm``
    (VP8 or VP9) plays in every browser; ``.mp4`` is H.264 if OpenCV has an encoder, otherwise MPEG-4 part 2, which
    browsers do not play; ``.avi`` is Motion JPEG. Every frame is scaled to the size of the first. ``longest_side``
    limits the video's size in pixels. ``outline`` is passed to `adedge.runtime.overlay.overlay`.
    """

    def __init__(
        self, path: Path, *, fps: float = 25.0, outline: bool = True, beside: bool = True, longest_side: int = 1280
    ) -> None:
        """Raises `UsageError` for an unknown suffix, `OutputError` if the folder is not writable."""
        if path.suffix.lower() not in CODECS:
            raise UsageError(
                f"{path} is not a supported kind of video: the name must end in one of {', '.join(CODECS)}"
            )
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()  # fail now, not after the first frame
            if path.stat().st_size == 0:
                path.unlink()  # a run without frames leaves no video
        self._path = path
        self._fps = fps
        self._outline = outline
        self._beside = beside
        self._longest_side = longest_side
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self.codec = ""

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Draw and append one frame. Raises `OutputError` while the disk still has room to finish the file."""
        # Drawing and encoding 12 megapixels would be slower than most networks.
        image = shrunk(frame.picture, self._longest_side // (2 if self._beside else 1))
        picture = annotate(image, verdict, outline=self._outline, beside=self._beside)
        if self._writer is None:
            height, width = picture.shape[:2]
            self._size = (width - width % 2, height - height % 2)  # the codecs halve the chroma resolution
            self._writer, self.codec = _open_video(self._path, self._fps, self._size)
        # OpenCV swallows write errors: check the free space before each frame, and keep enough to close the file.
        if shutil.disk_usage(self._path.parent).free < _RESERVE_BYTES:
            raise _disk_full(self._path)
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = np.asarray(cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA), np.uint8)
        self._writer.write(picture)

    def close(self) -> None:
        """Write the index. Raises `OutputError` if the file does not play."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        capture = cv2.VideoCapture(str(self._path))
        plays = capture.isOpened() and capture.grab()
        capture.release()
        if not plays:
            raise OutputError(f"the video {self._path} does not play: check that the disk is not full")


CODECS = {".webm": ("VP80", "VP90"), ".mp4": ("avc1", "mp4v"), ".avi": ("MJPG",), ".mkv": ("VP80", "mp4v")}
"""FourCC codes by suffix, in the order in which they are tried."""

_RESERVE_BYTES = 4 << 20


class RejectsSink(Sink):
    """Two pictures per reject: ``000012_name.png``, the original frame, and ``000012_name.overlay.jpg``.

    With several cameras the names start with the camera's index, ``camera1_000012_name.png``, as in `MapsSink`.
    """

    def __init__(self, folder: Path, *, outline: bool = True) -> None:
        """Raises `OutputError` if the folder is not writable."""
        self._folder = _create_folder(folder)
        self._outline = outline

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Write both pictures if the frame is anomalous."""
        if not verdict.anomalous:
            return
        stem = _stem(verdict)
        _write_picture(self._folder / f"{stem}.png", frame.picture)
        _write_picture(self._folder / f"{stem}.overlay.jpg", annotate(frame.picture, verdict, outline=self._outline))

    def close(self) -> None:
        """Nothing to finish: each picture is complete."""


class MapsSink(Sink):
    """Writes the raw anomaly map of each frame, float32 (H, W), as ``000012_name.npy``."""

    def __init__(self, folder: Path) -> None:
        """Raises `OutputError` if the folder is not writable."""
        self._folder = _create_folder(folder)

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Write the map."""
        if verdict.map is None:
            return
        path = self._folder / f"{_stem(verdict)}.npy"
        with _writing(path), path.open("wb") as stream:
            np.save(stream, verdict.map, allow_pickle=False)

    def close(self) -> None:
        """Nothing to finish: each map is complete."""


def _stem(verdict: Verdict) -> str:
    """A file name that sorts by camera and frame and identifies the source of the frame."""
    readable = re.sub(r"[^\w.-]+", "_", re.sub(r"\.\w+$", "", verdict.name)).strip("._")
    camera = "" if verdict.camera is None else f"camera{verdict.camera}_"
    return f"{camera}{verdict.frame_id:06d}_{readable[-60:]}"


def _create_folder(path: Path) -> Path:
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def _write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Encode in memory, then write: on errors cv2.imwrite leaves a partial file and only returns False."""
    encoded, data = cv2.imencode(path.suffix, picture)
    if not encoded:
        raise OutputError(f"{path}: OpenCV cannot encode this picture as {path.suffix}")
    try:
        with _writing(path):
            path.write_bytes(data.tobytes())
    except OutputError:
        path.unlink(missing_ok=True)
        raise


def _open_video(path: Path, fps: float, size: tuple[int, int]) -> tuple[cv2.VideoWriter, str]:
    for codec in CODECS[path.suffix.lower()]:
        with _silent_stderr():
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
        if writer.isOpened():
            return writer, codec
        writer.release()
    others = ", ".join(suffix for suffix in CODECS if suffix != path.suffix.lower())
    raise OutputError(f"this OpenCV cannot write {path.suffix} videos: choose one of {others} for {path.name}")


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Silence FFmpeg, which reports missing codecs on the process's stderr regardless of OpenCV's log level."""
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("w") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Map errors of the operating system to `OutputError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(path) from error
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose another path") from error


def _disk_full(path: Path) -> OutputError:
    return OutputError(f"the disk that holds {path} is full: free some space, or choose another path")
