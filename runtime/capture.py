"""Captures frames from one or more sources, each in its own thread, and queues them for the inspector.

A batch costs an engine little more than a single frame. Sources that share an engine therefore gain throughput by
batching, at the price of the time that a frame waits for the others, which is bounded.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from adedge.errors import SourceError
from adedge.runtime.events import Event
from adedge.runtime.sources import Frame, FrameSource
from adedge.runtime.watchdog import Watchdog

Policy = Literal["latest", "every"]
"""latest: a newer frame replaces the waiting one, which counts as dropped (for a line that must not fall behind).
every: no frame is dropped; sources that can wait do (files), a camera falls behind in its own buffers."""


def default_policy(source: FrameSource) -> Policy:
    """The policy of a source unless one is given: "latest" if it is live, "every" if it can wait."""
    return "latest" if source.live else "every"


@dataclass
class _Queue:
    """The waiting frames of one source, at most ``depth``; ``watchdog`` is that of a camera.

    ``error`` is the source's exception; it is raised after the frames captured before it.
    """

    source: FrameSource
    policy: Policy
    depth: int
    watchdog: Watchdog | None = None
    frames: deque[Frame] = field(default_factory=deque)
    dropped: int = 0
    ended: bool = False
    error: BaseException | None = None

    @property
    def full(self) -> bool:
        return len(self.frames) == self.depth


class Capture:
    """Iterates over each source in its own thread and queues the frames, which `take` returns in batches."""

    def __init__(
        self,
        sources: Sequence[FrameSource],
        policies: Sequence[Policy],
        *,
        batch: int,
        wait_ms: float,
        stop: threading.Event,
        watchdogs: Sequence[Watchdog | None] = (),
        stop_on_fault: bool = False,
    ) -> None:
        """Batches have up to ``batch`` frames; a frame waits at most ``wait_ms`` for those of other sources.

        Each source may fill an equal share of a batch. With policy "every" its queue holds two shares, so that the
        next batch is ready when one is taken; with "latest" it holds one frame. Setting ``stop`` ends the capture.
        ``watchdogs`` are one per source, None for those that nobody watches; with ``stop_on_fault`` a fault that they
        find is an error of the source.
        """
        self._stop = stop
        self._stop_on_fault = stop_on_fault
        # A single source has no others to wait for: its frames wait until the batch is full.
        self._wait_s = wait_ms / 1e3 if len(sources) > 1 else math.inf
        depth = 2 * _share(batch, len(sources))
        self._queues = [
            _Queue(source, policy, 1 if policy == "latest" else depth, watchdog)
            for source, policy, watchdog in zip(sources, policies, watchdogs or [None] * len(sources), strict=True)
        ]
        self._changed = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []

    @property
    def dropped(self) -> list[int]:
        """How many frames of each source were dropped by policy "latest"."""
        return [queue.dropped for queue in self._queues]

    def start(self) -> None:
        """Start capturing."""
        for index, queue in enumerate(self._queues):
            thread = threading.Thread(target=self._iterate, args=(queue,), name=f"capture {index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def take(self, count: int, *, wait: bool = True) -> list[tuple[int, Frame]]:
        """Take up to ``count`` frames, the longest-waiting first, each with the index of its source.

        The frames are ordered by source, and by capture within a source; the list is empty at the end. Waits until
        ``count`` frames are queued, every active source has filled its share, or the oldest frame has waited for
        ``wait_ms``; with ``wait=False`` returns an empty list instead of waiting, and also where there are events to
        take. Once a source has failed or ``stop`` is set, returns what is queued. Raises a source's exception after the
        frames captured before it, and the events, were taken.
        """
        share = _share(count, len(self._queues))
        with self._changed:
            while not self._ready(count, share):
                self._check_silence()
                if not wait or self._has_events():
                    return []
                # The timeout lets this thread see `stop`: the signal handler that sets it must not take a lock.
                self._changed.wait(timeout=max(0.0, min(0.1, self._time_left())))
            waiting = [
                (frame.captured_at_ns, index)
                for index, queue in enumerate(self._queues)
                for frame in islice(queue.frames, share)
            ]
            # A fixed order lets a batch reuse the memory of an earlier one with the same frame sizes.
            indices = sorted(index for _, index in sorted(waiting)[:count])
            frames = [(index, self._queues[index].frames.popleft()) for index in indices]
            self._changed.notify_all()
        errors = [queue.error for queue in self._queues if queue.error is not None]
        if wait and not frames and errors and not self._has_events():
            raise errors[0]
        return frames

    def take_events(self) -> list[Event]:
        """Take what the watchdogs have noticed."""
        with self._changed:
            self._check_silence()
            return [
                queue.watchdog.events.popleft()
                for queue in self._queues
                if queue.watchdog is not None
                for _ in range(len(queue.watchdog.events))
            ]

    def close(self) -> None:
        """Stop capturing and release the sources."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for queue in self._queues:
            queue.source.close()
        for thread in self._threads:
            # If a driver hangs, its thread stays; the process can still end, because it is a daemon thread.
            thread.join(timeout=2)

    def _check_silence(self) -> None:
        for queue in self._queues:
            if queue.watchdog is None:
                continue
            if queue.watchdog.check(ended=queue.ended) and self._stop_on_fault:
                # Its thread may hang in the driver, so it cannot end by itself.
                queue.ended, queue.error = True, _stopped(queue.watchdog)
                self._changed.notify_all()

    def _has_events(self) -> bool:
        return any(queue.watchdog is not None and queue.watchdog.events for queue in self._queues)

    def _ending(self) -> bool:
        """Whether to stop capturing: a failed source ends all of them once its last frame was taken."""
        failed = any(queue.error is not None and not queue.frames for queue in self._queues)
        return self._closed or self._stop.is_set() or failed

    def _ready(self, count: int, share: int) -> bool:
        """Whether a batch of ``count`` frames, up to ``share`` per source, need not wait any longer."""
        filled = [min(len(queue.frames), share) for queue in self._queues]
        return (
            sum(filled) >= count
            or all(n == share or queue.ended for n, queue in zip(filled, self._queues, strict=True))
            or self._time_left() <= 0
            or self._ending()
        )

    def _time_left(self) -> float:
        """Seconds until the oldest frame has waited long enough; infinite if no frame is waiting."""
        oldest_ns = min((queue.frames[0].captured_at_ns for queue in self._queues if queue.frames), default=None)
        return math.inf if oldest_ns is None else self._wait_s - (time.monotonic_ns() - oldest_ns) / 1e9

    def _iterate(self, queue: _Queue) -> None:
        error = None
        try:
            for frame in queue.source:
                if not self._offer(queue, self._examined(queue.watchdog, frame)):
                    break
                if queue.watchdog is not None:
                    queue.watchdog.resume()
        except BaseException as raised:  # re-raised by the thread that takes the frames
            error = raised
        with self._changed:
            queue.ended, queue.error = True, queue.error or error
            self._changed.notify_all()

    def _examined(self, watchdog: Watchdog | None, frame: Frame) -> Frame:
        if watchdog is None:
            return frame
        examined = watchdog.examine(frame)
        if examined.fault is not None and self._stop_on_fault:
            raise _stopped(watchdog)
        return examined

    def _offer(self, queue: _Queue, frame: Frame) -> bool:
        """Queue a frame according to the policy; return False once the capture has ended."""
        with self._changed:
            while queue.full and queue.policy == "every" and not self._ending():
                self._changed.wait()
            if self._ending():
                return False
            if queue.full:
                queue.frames.popleft()
                queue.dropped += 1
            queue.frames.append(frame)
            self._changed.notify_all()
            return True


def _stopped(watchdog: Watchdog) -> SourceError:
    return SourceError(f"{watchdog.explanation} (--on-camera-fault stop)")


def _share(batch: int, sources: int) -> int:
    """How many frames of a batch each source may fill, rounded up."""
    return -(-batch // sources)
