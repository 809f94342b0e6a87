"""Metrics as text, read back by the grammar of Prometheus' format."""

from __future__ import annotations

import re
from typing import Any

import pytest

from adedge.runtime.events import FAULTS
from adedge.runtime.prometheus import Camera, metrics_text
from adedge.runtime.statistics import LATENCIES, Statistics
from adedge.runtime.verdict import Verdict


def camera(name: str = "line", scores: tuple[float, ...] = (), **changes: Any) -> Camera:
    """A camera that judged frames of these scores, 4 ms after their capture, and lost two."""
    statistics, last = Statistics(), None
    for index, score in enumerate(scores):
        last = Verdict(
            frame_id=index,
            name=f"{name}#{index}",
            captured_at_ns=0,
            decided_at_ns=0,
            score=score,
            threshold=0.5,
            anomalous=score > 0.5,
            timings_ms={"network": 2.0, "frame": 3.0, "verdict": 4.0},
        )
        statistics.add(last)
    statistics.dropped = 2
    values: dict[str, Any] = {
        "name": name,
        "statistics": statistics,
        "sums_ms": {"network": 2.0 * len(scores), "frame": 3.0 * len(scores), "verdict": 4.0 * len(scores)},
        "last": last,
        "seconds_since_verdict": 7.0,
        "faults": (),
        "fault_counts": dict.fromkeys(FAULTS, 0),
    }
    return Camera(**{**values, **changes})


def parsed(text: str) -> dict[str, float]:
    """Values by name and labels. Each line must follow the format, and each family have a type before its values."""
    assert text.endswith("\n")
    values: dict[str, float] = {}
    typed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("#"):
            if (found := re.fullmatch(r"# TYPE (\w+) (counter|gauge|summary)", line)) is not None:
                typed.add(found[1])
            continue
        found = re.fullmatch(r"""(\w+)(\{(?:\w+="(?:[^"\\\n]|\\[\\"n])*",?)*\})? (\S+)""", line)
        assert found is not None, line
        values[found[1] + (found[2] or "")] = float(found[3])
        assert re.sub(r"_(sum|count)$", "", found[1]) in typed, line
    return values


def test_metrics_follow_the_text_format() -> None:
    values = parsed(metrics_text([camera('a "line" \\ more', (0.25, 0.75))], {"bundle": "b.adedge"}))
    label = r'{camera="0",source="a \"line\" \\ more"}'
    assert values['adedge_info{bundle="b.adedge"}'] == 1
    assert values[f"adedge_frames_total{label}"] == 2
    assert values[f"adedge_rejects_total{label}"] == 1
    assert values[f"adedge_lost_frames_total{label}"] == 2
    assert values[f"adedge_score{label}"] == 0.75
    assert values[f"adedge_threshold{label}"] == 0.5
    assert values[f"adedge_seconds_since_verdict{label}"] == 7
    inner = label.replace("}", ',boundary="verdict"}')
    assert values[f"adedge_latency_seconds_count{inner}"] == 2
    assert values[f"adedge_latency_seconds_sum{inner}"] == pytest.approx(0.008)
    quantile = inner.replace("}", ',quantile="0.5"}')
    assert values[f"adedge_latency_seconds{quantile}"] == pytest.approx(0.004)


def test_before_its_first_frame_a_camera_has_counts_but_no_score_and_no_latency() -> None:
    values = parsed(metrics_text([camera()], {}))
    assert values['adedge_frames_total{camera="0",source="line"}'] == 0
    assert not any(name.startswith(("adedge_score", "adedge_threshold", "adedge_latency")) for name in values)


def test_cameras_are_told_apart_by_their_index() -> None:
    values = parsed(metrics_text([camera("left", (0.1,)), camera("left", (0.1, 0.2, 0.9))], {}))
    assert values['adedge_frames_total{camera="0",source="left"}'] == 1
    assert values['adedge_frames_total{camera="1",source="left"}'] == 3
    for boundary in LATENCIES:
        assert values[f'adedge_latency_seconds_count{{camera="1",source="left",boundary="{boundary}"}}'] == 3


def test_a_fault_is_1_while_it_lasts_and_stays_counted() -> None:
    counts = {**dict.fromkeys(FAULTS, 0), "silent": 3, "frozen": 1}
    values = parsed(metrics_text([camera(faults=("silent",), fault_counts=counts)], {}))
    label = 'camera="0",source="line",fault='
    assert [values[f'adedge_camera_fault{{{label}"{fault}"}}'] for fault in ("silent", "frozen", "resized")] == [
        1,
        0,
        0,
    ]
    total = [values[f'adedge_camera_faults_total{{{label}"{fault}"}}'] for fault in ("silent", "frozen", "resized")]
    assert total == [3, 1, 0]


def test_a_line_break_in_a_name_stays_inside_its_line() -> None:
    values = parsed(metrics_text([camera("two\nlines")], {"bundle": "b\n"}))
    assert r'adedge_frames_total{camera="0",source="two\nlines"}' in values
    assert r'adedge_info{bundle="b\n"}' in values
