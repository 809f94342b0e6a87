"""Outputs for verdicts: JSON lines, an annotated video, pictures of rejects, raw maps.

The pipeline's thread calls the sinks one after another, so each must be cheap. A full disk or a missing permission
raises `OutputError`; everything written before it stays readable. `BestEffort` keeps such an error from ending the run.
"""

from __future__ import annotations

import codecs
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import AdedgeError, OutputError, UsageError
from adedge.runtime.disk import DiskFull, writing
from adedge.runtime.events import Event, record_from_event
from adedge.runtime.evidence import KEEP_ALL, EvidenceFolder, Retention, evidence_stem
from adedge.runtime.line_file import NO_ROTATION, LineFile, Rotation
from adedge.runtime.line_stream import LineStream
from adedge.runtime.overlay import annotate, shrunk
from adedge.runtime.sources import Frame
from adedge.runtime.verdict import Verdict, new_run_id, record_from_verdict

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Interface of an output: takes every verdict, in frame order, and may take the cameras' events."""

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Write the verdict. ``verdict.map`` is valid only during this call. Raises `OutputError`."""

    def report(self, event: Event) -> None:
        """Write the event; does nothing unless overridden. Raises `OutputError`."""
        return

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
    """One JSON line per verdict and event, written immediately, to a text stream or appended to a file.

    ``run_id`` is the value of "run" in each line, a new one by default. ``rotation`` applies to a file.
    """

    def __init__(self, target: TextIO | Path, *, run_id: str | None = None, rotation: Rotation = NO_ROTATION) -> None:
        """A stream is not closed. Raises `OutputError` if the file cannot be opened."""
        self._run_id = run_id or new_run_id()
        self._output: LineFile | LineStream
        if isinstance(target, Path):
            self._output, encoding = LineFile(target, rotation), "utf-8"
        else:
            self._output, encoding = LineStream(target), target.encoding or "utf-8"
        self._ascii = codecs.lookup(encoding).name != "utf-8"  # ASCII is right in every console, and is UTF-8

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Write one line; a file never ends in a partial line. `BrokenPipeError` is passed on: nobody reads a pipe."""
        self._write(record_from_verdict(verdict))

    def report(self, event: Event) -> None:
        """Write one line, which has the key "event"."""
        self._write(record_from_event(event))

    def _write(self, record: Mapping[str, Any]) -> None:
        text = json.dumps({"run": self._run_id, **record}, ensure_ascii=self._ascii, allow_nan=False)
        # JSON leaves these controls as they are, and terminals obey them.
        text = re.sub("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]", lambda match: f"\\u{ord(match[0]):04x}", text)
        self._output.append(f"{text}\n".encode())

    def close(self) -> None:
        """Close the file."""
        self._output.close()


DEFAULT_FPS = 25.0


def container_rate(fps: float) -> float:
    """The nearest frame rate that every container takes, and `DEFAULT_FPS` for what is no rate of a video.

    MPEG-4 stores the rate as a fraction whose numerator has 16 bits, and OpenCV makes the denominator a power of ten.
    Files with a still picture for a video state rates such as 0 or 90000, and OpenCV never returns from infinity.
    """
    if not 0.1 <= fps <= 1000:
        log.warning("the source states %g frames per second: the video plays at %g", fps, DEFAULT_FPS)
        return DEFAULT_FPS
    return round(fps, next(decimals for decimals in (3, 2, 1) if fps * 10**decimals < 65535))


class VideoSink(Sink):
    """An annotated video: the frame and its overlay side by side above the verdict.

    The suffix selects the container; the codec is the first of `CODECS` for it that this OpenCV can write. ``.webm``
    (VP8 or VP9) plays in every browser; ``.mp4`` is H.264 if OpenCV has an encoder, otherwise MPEG-4 part 2, which
    browsers do not play; ``.avi`` is Motion JPEG. Every frame is scaled to the size of the first. ``longest_side``
    limits the video's size in pixels. ``outline`` is passed to `adedge.runtime.overlay.overlay`.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: float = DEFAULT_FPS,
        outline: bool = True,
        beside: bool = True,
        longest_side: int = 1280,
        run_id: str | None = None,
        retention: Retention = KEEP_ALL,
    ) -> None:
        """An existing file is kept: ``run_id``, a new one by default, then becomes part of this one's name.

        Raises `UsageError` for an unknown suffix, `OutputError` if the folder is not writable.
        """
        if path.suffix.lower() not in CODECS:
            raise UsageError(
                f"{path} is not a supported kind of video: the name must end in one of {', '.join(CODECS)}"
            )
        if path.exists():
            existing, path = path, path.with_stem(f"{path.stem}.{run_id or new_run_id()}")
            log.warning("%s exists: this run's video is %s", existing, path.name)
        with suppress(DiskFull), writing(path):  # the disk may have room again when the first frame comes
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()  # fail now, not after the first frame
            if path.stat().st_size == 0:
                path.unlink()  # a run without frames leaves no video
        self._path = path
        self._fps = container_rate(fps)
        self._outline = outline
        self._beside = beside
        self._longest_side = longest_side
        self._retention = retention
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self.codec = ""

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Draw and append one frame. Raises `OutputError` while the disk still has room to finish the file."""
        # OpenCV swallows write errors: check the free space before each frame, and keep enough to close the file.
        if self._retention.missing_bytes(self._path.parent) + _RESERVE_BYTES > 0:
            raise DiskFull(f"the disk that holds {self._path} is full: free some space, or choose another path")
        # Drawing and encoding 12 megapixels would be slower than most networks.
        image = shrunk(frame.picture, self._longest_side // (2 if self._beside else 1), self._longest_side)
        picture = annotate(image, verdict, outline=self._outline, beside=self._beside)
        if self._writer is None:
            height, width = shrunk(picture, _VIDEO_SIDE, _VIDEO_SIDE).shape[:2]
            self._size = (width - width % 2 or 2, height - height % 2 or 2)  # the codecs halve the chroma resolution
            self._writer, self.codec = _open_video(self._path, self._fps, self._size)
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
    """Two pictures per reject: ``RUN_000012_name.png``, the original frame, and ``RUN_000012_name.overlay.jpg``.

    RUN is ``run_id``, a new one by default. With several cameras the camera's index follows it,
    ``RUN_camera1_000012_name.png``, as in `MapsSink`.
    """

    def __init__(
        self, folder: Path, *, outline: bool = True, run_id: str | None = None, retention: Retention = KEEP_ALL
    ) -> None:
        """Raises `OutputError` if the folder is not writable."""
        self._folder = EvidenceFolder(folder, (".png", ".overlay.jpg"), retention)
        self._outline = outline
        self._run_id = run_id or new_run_id()

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Write both pictures if the frame is anomalous."""
        if not verdict.anomalous:
            return
        overlay = annotate(shrunk(frame.picture, _JPEG_SIDE, _JPEG_SIDE), verdict, outline=self._outline)
        files = {
            ".png": _encode(".png", frame.picture),
            ".overlay.jpg": _encode(".jpg", shrunk(overlay, _JPEG_SIDE, _JPEG_SIDE)),
        }
        self._folder.write(evidence_stem(self._run_id, verdict), files)

    def close(self) -> None:
        """Nothing to finish: each picture is complete."""


class MapsSink(Sink):
    """Writes the raw anomaly map of each frame, float32 (H, W), as ``RUN_000012_name.npy``; RUN as in `RejectsSink`."""

    def __init__(self, folder: Path, *, run_id: str | None = None, retention: Retention = KEEP_ALL) -> None:
        """Raises `OutputError` if the folder is not writable."""
        self._folder = EvidenceFolder(folder, (".npy",), retention)
        self._run_id = run_id or new_run_id()

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Write the map."""
        if verdict.map is None:
            return
        encoded = BytesIO()
        np.save(encoded, verdict.map, allow_pickle=False)
        self._folder.write(evidence_stem(self._run_id, verdict), {".npy": encoded.getvalue()})

    def close(self) -> None:
        """Nothing to finish: each map is complete."""


class BestEffort(Sink):
    """An output whose failures do not end the run: the first one is logged as a warning, and all are counted.

    ``name`` is used in messages, ``failures`` counts the verdicts that could not be taken. ``required`` says that a run
    with failures has failed, although it went on.
    """

    def __init__(self, sink: Sink, name: str, *, required: bool = False) -> None:
        self._sink = sink
        self.name = name
        self.required = required
        self.failures = 0

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Pass the verdict on. `BrokenPipeError` is passed back: nobody reads the verdicts any more."""
        with self._counting():
            self._sink.take(verdict, frame)

    def report(self, event: Event) -> None:
        """Pass the event on."""
        with self._counting():
            self._sink.report(event)

    def close(self) -> None:
        """Close the output."""
        with self._counting():
            self._sink.close()

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                message = str(error) if isinstance(error, AdedgeError) else f"{type(error).__name__}: {error}"
                log.warning("%s: %s; the inspection goes on without", self.name, message)
                log.debug("%s failed", self.name, exc_info=True)


_VIDEO_SIDE = 4096  # pixels; what H.264 decoders of the present take
_JPEG_SIDE = 65_500  # pixels; a JPEG cannot have more than 65 535


def _encode(suffix: str, picture: NDArray[np.uint8]) -> bytes:
    """Encode in memory: on errors cv2.imwrite leaves a partial file and only returns False."""
    encoded, data = cv2.imencode(suffix, picture)
    if not encoded:
        height, width = picture.shape[:2]
        raise OutputError(f"OpenCV cannot encode a picture of {width} × {height} pixels as {suffix}")
    return data.tobytes()


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
