"""What happens to a camera besides its frames: an event, and its JSON record among the verdicts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, get_args

from adedge.escaping import encodable

Fault = Literal["silent", "frozen", "constant", "resized"]
"""silent: no frame for too long. frozen: the same picture again and again, which the noise of a camera rules out.
constant: a picture without content, as behind a lens cap. resized: frames of another size than the first."""

FAULTS: tuple[Fault, ...] = get_args(Fault)


@dataclass(frozen=True, kw_only=True)
class Event:
    """A fault of a camera has begun ("camera_fault") or ended ("camera_recovered").

    kind     which of both
    fault    what is or was wrong
    at_ns    time.monotonic_ns() at which it was noticed
    seconds  how long the fault has lasted so far, or lasted in the end
    name     the source's name
    camera   index, from 0, among several cameras; None if there is only one
    message  the same for people
    """

    kind: Literal["camera_fault", "camera_recovered"]
    fault: Fault
    at_ns: int
    seconds: float
    name: str
    camera: int | None = None
    message: str


def record_from_event(event: Event) -> dict[str, Any]:
    """One JSON object per event; docs/run.md describes each key. Only events have the key "event"."""
    return {
        "event": event.kind,
        **({} if event.camera is None else {"camera": event.camera}),
        "name": encodable(event.name),
        "fault": event.fault,
        "at": text_from_time(event.at_ns),
        "seconds": round(event.seconds, 3),
        "message": encodable(event.message),
    }


def utc_from_monotonic(at_ns: int) -> datetime:
    """The wall-clock time of a ``time.monotonic_ns()``.

    Computed as the current wall-clock time minus the age, so that after a clock correction during a long run every
    further time is right.
    """
    return datetime.now(timezone.utc) - timedelta(microseconds=(time.monotonic_ns() - at_ns) / 1000)


def text_from_time(at_ns: int) -> str:
    """A ``time.monotonic_ns()`` as in JSON records: "2026-01-31T08:15:02.417Z"."""
    return utc_from_monotonic(at_ns).isoformat(timespec="milliseconds").replace("+00:00", "Z")
