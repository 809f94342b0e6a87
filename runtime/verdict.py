"""The verdict on one frame, and its JSON record."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.escaping import encodable
from adedge.runtime.events import Fault, text_from_time, utc_from_monotonic

RUN_ID = r"\d{8}T\d{6}Z-[0-9a-f]{4}"
"""What `new_run_id` returns, as a regular expression."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision about one frame.

    frame_id        number assigned by the source, from 0; a gap is a dropped or skipped frame
    name            origin of the frame: a file name, or the source and the frame's number
    captured_at_ns  time.monotonic_ns() when the camera delivered the frame, or after it was read from its file
    decided_at_ns   time.monotonic_ns() just before the verdict goes to the first sink
    score           raw image score; higher is more anomalous
    threshold       the frame is anomalous if score > threshold
    z               score in standard deviations above held-out good pictures, for display; None if not fitted
    camera          index, from 0, among several cameras that share an engine; None if there is only one
    fault           what is wrong with the camera's picture, if it was noticed; the frame may be anomalous for it alone
    map             float32 (H, W) anomaly map: network input size, or frame size if tiled. It is a view, valid only
                    while a sink takes the verdict: copy it to keep it
    margin          pixels at each border of the map that the score ignores
    timings_ms      durations: "preprocess", "network", "scoring" (of the whole batch), "frame" (preprocess to score)
                    and "verdict" (from capture until this verdict goes to the first sink)
    """

    frame_id: int
    name: str
    captured_at_ns: int
    decided_at_ns: int
    score: float
    threshold: float
    anomalous: bool
    z: float | None = None
    camera: int | None = None
    fault: Fault | None = None
    map: NDArray[np.float32] | None = None
    margin: int = 0
    timings_ms: Mapping[str, float]


def new_run_id() -> str:
    """An identifier that sorts by time and differs between runs: "20260131T081502Z-4f2a", in UTC."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def captured_at(verdict: Verdict) -> datetime:
    """When the frame was captured, in UTC.

    After a clock correction during a long run every further frame has the right time.
    """
    return utc_from_monotonic(verdict.captured_at_ns)


def record_from_verdict(verdict: Verdict) -> dict[str, Any]:
    """One JSON object per verdict; docs/run.md describes each key. The map is not part of it.

    Bytes of a file name that are not UTF-8 are escaped, so that the object can be encoded.
    """
    return {
        **({} if verdict.camera is None else {"camera": verdict.camera}),
        "frame": verdict.frame_id,
        "name": encodable(verdict.name),
        "captured_at": text_from_time(verdict.captured_at_ns),
        "score": verdict.score,
        "threshold": verdict.threshold,
        "anomalous": verdict.anomalous,
        **({} if verdict.fault is None else {"fault": verdict.fault}),
        "z": None if verdict.z is None else round(verdict.z, 4),
        "latency_ms": {name: round(value, 3) for name, value in verdict.timings_ms.items()},
    }
