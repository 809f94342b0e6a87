"""Latency at three named boundaries, with warm-up excluded and all contenders interleaved.

*network*: the engine alone. *frame*: preprocess to score. *verdict*: from the capture's timestamp to the verdict handed
to the first sink, through the real pipeline; frames arrive at the same rate for all contenders, one that leaves the
slowest 30% idle.
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

ROUND_BATCHES = 10  # that one contender runs before the next one takes its turn
LOAD = 0.7  # frame rate of the paced source, as a share of the slowest contender's capacity


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An executor to measure: ``name`` is "<target>/<precision>", ``threshold`` None if none was fitted."""

    name: str
    backend: Backend
    threshold: float | None = None


class Percentiles(Record):
    """Latency in milliseconds: percentiles, linearly interpolated between samples, and all samples in order."""

    p50: float
    p95: float
    p99: float
    mean: float
    samples_ms: tuple[float, ...]


class Latency(Record):
    """Latencies and throughput of one contender.

    "network" and "frame" are for a whole ``batch``, "verdict" for one frame. ``paced_at`` is the rate, in frames per
    second, at which frames arrived while "verdict" was measured.
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
    samples = tuple(round(float(value), 4) for value in samples_ms)
    return Percentiles(p50=p50, p95=p95, p99=p99, mean=float(np.mean(samples_ms)), samples_ms=samples)


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
    """Measure each contender over ``frames`` frames, ``batch`` at a time, that cycle through ``images`` (H, W, C).

    Preprocessing and scoring run where `adedge run` runs them: on the GPU for an engine there, if possible. "network"
    is then GPU time without transfers, and no map is downloaded.

    Raises `UsageError` if ``batch`` > 1 and the detector tiles frames, `EngineError` if an engine's batch is smaller.
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
    for start in range(0, batches, ROUND_BATCHES):
        for name, inspector in inspectors.items():
            timings[name] += _inspect(inspector, images, start, min(ROUND_BATCHES, batches - start), batch)
        if progress is not None:
            progress(min(start + ROUND_BATCHES, batches), batches, "network and frame")
    # At the same rate for all, waiting times in the pipeline are comparable.
    slowest_ms = max(float(np.median([frame for _, frame in pairs])) / batch for pairs in timings.values())
    rate = LOAD * 1e3 / slowest_ms
    latencies = {}
    for done, (name, inspector) in enumerate(inspectors.items()):
        network, frame = (list(column) for column in zip(*timings[name], strict=True))
        if progress is not None:
            progress(done, len(inspectors), f"verdict, {name} at {rate:.1f} frames/s")
        latencies[name] = Latency(
            network=percentiles(network),
            frame=percentiles(frame),
            verdict=percentiles(_measure_paced(inspector, images, rate, max(20, frames // 4), batch)),
            frames_per_second=1e3 * batch * len(frame) / sum(frame),
            paced_at=rate,
            batch=batch,
        )
        inspector.close()
    return latencies


def _inspect(
    inspector: Inspector, images: Sequence[NDArray[np.uint8]], start: int, count: int, batch: int
) -> list[tuple[float, float]]:
    """Run ``count`` batches from number ``start`` on; returns (network, frame) milliseconds of each."""
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


def _measure_paced(
    inspector: Inspector, images: Sequence[NDArray[np.uint8]], rate: float, count: int, batch: int
) -> list[float]:
    """Run ``count`` frames that arrive ``rate`` times a second; returns their verdict latencies in milliseconds."""

    def paced_images() -> Iterator[NDArray[np.uint8]]:
        due = time.monotonic()
        for index in range(count):
            due += 1 / rate
            time.sleep(max(0.0, due - time.monotonic()))
            yield images[index % len(images)]

    sink = ListSink()
    run([Stream(ArraySource(paced_images, name="paced"), [sink])], inspector, policy="every", batch=batch)
    return [verdict.timings_ms["verdict"] for verdict in sink.verdicts]
