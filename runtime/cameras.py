"""Several cameras on one engine: frames that come at about the same time go through it as one batch.

A batch costs an engine little more than a frame, so cameras that share one gain throughput, and each frame may lose the
time for which it waits for the others. That time is bounded: whatever waits when the oldest frame's time is up is
inspected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from adedge.errors import UsageError
from adedge.runtime.inspector import Inspector
from adedge.runtime.pipeline import close_all
from adedge.runtime.sinks import Sink
from adedge.runtime.sources import Frame, FrameSource
from adedge.runtime.statistics import Statistics


@dataclass
class Camera:
    """An opened source with its sinks, which cameras may share; ``statistics`` count while `run_cameras` goes on.

    A live source keeps only its newest frame waiting; one that can wait (a file) does.
    """

    source: FrameSource
    sinks: Sequence[Sink]
    statistics: Statistics = field(default_factory=Statistics)


class _Gathering:
    """One waiting frame for each camera, captured by a thread for each."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        self._cameras = cameras
        self._waiting: list[Frame | None] = [None] * len(cameras)
        self._ended = [False] * len(cameras)
        self._changed = threading.Condition()
        self._stopping = False
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._iterate, args=(index,), name=f"camera {index}", daemon=True)
            for index in range(len(cameras))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def take(self, most: int, wait_s: float, stop: threading.Event) -> list[tuple[int, Frame]]:
        """The frames of up to ``most`` cameras, those that wait longest, in the cameras' order; none at the end.

        Waits for the first frame, then until every camera that still gives frames has one, until ``most`` wait, or
        until the oldest has waited ``wait_s``. Once ``stop`` is set, or a source has failed, nothing more is captured
        and what waits is handed out. Raises what a source raised, once the frames before it were taken.
        """
        with self._changed:
            self._stopping |= stop.is_set()
            while not self._enough(most, wait_s):
                oldest = self._oldest_ns()
                # Also awake now and then to see `stop`, which a signal handler sets: a handler must take no lock.
                left = 0.1 if oldest is None else min(0.1, wait_s - (time.monotonic_ns() - oldest) / 1e9)
                self._changed.wait(timeout=max(left, 0.0))
                self._stopping |= stop.is_set()
            present = [(index, frame) for index, frame in enumerate(self._waiting) if frame is not None]
            longest = sorted(present, key=lambda entry: entry[1].captured_at_ns)[:most]
            # Always in the same order: a batch of the same sizes as one before runs in the memory of that one.
            taken = sorted(longest, key=lambda entry: entry[0])
            for index, _ in taken:
                self._waiting[index] = None
            self._changed.notify_all()
        if not taken and self._error is not None:
            raise self._error
        return taken

    def close(self) -> None:
        """End every capture and release the sources."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for camera in self._cameras:
            camera.source.close()
        for thread in self._threads:
            thread.join(timeout=2)

    def _enough(self, most: int, wait_s: float) -> bool:
        if self._stopping:
            return True
        oldest = self._oldest_ns()
        if oldest is None:
            return all(self._ended)
        present = [frame is not None for frame in self._waiting]
        everybody = all(here or ended for here, ended in zip(present, self._ended, strict=True))
        return everybody or sum(present) >= most or time.monotonic_ns() - oldest >= wait_s * 1e9

    def _oldest_ns(self) -> int | None:
        return min((frame.captured_at_ns for frame in self._waiting if frame is not None), default=None)

    def _iterate(self, index: int) -> None:
        camera = self._cameras[index]
        try:
            for frame in camera.source:
                if not self._offer(index, camera, frame):
                    break
        except BaseException as error:  # handed to the thread that takes the frames
            self._error = self._error or error
        finally:
            with self._changed:
                self._ended[index] = True
                self._stopping |= self._error is not None
                self._changed.notify_all()

    def _offer(self, index: int, camera: Camera, frame: Frame) -> bool:
        """Let a frame wait; False when nobody wants more."""
        with self._changed:
            if camera.source.live and self._waiting[index] is not None:
                camera.statistics.dropped += 1
                self._waiting[index] = None
            while self._waiting[index] is not None and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return False
            self._waiting[index] = frame
            self._changed.notify_all()
            return True


def run_cameras(
    cameras: Sequence[Camera],
    inspector: Inspector,
    *,
    wait_ms: float,
    stop: threading.Event | None = None,
    statistics: Statistics | None = None,
    watch: Callable[[Statistics], None] | None = None,
) -> None:
    """Inspect several opened sources until all have ended or ``stop`` is set; each verdict goes to its camera's sinks.

    ``wait_ms`` is the longest that a frame waits, from its capture, for frames of other cameras. An error of one source
    ends the run, after the frames before it were judged: nobody shall believe that all cameras are watched. A verdict's
    ``camera`` is the place in ``cameras``. ``statistics`` count all cameras together; ``watch`` sees them after each
    batch, in the calling thread. Sources and sinks are closed in any case. Raises `UsageError` where there is no
    camera, and what sources, engine and sinks raise.
    """
    if not cameras:
        raise UsageError("no camera was given")
    stop = stop or threading.Event()
    together = statistics or Statistics()
    gathering = _Gathering(cameras)
    try:
        gathering.start()
        while taken := gathering.take(inspector.batch, wait_ms / 1e3, stop):
            inspector.submit([frame for _, frame in taken])
            for (index, frame), verdict in zip(taken, inspector.collect(), strict=True):
                verdict = replace(verdict, camera=index)
                together.add(verdict)
                cameras[index].statistics.add(verdict)
                for sink in cameras[index].sinks:
                    sink.take(verdict, frame)
            _count_losses(cameras, together)
            if watch is not None:
                watch(together)
    finally:
        gathering.close()
        _count_losses(cameras, together)
        unfinished = close_all([sink for camera in cameras for sink in camera.sinks])
    if unfinished:
        raise unfinished[0]


def _count_losses(cameras: Sequence[Camera], together: Statistics) -> None:
    for camera in cameras:
        camera.statistics.skipped = camera.source.skipped
    together.dropped = sum(camera.statistics.dropped for camera in cameras)
    together.skipped = sum(camera.statistics.skipped for camera in cameras)
