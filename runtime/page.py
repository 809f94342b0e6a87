"""The live page: each camera's pictures and verdicts in a browser, and metrics for Prometheus at /metrics.

A web server (`adedge.runtime.web_server`) runs in threads next to the pipeline. The page is read-only. Pictures are
drawn only of cameras that were viewed within the last `VIEWED_S` seconds, and of rejects at a limited rate; any other
frame costs only the counting.

The inspection comes first: what fails in the page is logged once and does not reach the pipeline.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2

from adedge.errors import OutputError, UsageError, reason
from adedge.escaping import encodable
from adedge.runtime import prometheus
from adedge.runtime.events import FAULTS, Event, Fault, record_from_event
from adedge.runtime.overlay import annotate, shrunk
from adedge.runtime.sinks import Sink
from adedge.runtime.sources import Frame
from adedge.runtime.statistics import LATENCIES, Latency, Statistics
from adedge.runtime.verdict import Verdict, record_from_verdict
from adedge.runtime.web_server import Answer, WebServer

log = logging.getLogger(__name__)

VIEWED_S = 2.0  # how long a camera counts as viewed after its picture was requested
DRAW_INTERVAL_S, REJECT_INTERVAL_S = 0.1, 0.2  # minimum time between pictures, and between rejects, of one camera
REJECTS, SCORES = 12, 240  # how many are kept: pictures of rejects, in total; scores, per camera
WIDTH, HEIGHT = 960, 4096  # largest size of a picture in pixels: the frame and the overlay next to it
VERDICT_HEADER = "Adedge-Verdict"  # of a camera's picture: the verdict on the frame that it shows, as JSON

_PAGE = Path(__file__).with_name("page.html")


def page_address(text: str) -> tuple[str, int]:
    """Host and port of "8080" (this machine only) or "0.0.0.0:8080". Raises `UsageError`."""
    host, colon, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or (colon and not host):
        raise UsageError(f"--page '{text}': give a port, such as 8080, or HOST:PORT, such as 0.0.0.0:8080")
    return host or "127.0.0.1", int(port)


@dataclass
class _View:
    """The state of one camera: ``last`` is a verdict without its map, ``picture`` a JPEG of the frame of ``pictured``.

    The picture is b"" if it could not be drawn.
    """

    name: str
    statistics: Statistics = field(default_factory=Statistics)
    sums_ms: dict[Latency, float] = field(default_factory=lambda: dict.fromkeys(LATENCIES, 0.0))
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=SCORES))
    last: Verdict | None = None
    picture: bytes = b""
    pictured: Verdict | None = None
    viewed_at: float = -math.inf
    drawn_at: float = -math.inf
    reject_drawn_at: float = -math.inf
    started_at_ns: int = field(default_factory=time.monotonic_ns)
    faults: dict[Fault, Event] = field(default_factory=dict)  # that have not ended
    fault_counts: dict[Fault, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))

    @property
    def seconds_ago(self) -> float:
        """Age of the last verdict, or of the page before the first; it keeps growing if the camera has stopped."""
        return _seconds_since(self.last.decided_at_ns if self.last else self.started_at_ns)

    def add(self, verdict: Verdict) -> None:
        self.statistics.add(verdict)
        # Frames that the source counted but nobody judged were dropped or unreadable.
        self.statistics.dropped = verdict.frame_id + 1 - self.statistics.frames
        for name in LATENCIES:
            self.sums_ms[name] += verdict.timings_ms[name]
        self.scores.append(verdict.score)
        self.last = replace(verdict, map=None)


def _seconds_since(monotonic_ns: int) -> float:
    return (time.monotonic_ns() - monotonic_ns) / 1e9


class PageSink(Sink):
    """Serves the page until it is closed; with several cameras, a verdict's ``camera`` is its index in ``names``.

    ``url`` is the page's address. ``names`` are the cameras', ``about`` is shown at the top of the page. ``outline`` is
    that of `adedge.runtime.overlay.overlay`.
    """

    def __init__(
        self, address: tuple[str, int], names: Sequence[str], about: Mapping[str, str], *, outline: bool = True
    ) -> None:
        """``address``: host and port, 0 for any free port. Raises `OutputError` if it is not available."""
        self._about = {key: encodable(value) for key, value in about.items()}
        self._outline = outline
        self._views = [_View(encodable(name)) for name in names]
        self._rejects: deque[tuple[int, Verdict, bytes]] = deque(maxlen=REJECTS)
        self._rejected = 0
        self._lock = threading.Lock()
        self._reported: set[type[BaseException]] = set()
        self._ended = False
        try:
            self._server = WebServer(address, self._find, self._log_failure)
        except OSError as error:
            raise OutputError(
                f"the live page cannot be served at {address[0]}:{address[1]} ({reason(error)}): give --page another "
                "port, or an address of this machine"
            ) from error
        self.url = self._server.url

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Count a verdict; draw its frame if the camera is being viewed or the frame is a reject.

        Raises nothing: a page that fails does not end the inspection.
        """
        try:
            self._take(verdict, frame)
        except Exception as error:
            self._log_failure(error)

    def end(self) -> None:
        """Say on the page that the inspection has ended."""
        self._ended = True

    def staying(self) -> Sink:
        """A sink for the pipeline whose ``close`` is `end`: the page stays until its own `close`."""
        return _StayingSink(self)

    def report(self, event: Event) -> None:
        """Show a camera's fault until it ends, and count it."""
        view = self._views[event.camera or 0]
        with self._lock:
            view.faults.pop(event.fault, None)
            if event.kind == "camera_fault":
                view.faults[event.fault] = event
                view.fault_counts[event.fault] += 1

    def close(self) -> None:
        """Stop the server; a second call does nothing."""
        self._server.close()

    def _log_failure(self, error: BaseException) -> None:
        """Log a failure of the page, only the first of its kind: a frame's may repeat with each one."""
        if type(error) not in self._reported:
            self._reported.add(type(error))
            reason = f"{type(error).__name__}: {error}".strip()
            log.warning("the live page is incomplete, the inspection goes on (%s)", reason)
            log.debug("the live page failed", exc_info=error)

    def _take(self, verdict: Verdict, frame: Frame) -> None:
        view = self._views[verdict.camera or 0]
        now = time.monotonic()
        with self._lock:
            view.add(verdict)
            viewed = now - view.viewed_at < VIEWED_S and now - view.drawn_at >= DRAW_INTERVAL_S
            reject = verdict.anomalous and now - view.reject_drawn_at >= REJECT_INTERVAL_S
        if not viewed and not reject:
            return
        picture, shown = self._draw(verdict, frame), replace(verdict, map=None)
        with self._lock:
            if reject:
                view.reject_drawn_at = now
                self._rejected += 1
                self._rejects.append((self._rejected, shown, picture))
            view.drawn_at, view.picture, view.pictured = now, picture, shown

    def _draw(self, verdict: Verdict, frame: Frame) -> bytes:
        """The frame and its overlay as JPEG, b"" if that fails."""
        try:
            small = shrunk(frame.picture, WIDTH // 2, HEIGHT)
            picture = annotate(small, verdict, outline=self._outline, beside=True)
            encoded, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
            if not encoded:
                raise OutputError(f"frame {verdict.frame_id} ({verdict.name}) cannot be encoded as JPEG")
            return data.tobytes()
        except Exception as error:
            self._log_failure(error)
            return b""

    # Called by the server's threads

    def _find(self, path: str) -> Answer | None:
        match path.strip("/").removesuffix(".jpg").split("/"):
            case [""]:
                return Answer(content_type="text/html; charset=utf-8", content=_PAGE.read_bytes())
            case ["state.json"]:
                return Answer(content_type="application/json", content=_json(self._state()).encode())
            case ["metrics"]:
                text = self._metrics().encode(errors="backslashreplace")
                return Answer(content_type=prometheus.CONTENT_TYPE, content=text)
            case ["camera", number] if _is_index(number):
                if (found := self._picture(int(number))) is not None:
                    picture, record = found
                    return Answer(content_type="image/jpeg", content=picture, headers={VERDICT_HEADER: _json(record)})
            case ["reject", number] if _is_index(number):
                if (reject := self._reject(int(number))) is not None:
                    return Answer(content_type="image/jpeg", content=reject)
        return None

    def _picture(self, camera: int) -> tuple[bytes, dict[str, Any]] | None:
        """A camera's latest picture as JPEG, b"" if there is none, and the record of that frame's verdict.

        Marks the camera as viewed, so that more are drawn. None if there is no such camera.
        """
        if camera >= len(self._views):
            return None
        view = self._views[camera]
        with self._lock:
            view.viewed_at = time.monotonic()
            picture, pictured = view.picture, view.pictured
        return picture, {} if pictured is None else _aged_record(pictured)

    def _reject(self, number: int) -> bytes | None:
        """The picture of a reject as JPEG, b"" if it could not be drawn. None if it is not kept."""
        with self._lock:
            return next((picture for index, _, picture in self._rejects if index == number), None)

    def _state(self) -> dict[str, Any]:
        """Everything that the page shows, as JSON values."""
        with self._lock:
            return {
                "about": self._about,
                "ended": self._ended,
                "cameras": [_camera_state(view) for view in self._views],
                "rejects": [
                    {"number": number, **record_from_verdict(verdict)} for number, verdict, _ in reversed(self._rejects)
                ],
            }

    def _metrics(self) -> str:
        """The same counts and latencies for Prometheus."""
        with self._lock:
            return prometheus.metrics_text([_camera_metrics(view) for view in self._views], self._about)


@dataclass(frozen=True)
class _StayingSink(Sink):
    page: PageSink

    def take(self, verdict: Verdict, frame: Frame) -> None:
        self.page.take(verdict, frame)

    def report(self, event: Event) -> None:
        self.page.report(event)

    def close(self) -> None:
        self.page.end()


def _aged_record(verdict: Verdict) -> dict[str, Any]:
    return {**record_from_verdict(verdict), "seconds_ago": _seconds_since(verdict.decided_at_ns)}


def _camera_state(view: _View) -> dict[str, Any]:
    counts, last = view.statistics, view.last
    return {
        "name": view.name,
        "frames": counts.frames,
        "rejects": counts.rejects,
        "lost": counts.dropped,
        "frames_per_second": _or_none(counts.frames_per_second),
        "latency_ms": {name: _or_none(counts.latency_ms(name, 50)) for name in LATENCIES},
        "scores": list(view.scores),
        "pictured": None if view.pictured is None else view.pictured.frame_id,
        "seconds_ago": view.seconds_ago,
        "faults": [record_from_event(event) for event in view.faults.values()],
        "last": None if last is None else _aged_record(last),
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _camera_metrics(view: _View) -> prometheus.Camera:
    return prometheus.Camera(
        name=view.name,
        statistics=view.statistics,
        sums_ms=view.sums_ms,
        last=view.last,
        seconds_since_verdict=view.seconds_ago,
        faults=view.faults.keys(),
        fault_counts=view.fault_counts,
    )


def _json(value: Any) -> str:
    """JSON in ASCII, which any name of a file survives, in a header too."""
    return json.dumps(value, allow_nan=False)


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
