"""From sources through an engine to the sinks: threads capture, the calling thread inspects and hands over."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from adedge.errors import UsageError
from adedge.runtime.capture import Capture, Policy, default_policy
from adedge.runtime.inspector import Inspector
from adedge.runtime.sinks import Sink
from adedge.runtime.sources import Frame, FrameSource
from adedge.runtime.statistics import Statistics


@dataclass(frozen=True)
class Stream:
    """An opened source with the sinks of its verdicts, which streams may share.

    ``statistics`` count this source's frames while `run` goes on.
    """

    source: FrameSource
    sinks: Sequence[Sink]
    statistics: Statistics = field(default_factory=Statistics)


def run(
    streams: Sequence[Stream],
    inspector: Inspector,
    *,
    policy: Policy | None = None,
    batch: int | None = None,
    wait_ms: float = 5.0,
    max_frames: int | None = None,
    stop: threading.Event | None = None,
    statistics: Statistics | None = None,
    watch: Callable[[Statistics], None] | None = None,
) -> Statistics:
    """Inspect opened sources until all have ended, ``max_frames`` were judged in all, or ``stop`` is set.

    Each verdict goes to the sinks of its stream; with several its ``camera`` is the stream's place in ``streams``. An
    error of one source ends the run, after the frames before it were judged: nobody shall believe that all are watched.

    ``policy`` is each source's `default_policy` where it is None. At most ``batch`` frames go through the engine at
    once (more throughput, and each waits for the last one), by default one of each source, or as many as the engine
    takes. ``wait_ms`` is the longest that a frame waits, from its capture, for frames of other sources; a single source
    always fills its batches. With policy "every" as many batches are under way as the inspector has slots; with
    "latest" for any source one, since a frame submitted early would be older than the newest when its turn comes.

    ``statistics`` count all streams together as the run goes, are right also when the run raises, and are returned;
    ``watch`` sees them after each batch, in the calling thread. All sources and sinks are closed in any case, so that
    what was written is complete up to there.

    Raises `UsageError` where there is no stream, and for a batch that the engine or the policy does not take; else what
    sources, engine and sinks raise.
    """
    if not streams:
        raise UsageError("no camera was given: give at least one source")
    statistics = statistics or Statistics()
    sources = [stream.source for stream in streams]
    policies = [policy or default_policy(source) for source in sources]
    if batch is None:
        batch = min(len(streams), inspector.batch)
    slots = 1 if "latest" in policies else inspector.slots
    capture = Capture(sources, policies, batch=batch, wait_ms=wait_ms, stop=stop or threading.Event())
    under_way: deque[list[tuple[int, Frame]]] = deque()
    left = sys.maxsize if max_frames is None else max_frames
    try:
        _check_batch(batch, inspector, policies)
        capture.start()
        while True:
            # While verdicts are still to come, only frames that wait already are worth more than those verdicts.
            taken = capture.take(min(batch, left), wait=not under_way) if left > 0 else []
            if taken:
                inspector.submit([frame for _, frame in taken])
                under_way.append(taken)
                left -= len(taken)
                if len(under_way) < slots:
                    continue
            if not under_way:
                break
            for (place, frame), verdict in zip(under_way.popleft(), inspector.collect(), strict=True):
                stream = streams[place]
                if len(streams) > 1:
                    verdict = replace(verdict, camera=place)
                statistics.add(verdict)
                stream.statistics.add(verdict)
                for sink in stream.sinks:
                    sink.take(verdict, frame)
            _count_losses(streams, capture, statistics)
            if watch is not None:
                watch(statistics)
    finally:
        capture.close()
        _count_losses(streams, capture, statistics)
        errors = _close_sinks(streams)
    if errors:
        raise errors[0]
    return statistics


def _check_batch(batch: int, inspector: Inspector, policies: Sequence[Policy]) -> None:
    if not 1 <= batch <= inspector.batch:
        raise UsageError(
            f"a batch of {batch} does not fit this engine, which takes 1 to {inspector.batch} frames at once: "
            "build it with '--batch MIN,OPT,MAX'"
        )
    if "latest" in policies and batch > len(policies):
        raise UsageError(
            f"a batch of {batch} frames from {len(policies)} source(s) needs the policy 'every': 'latest' keeps only "
            "the newest frame of each source"
        )


def _count_losses(streams: Sequence[Stream], capture: Capture, together: Statistics) -> None:
    for stream, dropped in zip(streams, capture.dropped, strict=True):
        stream.statistics.dropped, stream.statistics.skipped = dropped, stream.source.skipped
    together.dropped = sum(stream.statistics.dropped for stream in streams)
    together.skipped = sum(stream.statistics.skipped for stream in streams)


def _close_sinks(streams: Sequence[Stream]) -> list[Exception]:
    """Close every sink, also when another one fails; what went wrong."""
    errors: list[Exception] = []
    for sink in (sink for stream in streams for sink in stream.sinks):
        try:
            sink.close()
        except Exception as error:
            errors.append(error)
    return errors
