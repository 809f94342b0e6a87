"""From a source through an engine to the sinks: one thread captures, the calling thread inspects and hands over.

Latency has three names here: *network* (the engine alone), *frame* (preprocess to score) and *verdict* (capture to the
verdict handed to the first sink, waiting included).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Normalisation
from adedge.errors import AdedgeError, DataError, EngineError, UsageError
from adedge.runtime.backend import Backend
from adedge.runtime.preprocess import Preprocessor
from adedge.runtime.scoring import Scorer
from adedge.runtime.sinks import Sink
from adedge.runtime.sources import Frame, FrameSource
from adedge.runtime.tiling import cut_tiles, merge_maximum
from adedge.runtime.verdict import Verdict
from adedge.scoring import image_scores
from adedge.specs import InputSpec, ScoreSpec

Latency = Literal["network", "frame", "verdict"]
Policy = Literal["latest", "every"]
"""latest: a frame that waits is replaced by a newer one, and counted as dropped (a line that must not fall behind).
every: no frame is dropped; a source that can wait is made to wait (files), a camera falls behind in its own buffers."""


LATENCIES: tuple[Latency, ...] = ("network", "frame", "verdict")

WINDOW = 4096
"""`Statistics` looks back over so many frames: a run of months keeps its memory."""


class _Inspected(NamedTuple):
    """What a batch gave: maps and scores, and the monotonic times (ns) spent in its three stages."""

    maps: Sequence[NDArray[np.float32]]
    scores: Sequence[float]
    preprocess_ns: int
    network_ns: int
    scoring_ns: int


class Inspects(Protocol):
    """What the pipeline knows of an inspector: frames are submitted, and their verdicts collected in the same order.

    Up to ``slots`` batches may be under way at once; one that computes in the calling thread has one.
    """

    @property
    def batch(self) -> int:
        """The most frames that one `submit` takes."""

    @property
    def slots(self) -> int:
        """How many batches may be submitted before the first is collected."""

    def submit(self, frames: Sequence[Frame]) -> None:
        """Begin with 1 to ``batch`` frames; they must not change before they are collected."""

    def collect(self) -> Iterator[Verdict]:
        """The verdicts on the frames submitted first; each is complete at the moment it is yielded.

        Raises `EngineError` where the engine fails or gives a score that is not a number.
        """

    def close(self) -> None:
        """Give back what the inspector itself holds; the engine stays. A second call does nothing."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """From a score to a verdict: ``score > threshold`` is anomalous."""

    threshold: float
    normalisation: Normalisation | None = None

    def verdict(
        self, frame: Frame, score: float, anomaly_map: NDArray[np.float32] | None, timings_ms: Mapping[str, float]
    ) -> Verdict:
        """The verdict on a frame, decided now. Raises `EngineError` where the score is not a number."""
        if not math.isfinite(score):
            raise EngineError(
                f"frame {frame.index} ({frame.name}) has the score {score}: the engine or its weights are damaged; "
                "build the engine again"
            )
        decided_at_ns = time.monotonic_ns()
        return Verdict(
            frame_id=frame.index,
            name=frame.name,
            captured_at_ns=frame.captured_at_ns,
            decided_at_ns=decided_at_ns,
            score=score,
            threshold=self.threshold,
            anomalous=score > self.threshold,
            z=None if (n := self.normalisation) is None else (score - n.mean) / n.std,
            map=anomaly_map,
            timings_ms={**timings_ms, "verdict": (decided_at_ns - frame.captured_at_ns) / 1e6},
        )


def check_shape(shape: Sequence[int], spec: InputSpec) -> None:
    """Compare an engine's input (batch, C, H, W) with the bundle's. Raises `EngineError` where they differ."""
    if tuple(shape[1:]) != spec.shape:
        raise EngineError(
            f"the engine takes frames of {tuple(shape[1:])}, the bundle says {spec.shape} "
            "(channels, height, width): build the engine again"
        )


class Inspector:
    """An engine with what surrounds it: frames in, verdicts out.

    ``score > threshold`` is anomalous. With ``spec.resize`` "tile" a frame keeps its resolution: its tiles go through
    engine and scoring (comparison and filters act within each tile, as in the paper), their maps are merged by maximum,
    and the frame's score is the reduction over the merged map.
    """

    def __init__(
        self,
        backend: Backend,
        spec: InputSpec,
        score: ScoreSpec,
        *,
        threshold: float,
        normalisation: Normalisation | None = None,
    ) -> None:
        """Raises `EngineError` where the engine's input is not of the spec's shape."""
        check_shape(backend.input.shape, spec)
        self.batch = backend.batch
        self.slots = 1
        self._backend = backend
        self._spec = spec
        self._score = score
        self._judge = Judge(threshold=threshold, normalisation=normalisation)
        self._submitted: Sequence[Frame] = ()
        self._preprocess = Preprocessor(spec, backend.batch)
        self._scorer = Scorer(score, spec.shape, backend.batch)
        self._merged = np.zeros((0, 0), np.float32)

    def submit(self, frames: Sequence[Frame]) -> None:
        """Keep the frames for `collect`, which does the work in the thread that calls it."""
        self._submitted = frames

    def collect(self) -> Iterator[Verdict]:
        """`inspect` the frames that were submitted."""
        return self.inspect(self._submitted)

    def close(self) -> None:
        """Nothing is held."""

    def inspect(self, frames: Sequence[Frame]) -> Iterator[Verdict]:
        """The verdicts on up to ``batch`` frames, in order; each is complete at the moment it is yielded.

        Raises `EngineError` where the engine fails or gives a score that is not a number.
        """
        if self._spec.tiling is None:
            yield from self._verdicts(frames, self._stretched(frames))
        else:
            for frame in frames:
                yield from self._verdicts([frame], self._tiled(frame))

    def _verdicts(self, frames: Sequence[Frame], inspected: _Inspected) -> Iterator[Verdict]:
        stages = inspected.preprocess_ns, inspected.network_ns, inspected.scoring_ns
        timings_ms = dict(zip(("preprocess", "network", "scoring"), (ns / 1e6 for ns in stages), strict=True))
        timings_ms["frame"] = sum(stages) / 1e6
        for frame, anomaly_map, score in zip(frames, inspected.maps, inspected.scores, strict=True):
            yield self._judge.verdict(frame, score, anomaly_map, timings_ms)

    def _stretched(self, frames: Sequence[Frame]) -> _Inspected:
        return self._run([frame.image for frame in frames])

    def _run(self, images: Sequence[NDArray[np.uint8]]) -> _Inspected:
        """At most ``batch`` pictures through preprocessing, network and scoring."""
        started = time.monotonic_ns()
        n = self._preprocess(images, self._backend.input)
        preprocessed = time.monotonic_ns()
        self._backend.run(n)
        executed = time.monotonic_ns()
        maps, scores = self._scorer([output[:n] for output in self._backend.outputs])
        scored = time.monotonic_ns()
        return _Inspected(
            list(maps), scores.tolist(), preprocessed - started, executed - preprocessed, scored - executed
        )

    def _tiled(self, frame: Frame) -> _Inspected:
        """All tiles of one frame, ``batch`` at a time, merged as they come: no stack of tile maps is kept."""
        assert self._spec.tiling is not None
        started = time.monotonic_ns()
        try:
            tiles, origins = cut_tiles(frame.image, self._spec.tiling)
        except DataError as error:
            raise DataError(f"frame {frame.index} ({frame.name}): {error}") from error
        merged = self._blank(frame.image.shape[0], frame.image.shape[1])
        scores: list[float] = []
        network_ns = scoring_ns = 0
        preprocess_ns = time.monotonic_ns() - started
        for first in range(0, len(tiles), self.batch):
            part = self._run(tiles[first : first + self.batch])
            merging = time.monotonic_ns()
            merge_maximum(merged, part.maps, origins[first : first + self.batch])
            scores.extend(part.scores)
            preprocess_ns += part.preprocess_ns
            network_ns += part.network_ns
            scoring_ns += part.scoring_ns + time.monotonic_ns() - merging
        reducing = time.monotonic_ns()
        # np.max keeps a NaN, which max() may lose.
        score = float(np.max(scores) if self._score.reduce == "output" else image_scores(self._score, merged[None])[0])
        return _Inspected([merged], [score], preprocess_ns, network_ns, scoring_ns + time.monotonic_ns() - reducing)

    def _blank(self, height: int, width: int) -> NDArray[np.float32]:
        """A merged map that is lower than any tile's, reused while frames keep their size."""
        if self._merged.shape != (height, width):
            self._merged = np.empty((height, width), np.float32)
        self._merged.fill(-np.inf)
        return self._merged


@dataclass
class Statistics:
    """Counts of a run, and the latencies of its last `WINDOW` frames.

    ``frames`` were judged, ``rejects`` of them anomalous; ``dropped`` were captured and replaced by newer ones;
    ``skipped`` pictures could not be read.
    """

    frames: int = 0
    rejects: int = 0
    dropped: int = 0
    skipped: int = 0
    _decided_at_ns: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _latency_ms: dict[Latency, deque[float]] = field(
        default_factory=lambda: {name: deque(maxlen=WINDOW) for name in LATENCIES}
    )

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.frames += 1
        self.rejects += verdict.anomalous
        self._decided_at_ns.append(verdict.decided_at_ns)
        for name, values in self._latency_ms.items():
            values.append(verdict.timings_ms[name])

    def latency_ms(self, name: Latency, percentile: float) -> float:
        """A percentile (0 to 100) of a latency over the last `WINDOW` frames; not a number before the first."""
        values = self._latency_ms[name]
        return float(np.percentile(values, percentile)) if values else math.nan

    @property
    def frames_per_second(self) -> float:
        """Verdicts per second over the last `WINDOW` frames; not a number before the second."""
        if len(self._decided_at_ns) < 2 or self._decided_at_ns[-1] == self._decided_at_ns[0]:
            return math.nan
        return (len(self._decided_at_ns) - 1) * 1e9 / (self._decided_at_ns[-1] - self._decided_at_ns[0])


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
    inspector: Inspects,
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
