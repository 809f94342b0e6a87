"""Latency at three named boundaries, of several engines in turns.

*network*  the engine alone, on preprocessed input
*frame*    preprocess to score
*verdict*  capture timestamp to the verdict handed to the first sink, through the real pipeline at a stated rate

Engines take turns and the order of the turns reverses from round to round, so that a machine that warms up or is
disturbed slows all of them alike. Warm-up is discarded, every sample is kept.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adedge.errors import UsageError
from adedge.runtime.pipeline import Inspector, Latency, run
from adedge.runtime.sinks import ListSink
from adedge.runtime.sources import ArraySource, Frame
from adedge.specs import Model

Progress = Callable[[int, int, str], None]
Picture = NDArray[np.uint8]
Samples = dict[Latency, list[float]]

WARM_UP = 5
"""Calls of every engine before its first sample."""
ROUNDS = 4
"""The verdict boundary is measured in so many stretches per engine, in turns."""
MAX_RATE = 30.0
"""Frames per second of an ordinary camera: the verdict boundary is measured at this rate, or at half of what the
slowest engine can do, so that no frame has to wait for the one before it."""


class Boundary(Model):
    """One latency of one engine, in milliseconds for ``batch`` frames at once (tiles of one frame count as one).

    ``p50_ms`` and so on are `percentile`. ``frames_per_second`` is batch / mean: what one caller gets that waits for
    each result; for the verdict boundary it is the rate that was offered. ``samples_ms`` are all samples, in order.
    """

    batch: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    frames_per_second: float
    samples_ms: tuple[float, ...]


def percentile(samples: Sequence[float], p: float) -> float:
    """trtexec's percentile: sorted[max(n - 1 - int((1 - p / 100) * n), 0)], always one of the samples.

    NVIDIA/TensorRT samples/common/sampleReporting.cpp. With fewer than 100 samples p99 is the maximum.
    """
    ordered = sorted(samples)
    # 1 - p / 100 as trtexec writes it loses a digit and may fall below the integer that it means.
    above = int(round((100 - p) * len(ordered) / 100, 9))
    return ordered[max(len(ordered) - 1 - above, 0)]


def boundary(samples: Sequence[float], batch: int, rate: float | None = None) -> Boundary:
    """Summarise samples in ms; ``rate`` is the frames per second that were offered, where that was the limit."""
    mean = sum(samples) / len(samples)
    p50, p95, p99 = (round(percentile(samples, p), 4) for p in (50, 95, 99))
    return Boundary(
        batch=batch,
        mean_ms=round(mean, 4),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        frames_per_second=round(rate or 1000 * batch / mean, 3),
        samples_ms=tuple(round(sample, 4) for sample in samples),
    )


def network_and_frame(
    inspectors: Mapping[str, Inspector],
    pictures: Sequence[Picture],
    *,
    frames: int,
    batch: int = 1,
    progress: Progress | None = None,
) -> dict[str, Samples]:
    """``frames`` samples in ms of the network and frame boundaries of each engine, taken in turns.

    ``pictures`` are uint8 (H, W, C), used in rotation. Raises `UsageError` for a batch that an engine does not take.
    """
    for name, inspector in inspectors.items():
        if not 1 <= batch <= inspector.batch:
            raise UsageError(f"--batch {batch}: the {name} engine takes 1 to {inspector.batch} frames at once")
    samples: dict[str, Samples] = {name: {"network": [], "frame": []} for name in inspectors}
    supply = itertools.cycle(pictures)
    for turn in range(WARM_UP + frames):
        given = [Frame(index, time.monotonic_ns(), next(supply), "picture") for index in range(batch)]
        for name in list(inspectors)[:: 1 if turn % 2 else -1]:
            network, frame = _call(inspectors[name], given)
            if turn >= WARM_UP:
                samples[name]["network"].append(network)
                samples[name]["frame"].append(frame)
        if progress is not None:
            progress(turn + 1, WARM_UP + frames, "network and frame")
    return samples


def _call(inspector: Inspector, given: Sequence[Frame]) -> tuple[float, float]:
    """(network, frame) in ms of one call; a tiled picture is a call of its own, so theirs add up."""
    verdicts = list(inspector.inspect(given))
    # One batch: all its verdicts carry the same times. Tiled pictures go one by one.
    counted = verdicts if inspector.tiled else verdicts[:1]
    return sum(v.timings_ms["network"] for v in counted), sum(v.timings_ms["frame"] for v in counted)


def verdict(
    inspectors: Mapping[str, Inspector],
    pictures: Sequence[Picture],
    *,
    frames: int,
    rate: float,
    batch: int = 1,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """``frames`` samples in ms of the verdict boundary of each engine, at ``rate`` frames per second.

    Each engine gets the frames in `ROUNDS` stretches, in turns; the first frame of a stretch, which starts threads, is
    warm-up.
    """
    samples: dict[str, list[float]] = {name: [] for name in inspectors}
    stretches = [len(part) for part in np.array_split(np.arange(frames), min(ROUNDS, frames))]
    done = 0
    for turn, stretch in enumerate(stretches):
        for name in list(inspectors)[:: 1 if turn % 2 else -1]:
            sink = ListSink()
            offered = _paced(pictures, stretch + batch, rate)
            run(ArraySource(lambda offered=offered: offered), inspectors[name], [sink], policy="every", batch=batch)  # type: ignore[misc]
            samples[name] += [v.timings_ms["verdict"] for v in sink.verdicts[batch:]]
            done += stretch
            if progress is not None:
                progress(done, frames * len(inspectors), f"verdict, {rate:.3g} frames per second")
    return samples


def offered_rate(slowest_frame_ms: float) -> float:
    """Frames per second at which the verdict boundary is measured unless the caller says otherwise."""
    return min(MAX_RATE, 500 / slowest_frame_ms)


def _paced(pictures: Sequence[Picture], count: int, rate: float) -> Iterator[Picture]:
    """``count`` pictures in rotation, one every 1 / rate seconds, as a camera gives them."""
    started = time.monotonic()
    for index, picture in enumerate(itertools.islice(itertools.cycle(pictures), count)):
        time.sleep(max(0.0, started + index / rate - time.monotonic()))
        yield picture
