"""Runs frames from sources through an engine to sinks: threads capture, the calling thread inspects and delivers."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from adedge.errors import UsageError
from adedge.runtime.capture import Capture, Policy, default_policy
from adedge.runtime.events import Event
from adedge.runtime.inspector import Inspector
from adedge.runtime.sinks import Sink
from adedge.runtime.sources import Frame, FrameSource
from adedge.runtime.statistics import Statistics
from adedge.runtime.watchdog import FaultPolicy, Watchdog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stream:
    """An opened source with the sinks for its verdicts; streams may share sinks.

    ``statistics`` count this source's frames during `run`.
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
    camera_timeout_s: float = 2.0,
    on_camera_fault: FaultPolicy = "warn",
) -> Statistics:
    """Inspect opened sources until all have ended, ``max_frames`` frames have been inspected, or ``stop`` is set.

    Each verdict goes to the sinks of its stream. With several streams its ``camera`` is the stream's index in
    ``streams``. An error in one source ends the run once the frames captured before it are inspected: the run must not
    look as if every source were still being watched.

    ``policy`` None means each source's `default_policy`. At most ``batch`` frames go through the engine at once (a
    larger batch raises throughput, but each frame waits for the last one); the default is one per source, or the
    engine's maximum if that is smaller. ``wait_ms`` is the longest time, counted from its capture, that a frame waits
    for frames of other sources; a single source always fills its batches. If all sources have policy "every", as many
    batches are in flight as the inspector has slots. If any has "latest", there is one: a frame submitted early would
    no longer be the newest when its turn comes.

    Live sources are watched. Each fault that begins or ends, also that no frame came for ``camera_timeout_s`` seconds
    (0: never), is an `Event`: it is logged, and the stream's sinks `report` it.
    ``on_camera_fault`` says what else a fault does. Each verdict on a frame with a fault names it.

    ``statistics`` count all streams together. They are updated during the run, are valid even if it raises, and are
    returned. ``watch`` is called with them after each batch, in the calling thread. All sources and sinks are closed in
    any case, so that the outputs are complete up to that point.

    Raises `UsageError` if ``streams`` is empty, or if the engine or the policy does not support the batch size.
    Errors of sources, engine and sinks are passed on.
    """
    if not streams:
        raise UsageError("no source to inspect: pass at least one")
    statistics = statistics or Statistics()
    sources = [stream.source for stream in streams]
    policies = [policy or default_policy(source) for source in sources]
    if batch is None:
        batch = min(len(streams), inspector.batch)
    slots = 1 if "latest" in policies else inspector.slots
    watchdogs = [
        Watchdog(source.name, timeout_s=camera_timeout_s, camera=index if len(streams) > 1 else None)
        if source.live
        else None
        for index, source in enumerate(sources)
    ]
    capture = Capture(
        sources,
        policies,
        batch=batch,
        wait_ms=wait_ms,
        stop=stop or threading.Event(),
        watchdogs=watchdogs,
        stop_on_fault=on_camera_fault == "stop",
    )
    in_flight: deque[list[tuple[int, Frame]]] = deque()
    remaining = sys.maxsize if max_frames is None else max_frames
    try:
        check_batch(batch, inspector, policies)
        capture.start()
        while True:
            # While batches are in flight, do not wait for new frames: their verdicts would wait as well.
            frames = capture.take(min(batch, remaining), wait=not in_flight) if remaining > 0 else []
            events = capture.take_events()
            for event in events:
                _report(event, streams[event.camera or 0].sinks)
            if frames:
                inspector.submit([frame for _, frame in frames])
                in_flight.append(frames)
                remaining -= len(frames)
                if len(in_flight) < slots:
                    continue
            if not in_flight:
                if events:
                    continue
                break
            for (index, frame), verdict in zip(in_flight.popleft(), inspector.collect(), strict=True):
                stream = streams[index]
                if len(streams) > 1:
                    verdict = replace(verdict, camera=index)
                if frame.fault is not None:
                    anomalous = verdict.anomalous or on_camera_fault == "reject"
                    verdict = replace(verdict, fault=frame.fault, anomalous=anomalous)
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


def _report(event: Event, sinks: Sequence[Sink]) -> None:
    log.warning(event.message)
    for sink in sinks:
        sink.report(event)


def check_batch(batch: int, inspector: Inspector, policies: Sequence[Policy]) -> None:
    """Raise `UsageError` unless the engine, and the sources' policies, support ``batch`` frames per engine call."""
    if not 1 <= batch <= inspector.batch:
        raise UsageError(
            f"a batch of {batch} does not fit this engine, which takes 1 to {inspector.batch} frames at once: "
            "use a batch in that range, or build the engine with '--batch MIN,OPT,MAX'"
        )
    if "latest" in policies and batch > len(policies):
        raise UsageError(
            f"a batch of {batch} frames from {len(policies)} source(s) needs the policy 'every': 'latest' keeps only "
            "the newest frame of each source; use '--policy every' or a smaller batch"
        )


def _count_losses(streams: Sequence[Stream], capture: Capture, total: Statistics) -> None:
    for stream, dropped in zip(streams, capture.dropped, strict=True):
        stream.statistics.dropped, stream.statistics.skipped = dropped, stream.source.skipped
    total.dropped = sum(stream.statistics.dropped for stream in streams)
    total.skipped = sum(stream.statistics.skipped for stream in streams)


def _close_sinks(streams: Sequence[Stream]) -> list[Exception]:
    """Close every sink, even if another one fails; return the errors."""
    errors: list[Exception] = []
    for sink in (sink for stream in streams for sink in stream.sinks):
        try:
            sink.close()
        except Exception as error:
            errors.append(error)
    return errors
