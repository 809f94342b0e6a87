"""A verdict as a line of JSON, and the time of day it carries."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone

import numpy as np

from adedge.runtime.verdict import Verdict, captured_at, record_from_verdict


def verdict(**changes: object) -> Verdict:
    fields: dict[str, object] = {
        "frame_id": 3,
        "name": "part.png",
        "captured_at_ns": time.monotonic_ns() - 2_000_000_000,
        "decided_at_ns": time.monotonic_ns(),
        "score": 0.25,
        "threshold": 0.5,
        "anomalous": False,
        "map": np.zeros((2, 2), np.float32),
        "timings_ms": {"network": 1.23456},
    }
    return Verdict(**{**fields, **changes})  # type: ignore[arg-type]  # fields of any type


def test_the_time_of_capture_is_now_less_the_frame_s_age() -> None:
    captured = captured_at(verdict())
    age = datetime.now(timezone.utc) - captured
    assert timedelta(seconds=1.9) < age < timedelta(seconds=12)


def test_a_record_is_json_without_the_map() -> None:
    record = json.loads(json.dumps(record_from_verdict(verdict())))
    assert record.pop("captured_at").endswith("Z")
    assert record == {
        "frame": 3,
        "name": "part.png",
        "score": 0.25,
        "threshold": 0.5,
        "anomalous": False,
        "z": None,
        "latency_ms": {"network": 1.235},
    }


def test_of_several_cameras_the_record_names_its_own() -> None:
    record = record_from_verdict(verdict(camera=0, z=1.23456789))
    assert (record["camera"], record["z"]) == (0, 1.2346)
    assert "camera" not in record_from_verdict(verdict())


def test_a_record_names_the_fault_of_its_picture() -> None:
    assert record_from_verdict(verdict(fault="frozen"))["fault"] == "frozen"
    assert "fault" not in record_from_verdict(verdict())
