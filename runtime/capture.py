"""Frames of one or more sources, captured by a thread for each, that wait for the inspector.

A batch costs an engine little more than a frame, so sources that share one gain throughput when their frames go through
it together, and each frame may lose the time for which it waits for the others. That time is bounded.
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

from adedge.runtime.sources import Frame, FrameSource

Policy = Literal["latest", "every"]
"""latest: a frame that waits is replaced by a newer one, and counted as dropped (a line that must not fall behind).
every: no frame is dropped; a source that can wait is made to wait (files), a camera falls behind in its own buffers."""


def default_policy(source: FrameSource) -> Policy:
    """What a source gets unless another is asked for: "latest" where it is live, "every" where it can wait."""
    return "latest" if source.live else "every"


@dataclass
class _Queue:
    """The frames of one source that wait, at most ``depth``.

    ``error`` is what the source raised: it stands behind the frames that were captured before it.
    """

    source: FrameSource
    policy: Policy
    depth: int
    frames: deque[Frame] = field(default_factory=deque)
    dropped: int = 0
    ended: bool = False
    error: BaseException | None = None

    @property
    def full(self) -> bool:
        return len(self.frames) == self.depth


class Capture:
    """Iterates each source in a thread of its own and holds the frames that wait, in batches for `take`."""

    def __init__(
        self,
        sources: Sequence[FrameSource],
        policies: Sequence[Policy],
        *,
        batch: int,
        wait_ms: float,
        stop: threading.Event,
    ) -> None:
        """A batch has up to ``batch`` frames; ``wait_ms`` bounds how long one waits for those of other sources.

        Each source may fill an equal part of a batch. With policy "every" twice that waits, so that the next batch is
        ready when one is taken; with "latest" one frame. Once ``stop`` is set nothing more is captured.
        """
        self._stop = stop
        # A single source waits for nobody: its frames wait until the batch is full.
        self._wait_s = wait_ms / 1e3 if len(sources) > 1 else math.inf
        waiting = 2 * _part(batch, len(sources))
        self._queues = [
            _Queue(source, policy, depth=1 if policy == "latest" else waiting)
            for source, policy in zip(sources, policies, strict=True)
        ]
        self._changed = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []

    @property
    def dropped(self) -> list[int]:
        """How many frames of each source policy "latest" replaced."""
        return [queue.dropped for queue in self._queues]

    def start(self) -> None:
        """Begin to capture."""
        for index, queue in enumerate(self._queues):
            thread = threading.Thread(target=self._iterate, args=(queue,), name=f"capture {index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def take(self, count: int, *, wait: bool = True) -> list[tuple[int, Frame]]:
        """Up to ``count`` frames, those that wait longest, each with the place of its source; none at the end.

        They come in the order of the sources, and of each source in its own. Waits until ``count`` frames are there,
        every source that still gives frames has filled its part, or the oldest frame's time is up; without ``wait``
        none come where that is not so yet. When a source failed or ``stop`` is set, what waits is handed out. Raises
        what a source raised, after the frames captured before it were taken.
        """
        part = _part(count, len(self._queues))
        with self._changed:
            while not self._ready(count, part):
                if not wait:
                    return []
                # The time-out lets this thread see `stop`, which a signal handler sets: a handler must take no lock.
                self._changed.wait(timeout=max(0.0, min(0.1, self._time_left())))
            waiting = [
                (frame.captured_at_ns, index)
                for index, queue in enumerate(self._queues)
                for frame in islice(queue.frames, part)
            ]
            # Always in the same order: a batch of the same sizes as one before runs in the memory of that one.
            chosen = sorted(index for _, index in sorted(waiting)[:count])
            taken = [(index, self._queues[index].frames.popleft()) for index in chosen]
            self._changed.notify_all()
        errors = [queue.error for queue in self._queues if queue.error is not None]
        if wait and not taken and errors:
            raise errors[0]
        return taken

    def close(self) -> None:
        """End the capture and release the sources."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for queue in self._queues:
            queue.source.close()
        for thread in self._threads:
            # A driver that hangs keeps its (daemon) thread; the process can still end.
            thread.join(timeout=2)

    def _ending(self) -> bool:
        """Whether nothing more is captured: one source that failed ends all, once its last frame was taken."""
        failed = any(queue.error is not None and not queue.frames for queue in self._queues)
        return self._closed or self._stop.is_set() or failed

    def _ready(self, count: int, part: int) -> bool:
        """Whether a batch of ``count`` frames, up to ``part`` of each source, need not wait any longer."""
        filled = [min(len(queue.frames), part) for queue in self._queues]
        return (
            sum(filled) >= count
            or all(n == part or queue.ended for n, queue in zip(filled, self._queues, strict=True))
            or self._time_left() <= 0
            or self._ending()
        )

    def _time_left(self) -> float:
        """Seconds until the oldest frame has waited long enough; infinite where none waits."""
        oldest_ns = min((queue.frames[0].captured_at_ns for queue in self._queues if queue.frames), default=None)
        return math.inf if oldest_ns is None else self._wait_s - (time.monotonic_ns() - oldest_ns) / 1e9

    def _iterate(self, queue: _Queue) -> None:
        error = None
        try:
            for frame in queue.source:
                if not self._offer(queue, frame):
                    break
        except BaseException as raised:  # handed to the thread that takes the frames
            error = raised
        with self._changed:
            queue.ended, queue.error = True, error
            self._changed.notify_all()

    def _offer(self, queue: _Queue, frame: Frame) -> bool:
        """Let a frame wait, by the policy; False when nobody wants more."""
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


def _part(batch: int, sources: int) -> int:
    """How many frames of a batch one of so many sources may fill, rounded up."""
    return -(-batch // sources)
