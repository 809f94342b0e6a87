"""The counts, latencies and faults of cameras in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from adedge.runtime.events import FAULTS, Fault
from adedge.runtime.statistics import LATENCIES, Latency, Statistics
from adedge.runtime.verdict import Verdict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES = (0.5, 0.95, 0.99)

_FAMILIES = (
    ("frames_total", "counter", "Frames judged."),
    ("rejects_total", "counter", "Frames judged anomalous."),
    ("lost_frames_total", "counter", "Frames replaced by newer ones, or unreadable."),
    ("score", "gauge", "Raw score of the last frame."),
    ("threshold", "gauge", "Frames with a score above it are anomalous."),
    ("seconds_since_verdict", "gauge", "Age of the last verdict, or since the start; grows if the camera has stopped."),
)

_FAULT_FAMILIES = (
    ("camera_fault", "gauge", "1 while the camera has this fault."),
    ("camera_faults_total", "counter", "How often the fault has begun."),
)


@dataclass(frozen=True, kw_only=True)
class Camera:
    """What is measured of one camera.

    ``sums_ms`` are its latencies summed over all frames, ``last`` is its last verdict, ``seconds_since_verdict`` that
    verdict's age or, before the first, the time since the start. ``faults`` have not ended; ``fault_counts`` tells how
    often each has begun.
    """

    name: str
    statistics: Statistics
    sums_ms: Mapping[Latency, float]
    last: Verdict | None
    seconds_since_verdict: float
    faults: Collection[Fault]
    fault_counts: Mapping[Fault, int]


def metrics_text(cameras: Sequence[Camera], about: Mapping[str, str]) -> str:
    """All metrics; a camera's label is its index in ``cameras``, and ``about`` are the labels of `adedge_info`."""
    return "".join(f"{line}\n" for line in _lines(cameras, about))


def _lines(cameras: Sequence[Camera], about: Mapping[str, str]) -> Iterator[str]:
    info = ",".join(f"{name}={_quote(value)}" for name, value in about.items())
    yield from _header("adedge_info", "gauge", "The bundle and the engine in use.")
    yield f"adedge_info{{{info}}} 1"
    labels = [f"camera={_quote(str(index))},source={_quote(camera.name)}" for index, camera in enumerate(cameras)]
    values = [_values(camera) for camera in cameras]
    for family, kind, text in _FAMILIES:
        yield from _header(f"adedge_{family}", kind, text)
        for label, of_camera in zip(labels, values, strict=True):
            if family in of_camera:
                yield f"adedge_{family}{{{label}}} {of_camera[family]!r}"
    for family, kind, text in _FAULT_FAMILIES:
        yield from _header(f"adedge_{family}", kind, text)
        for label, camera in zip(labels, cameras, strict=True):
            for fault in FAULTS:
                value = camera.fault_counts[fault] if kind == "counter" else int(fault in camera.faults)
                yield f"adedge_{family}{{{label},fault={_quote(fault)}}} {value}"
    name = "adedge_latency_seconds"
    yield from _header(name, "summary", "Latency at a boundary; quantiles of the latest frames.")
    for label, camera in zip(labels, cameras, strict=True):
        for boundary in LATENCIES if camera.statistics.frames else ():
            inner = f"{label},boundary={_quote(boundary)}"
            for quantile in QUANTILES:
                seconds = camera.statistics.latency_ms(boundary, 100 * quantile) / 1e3
                yield f'{name}{{{inner},quantile="{quantile}"}} {seconds!r}'
            yield f"{name}_sum{{{inner}}} {camera.sums_ms[boundary] / 1e3!r}"
            yield f"{name}_count{{{inner}}} {camera.statistics.frames}"


def _header(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _values(camera: Camera) -> dict[str, float]:
    """A camera's values by family; some exist only after its first frame."""
    counts, last = camera.statistics, camera.last
    values: dict[str, float] = {
        "frames_total": counts.frames,
        "rejects_total": counts.rejects,
        "lost_frames_total": counts.dropped,
        "seconds_since_verdict": camera.seconds_since_verdict,
    }
    if last is not None:
        values |= {"score": last.score, "threshold": last.threshold}
    return values


def _quote(text: str) -> str:
    """The value of a label, quoted and escaped as the format requires."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
