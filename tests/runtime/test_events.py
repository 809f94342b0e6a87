"""The JSON record of an event, and its time."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone

import pytest

from adedge.runtime.events import FAULTS, Event, record_from_event, utc_from_monotonic
from adedge.runtime.sinks import ListSink


def event(camera: int | None = None) -> Event:
    return Event(
        kind="camera_fault",
        fault="silent",
        at_ns=time.monotonic_ns(),
        seconds=2.00049,
        name="line",
        camera=camera,
        message="line delivers no frame",
    )


def test_record() -> None:
    record = json.loads(json.dumps(record_from_event(event())))
    at = datetime.strptime(record.pop("at"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert abs(datetime.now(timezone.utc) - at) < timedelta(seconds=10)
    assert record == {
        "event": "camera_fault",
        "name": "line",
        "fault": "silent",
        "seconds": 2.0,
        "message": "line delivers no frame",
    }


def test_a_record_names_its_camera_among_several() -> None:
    assert record_from_event(event(camera=1))["camera"] == 1


def test_time_of_the_past() -> None:
    found = utc_from_monotonic(time.monotonic_ns() - 3_600_000_000_000)
    assert (datetime.now(timezone.utc) - found).total_seconds() == pytest.approx(3600, abs=5)


def test_the_faults_are_those_of_the_type() -> None:
    assert FAULTS == ("silent", "frozen", "constant", "resized")


def test_a_sink_need_not_take_events() -> None:
    sink = ListSink()
    sink.report(event())
    assert sink.verdicts == []
