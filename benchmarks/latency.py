"""How long a verdict takes, at three named boundaries, warm-up left out and all contenders interleaved.

*network*: the engine alone. *frame*: preprocess to score. *verdict*: from the capture's timestamp to the verdict handed
to the first sink, through the real pipeline, with frames arriving at a stated rate, the same for all contenders, that
leaves the slowest of them 30% idle.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from adedge.errors import EngineError, UsageError
from adedge.progress import Progress
from adedge.runtime.backends import Backend
from adedge.runtime.inspection import make_inspector
from adedge.runtime.inspector import Inspector
from adedge.runtime.pipeline import Stream, run
from adedge.runtime.sinks import ListSink
from adedge.runtime.sources import ArraySource, Frame
from adedge.specs import InputSpec, Record, ScoreSpec

log = logging.getLogger(__name__)

ROUND = 10  # batches that one contender is given before it is the next one's turn
BUSY = 0.7  # share of the slowest contender's capacity that the paced source asks for


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An executor to measure: ``name`` is "<target>/<precision>", ``threshold`` None where none was fitted."""

    name: str
    backend: Backend
    threshold: float | None = None


class Percentiles(Record):
    """Latency in milliseconds; percentiles by linear interpolation between samples, which are kept in order."""

    p50: float
    p95: float
    p99: float
    mean: float
    samples_ms: tuple[float, ...]


class Latency(Record):
    """The latencies of one contender, its throughput, and the rate in frames per second behind "verdict".

    "network" and "frame" are those of a whole ``batch``; "verdict" is that of one frame.
    """

    network: Percentiles
    frame: Percentiles
    verdict: Percentiles
    frames_per_second: float
    paced_at: float
    batch: int = 1


def percentiles(samples_ms: Sequence[float]) -> Percentiles:
    """p50, p95, p99 and mean of latencies in milliseconds."""
    p50, p95, p99 = (float(value) for value in np.percentile(samples_ms, (50, 95, 99)))
    kept = tuple(round(float(value), 4) for value in samples_ms)
    return Percentiles(p50=p50, p95=p95, p99=p99, mean=float(np.mean(samples_ms)), samples_ms=kept)


def measure_latency(
    contenders: Sequence[Contender],
    images: Sequence[NDArray[np.uint8]],
    spec: InputSpec,
    score: ScoreSpec,
    *,
    frames: int = 200,
    batch: int = 1,
    warmup: int = 10,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Latency of each contender over ``frames`` frames, ``batch`` at a time, taken in turn from ``images`` (H, W, C).

    Frames are preprocessed and scored where `adedge run` does it: on the GPU for an engine there, where that can be.
    Then "network" is GPU time without transfers, and no map is downloaded.

    Raises `UsageError` for batches of frames that are tiled, `EngineError` where an engine takes fewer frames at once.
    """
    if batch > 1 and spec.tiling is not None:
        raise UsageError("the tiles of one frame already fill a batch: leave --batch out for a detector that tiles")
    for contender in contenders:
        if contender.backend.batch < batch:
            raise EngineError(
                f"the {contender.name} engine takes {contender.backend.batch} frame(s) at once, not {batch}: "
                "build it with '--batch MIN,OPT,MAX', or leave it out with --target or --precision"
            )
    inspectors = {
        c.name: make_inspector(
            c.backend,
            spec,
            score,
            threshold=np.inf if c.threshold is None else c.threshold,
            maps="never",
            notify=partial(log.warning, "%s: %s", c.name),
        )
        for c in contenders
    }
    timings: dict[str, list[tuple[float, float]]] = {name: [] for name in inspectors}
    for inspector in inspectors.values():
        _inspect(inspector, images, 0, warmup, batch)
    batches = -(-frames // batch)
    for start in range(0, batches, ROUND):
        for name, inspector in inspectors.items():
            timings[name] += _inspect(inspector, images, start, min(ROUND, batches - start), batch)
        if progress is not None:
            progress(min(start + ROUND, batches), batches, "network and frame")
    # One rate for all, so that what a frame waits in the pipeline can be compared.
    slowest_ms = max(float(np.median([frame for _, frame in timed])) / batch for timed in timings.values())
    rate = BUSY * 1e3 / slowest_ms
    found = {}
    for done, (name, inspector) in enumerate(inspectors.items()):
        network, frame = (list(column) for column in zip(*timings[name], strict=True))
        if progress is not None:
            progress(done, len(inspectors), f"verdict, {name} at {rate:.1f} frames/s")
        found[name] = Latency(
            network=percentiles(network),
            frame=percentiles(frame),
            verdict=percentiles(_paced(inspector, images, rate, max(20, frames // 4), batch)),
            frames_per_second=1e3 * batch * len(frame) / sum(frame),
            paced_at=rate,
            batch=batch,
        )
        inspector.close()
    return found


def _inspect(
    inspector: Inspector, images: Sequence[NDArray[np.uint8]], start: int, count: int, batch: int
) -> list[tuple[float, float]]:
    """(network, frame) milliseconds of ``count`` batches."""
    timings = []
    for first in range(start * batch, (start + count) * batch, batch):
        frames = [
            Frame(index, time.monotonic_ns(), images[index % len(images)], f"frame {index}")
            for index in range(first, first + batch)
        ]
        inspector.submit(frames)
        timings_ms = [verdict.timings_ms for verdict in inspector.collect()]
        timings.append((timings_ms[0]["network"], timings_ms[0]["frame"]))
    return timings


def _paced(
    inspector: Inspector, images: Sequence[NDArray[np.uint8]], rate: float, count: int, batch: int
) -> list[float]:
    """Verdict latencies in milliseconds of frames that arrive ``rate`` times a second."""

    def arriving() -> Iterator[NDArray[np.uint8]]:
        due = time.monotonic()
        for index in range(count):
            due += 1 / rate
            time.sleep(max(0.0, due - time.monotonic()))
            yield images[index % len(images)]

    sink = ListSink()
    run([Stream(ArraySource(arriving, name="paced"), [sink])], inspector, policy="every", batch=batch)
    return [verdict.timings_ms["verdict"] for verdict in sink.verdicts]
