"""Latency of contenders whose networks take a known time."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from adedge.benchmarks.latency import Contender, measure_latency, percentiles
from adedge.errors import EngineError, UsageError
from adedge.specs import InputSpec, ReadyMap, ScoreSpec, Tiling

SPEC = InputSpec(height=32, width=32, channels=1, color="gray")
SCORE = ScoreSpec(comparison=ReadyMap())


def slow(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    time.sleep(0.02)
    return [x[:, 0].copy()]


def test_percentiles_are_those_of_numpy_and_keep_the_samples() -> None:
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    found = percentiles(samples)
    assert (found.p50, found.mean) == (3.0, 3.0)
    assert found.p99 == pytest.approx(4.96)  # linear interpolation: 4 + 0.96 * (5 - 4)
    assert found.samples_ms == tuple(samples)


def test_latency_is_charged_to_the_boundary_where_it_arises(contender: Callable[..., Contender]) -> None:
    images = [np.zeros((32, 32, 1), np.uint8)]
    found = measure_latency([contender("a/fp32", work=slow), contender("b/fp32", None)], images, SPEC, SCORE, frames=20)
    assert found["a/fp32"].network.p50 >= 20
    assert found["a/fp32"].network.p50 <= found["a/fp32"].frame.p50
    assert found["a/fp32"].verdict.p50 >= 20  # measured apart from the other two
    assert found["b/fp32"].network.p50 < found["a/fp32"].network.p50
    assert len(found["a/fp32"].frame.samples_ms) == 20
    assert found["a/fp32"].frames_per_second <= 50


def test_a_batch_is_timed_as_a_whole_and_gives_more_frames_a_second(contender: Callable[..., Contender]) -> None:
    images = [np.zeros((32, 32, 1), np.uint8)]
    one = contender("a/fp32", work=slow)
    four = contender("a/fp32", work=slow, batch=4)
    found = measure_latency([four], images, SPEC, SCORE, frames=40, batch=4)["a/fp32"]
    assert found.batch == 4
    assert len(found.network.samples_ms) == 10
    assert found.frames_per_second > 1e3 / found.frame.mean
    with pytest.raises(EngineError, match="takes 1 frame"):
        measure_latency([one], images, SPEC, SCORE, batch=4)


def test_contenders_take_turns_after_a_warm_up_that_does_not_count(contender: Callable[..., Contender]) -> None:
    """Ten batches each, one contender after the other: a machine that slows down slows all of them down."""
    calls: list[str] = []

    def network(name: str) -> Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]:
        def run(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
            calls.append(name)
            return [x[:, 0].copy()]

        return run

    contenders = [contender(name, work=network(name)) for name in ("a", "b")]
    calls.clear()  # making a backend runs it once
    images = [np.zeros((32, 32, 1), np.uint8)]
    found = measure_latency(contenders, images, SPEC, SCORE, frames=25, warmup=3)
    expected = ["a"] * 3 + ["b"] * 3  # warm-up
    for turn in (10, 10, 5):
        expected += ["a"] * turn + ["b"] * turn
    assert calls[: len(expected)] == expected
    assert [len(found[name].frame.samples_ms) for name in ("a", "b")] == [25, 25]
    assert calls[len(expected) :] == ["a"] * 20 + ["b"] * 20  # paced, for the verdict's latency: 20 frames at least
    assert found["a"].paced_at == found["b"].paced_at


def test_frames_of_tiles_are_not_batched(contender: Callable[..., Contender]) -> None:
    tiled = InputSpec(height=32, width=32, channels=1, color="gray", resize="tile", tiling=Tiling(tile=32, stride=16))
    with pytest.raises(UsageError, match="leave --batch out for a detector that tiles"):
        measure_latency([contender("a", batch=4)], [np.zeros((64, 64, 1), np.uint8)], tiled, SCORE, batch=2)
