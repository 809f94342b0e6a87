"""From a source through an engine to the sinks: one thread captures, the calling thread inspects and hands over."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from adedge.errors import AdedgeError, UsageError
from adedge.runtime.inspector import Inspector
from adedge.runtime.sinks import Sink
from adedge.runtime.sources import Frame, FrameSource
from adedge.runtime.statistics import Statistics

Policy = Literal["latest", "every"]
"""latest: a frame that waits is replaced by a newer one, and counted as dropped (a line that must not fall behind).
every: no frame is dropped; a source that can wait is made to wait (files), a camera falls behind in its own buffers."""


class Capture:
    """Iterates a source in its own thread and holds the frames that wait for the inspector.

    ``dropped`` counts the frames that policy "latest" replaced. An error of the source is raised by `take`, after the
    frames captured before it were taken.
    """

    def __init__(self, source: FrameSource, policy: Policy, depth: int) -> None:
        """``depth`` frames wait at most; with "latest" it is one."""
        self.dropped = 0
        self._source = source
        self._policy = policy
        self._depth = 1 if policy == "latest" else depth
        self._waiting: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._stopping = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._iterate, name="capture", daemon=True)

    def start(self) -> None:
        """Begin to capture."""
        self._thread.start()

    def take(self, count: int, stop: threading.Event, *, wait: bool = True) -> list[Frame]:
        """The next frames: ``count`` of them with policy "every", the newest with "latest"; none at the end.

        Fewer than ``count`` come at the end of the source. Once ``stop`` is set nothing more is captured, and what
        waits is handed out. Without ``wait`` none come where there are not enough yet. Raises what the source raised.
        """
        wanted = min(count, self._depth)
        with self._changed:
            if not wait and len(self._waiting) < wanted:
                return []
            while len(self._waiting) < wanted and not self._ended and not self._stopping:
                # The time-out lets this thread see `stop`, which a signal handler sets: a handler must take no lock.
                self._changed.wait(timeout=0.1)
                self._stopping = stop.is_set()
            frames = [self._waiting.popleft() for _ in range(min(wanted, len(self._waiting)))]
            self._stopping = stop.is_set()
            self._changed.notify_all()
        if not frames and self._error is not None:
            raise self._error
        return frames

    def close(self) -> None:
        """End the capture and release the source."""
        self._stopping = True
        with self._changed:
            self._changed.notify_all()
        self._source.close()
        # A driver that hangs keeps its (daemon) thread; the process can still end.
        self._thread.join(timeout=2)

    def _iterate(self) -> None:
        try:
            for frame in self._source:
                if not self._offer(frame):
                    break
        except BaseException as error:  # handed to the thread that takes the frames
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _offer(self, frame: Frame) -> bool:
        """Queue a frame by the policy; False when nobody wants more."""
        with self._changed:
            if self._policy == "latest" and self._waiting:
                self._waiting.clear()
                self.dropped += 1
            while len(self._waiting) >= self._depth and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return False
            self._waiting.append(frame)
            self._changed.notify_all()
            return True


def run(
    source: FrameSource,
    inspector: Inspector,
    sinks: Sequence[Sink],
    *,
    policy: Policy,
    batch: int = 1,
    max_frames: int | None = None,
    stop: threading.Event | None = None,
    statistics: Statistics | None = None,
    watch: Callable[[Statistics], None] | None = None,
) -> Statistics:
    """Inspect an opened source until it ends, ``max_frames`` were judged, or ``stop`` is set.

    ``batch`` frames go through the engine at once (more throughput, and each waits for the last one). With policy
    "every" as many batches are under way as the inspector has slots; with "latest" one, since a frame submitted early
    would be older than the newest when its turn comes. ``statistics``
    is counted up as the run goes and is right also when the run raises; ``watch`` sees it after each batch, in the
    calling thread. The source and all sinks are closed in any case, so that what was written is complete up to there.

    Raises `UsageError` for a batch that the engine or the policy does not take, and what source, engine and sinks
    raise.
    """
    if not 1 <= batch <= inspector.batch:
        raise UsageError(
            f"a batch of {batch} does not fit this engine, which takes 1 to {inspector.batch} frames at once: "
            "build it with '--batch MIN,OPT,MAX'"
        )
    if policy == "latest" and batch > 1:
        raise UsageError("a batch needs the policy 'every': 'latest' keeps only the newest frame")
    stop = stop or threading.Event()
    statistics = statistics or Statistics()
    slots = inspector.slots if policy == "every" else 1
    capture = Capture(source, policy, depth=2 * batch)
    under_way: deque[list[Frame]] = deque()
    taken = 0
    try:
        capture.start()
        while True:
            wanted = batch if max_frames is None else min(batch, max_frames - taken)
            # While verdicts are still to come, only frames that wait already are worth more than those verdicts.
            frames = capture.take(wanted, stop, wait=not under_way) if wanted > 0 else []
            if frames:
                inspector.submit(frames)
                under_way.append(frames)
                taken += len(frames)
                if len(under_way) < slots:
                    continue
            if not under_way:
                break
            for frame, verdict in zip(under_way.popleft(), inspector.collect(), strict=True):
                statistics.add(verdict)
                for sink in sinks:
                    sink.take(verdict, frame)
            statistics.dropped, statistics.skipped = capture.dropped, source.skipped
            if watch is not None:
                watch(statistics)
    finally:
        capture.close()
        statistics.dropped, statistics.skipped = capture.dropped, source.skipped
        unfinished = close_all(sinks)
    if unfinished:
        raise unfinished[0]
    return statistics


def close_all(sinks: Sequence[Sink]) -> list[AdedgeError]:
    """Close every sink, also when another one fails; what went wrong."""
    errors = []
    for sink in sinks:
        try:
            sink.close()
        except AdedgeError as error:
            errors.append(error)
    return errors
