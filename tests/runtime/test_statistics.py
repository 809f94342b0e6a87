"""Counts and latencies of verdicts whose times are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from adedge.runtime.statistics import LATENCIES, WINDOW, Statistics
from adedge.runtime.verdict import Verdict


def verdict(index: int, *, anomalous: bool = False, network_ms: float = 1.0) -> Verdict:
    """Decided 20 ms after the one before."""
    return Verdict(
        frame_id=index,
        name="",
        captured_at_ns=0,
        decided_at_ns=index * 20_000_000,
        score=0.0,
        threshold=0.5,
        anomalous=anomalous,
        timings_ms={"network": network_ms, "frame": 2.0, "verdict": 3.0},
    )


def test_before_the_first_verdict_nothing_is_known() -> None:
    statistics = Statistics()
    assert (statistics.frames, statistics.rejects) == (0, 0)
    assert all(math.isnan(statistics.latency_ms(name, 50)) for name in LATENCIES)
    assert math.isnan(statistics.frames_per_second)
    statistics.add(verdict(0))
    assert math.isnan(statistics.frames_per_second)  # a rate needs two


def test_rejects_rate_and_percentiles_are_those_of_the_verdicts() -> None:
    statistics = Statistics()
    for index in range(11):
        statistics.add(verdict(index, anomalous=index % 5 == 0, network_ms=float(index)))
    assert (statistics.frames, statistics.rejects) == (11, 3)
    assert statistics.frames_per_second == pytest.approx(50)
    assert [statistics.latency_ms("network", percentile) for percentile in (0, 50, 95, 100)] == [0, 5, 9.5, 10]


def test_only_the_last_frames_count_towards_latencies() -> None:
    statistics = Statistics()
    statistics.add(verdict(0, network_ms=1e6))
    for index in range(WINDOW):
        statistics.add(verdict(index + 1))
    assert statistics.frames == WINDOW + 1
    assert statistics.latency_ms("network", 100) == 1
    kept: Sequence[float] = statistics._latency_ms["network"]
    assert len(kept) == WINDOW
