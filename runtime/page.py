"""The live page: each camera's pictures and verdicts in a browser, and metrics for Prometheus at /metrics.

Python's own web server runs in threads next to the pipeline. The page is read-only. Pictures are drawn only of cameras
that were viewed within the last `VIEWED_S` seconds, and of rejects at a limited rate; any other frame costs only the
counting.
"""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2

from adedge.errors import OutputError, UsageError, reason
from adedge.escaping import encodable
from adedge.runtime.overlay import annotate, shrunk
from adedge.runtime.sinks import Sink
from adedge.runtime.sources import Frame
from adedge.runtime.statistics import LATENCIES, Statistics
from adedge.runtime.verdict import Verdict, record_from_verdict

log = logging.getLogger(__name__)

VIEWED_S = 2.0  # how long a camera counts as viewed after its picture was requested
DRAW_INTERVAL_S, REJECT_INTERVAL_S = 0.1, 0.2  # minimum time between pictures, and between rejects, of one camera
REJECTS, SCORES = 12, 240  # how many are kept: pictures of rejects, in total; scores, per camera
WIDTH = 960  # of a picture in pixels: the frame and the overlay next to it
QUANTILES = (0.5, 0.95, 0.99)

_PAGE = Path(__file__).with_name("page.html")
_POLICY = (
    "default-src 'none'; img-src 'self' blob:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def page_address(text: str) -> tuple[str, int]:
    """Host and port of "8080" (this machine only) or "0.0.0.0:8080". Raises `UsageError`."""
    host, colon, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or (colon and not host):
        raise UsageError(f"--page '{text}': give a port, such as 8080, or HOST:PORT, such as 0.0.0.0:8080")
    return host or "127.0.0.1", int(port)


@dataclass
class _View:
    """The state of one camera: ``last`` is a verdict without its map, ``picture`` a JPEG of frame ``pictured``."""

    name: str
    statistics: Statistics = field(default_factory=Statistics)
    sums_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LATENCIES, 0.0))
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=SCORES))
    last: Verdict | None = None
    picture: bytes = b""
    pictured: int | None = None
    viewed_at: float = -math.inf
    drawn_at: float = -math.inf
    reject_drawn_at: float = -math.inf

    @property
    def seconds_ago(self) -> float | None:
        """Age of the last verdict; it keeps growing if the camera has stopped."""
        return None if self.last is None else (time.monotonic_ns() - self.last.decided_at_ns) / 1e9

    def add(self, verdict: Verdict) -> None:
        self.statistics.add(verdict)
        # Frames that the source counted but nobody judged were dropped or unreadable.
        self.statistics.dropped = verdict.frame_id + 1 - self.statistics.frames
        for name in LATENCIES:
            self.sums_ms[name] += verdict.timings_ms[name]
        self.scores.append(verdict.score)
        self.last = replace(verdict, map=None)


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
        try:
            self._server = _Server(address, partial(_Handler, self))
        except OSError as error:
            raise OutputError(
                f"the live page cannot be served at {address[0]}:{address[1]} ({reason(error)})"
            ) from error
        host = socket.gethostname() if address[0] in ("", "0.0.0.0") else address[0]
        self.url = f"http://{host}:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, name="page", daemon=True).start()
        self._open = True

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Count a verdict; draw its frame if the camera is being viewed or the frame is a reject."""
        view = self._views[verdict.camera or 0]
        now = time.monotonic()
        with self._lock:
            view.add(verdict)
            viewed = now - view.viewed_at < VIEWED_S and now - view.drawn_at >= DRAW_INTERVAL_S
            reject = verdict.anomalous and now - view.reject_drawn_at >= REJECT_INTERVAL_S
        if not viewed and not reject:
            return
        picture = self._draw(verdict, frame)
        with self._lock:
            if reject:
                view.reject_drawn_at = now
                self._rejected += 1
                self._rejects.append((self._rejected, replace(verdict, map=None), picture))
            view.drawn_at, view.picture, view.pictured = now, picture, verdict.frame_id

    def close(self) -> None:
        """Stop the server; a second call does nothing."""
        if self._open:
            self._open = False
            self._server.shutdown()
            self._server.server_close()

    def _draw(self, verdict: Verdict, frame: Frame) -> bytes:
        picture = annotate(shrunk(frame.picture, WIDTH // 2), verdict, outline=self._outline, beside=True)
        return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()

    # Called by the server's threads

    def picture(self, camera: int) -> bytes:
        """A camera's latest picture as JPEG, b"" if there is none yet.

        Marks the camera as viewed, so that more are drawn. Raises `LookupError` if there is no such camera.
        """
        view = self._views[camera]
        with self._lock:
            view.viewed_at = time.monotonic()
            return view.picture

    def reject(self, number: int) -> bytes:
        """The picture of a reject as JPEG. Raises `LookupError` if it is no longer kept, or never existed."""
        with self._lock:
            return {index: picture for index, _, picture in self._rejects}[number]

    def state(self) -> dict[str, Any]:
        """Everything that the page shows, as JSON values."""
        with self._lock:
            return {
                "about": self._about,
                "cameras": [_camera_state(view) for view in self._views],
                "rejects": [
                    {"number": number, **record_from_verdict(verdict)} for number, verdict, _ in reversed(self._rejects)
                ],
            }

    def metrics(self) -> str:
        """The same counts and latencies in Prometheus' text format, version 0.0.4."""
        with self._lock:
            return "".join(f"{line}\n" for line in _metrics(self._views, self._about))


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
        "pictured": view.pictured,
        "seconds_ago": view.seconds_ago,
        "last": None if last is None else record_from_verdict(last),
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


_FAMILIES = (
    ("frames_total", "counter", "Frames judged."),
    ("rejects_total", "counter", "Frames judged anomalous."),
    ("lost_frames_total", "counter", "Frames replaced by newer ones, or unreadable."),
    ("score", "gauge", "Raw score of the last frame."),
    ("threshold", "gauge", "Frames with a score above it are anomalous."),
    ("seconds_since_verdict", "gauge", "Age of the last verdict; keeps growing if the camera has stopped."),
)


def _values(view: _View) -> dict[str, float]:
    """A camera's values by family; some exist only after its first frame."""
    counts, last = view.statistics, view.last
    values: dict[str, float] = {
        "frames_total": counts.frames,
        "rejects_total": counts.rejects,
        "lost_frames_total": counts.dropped,
    }
    if last is not None and view.seconds_ago is not None:
        values |= {"score": last.score, "threshold": last.threshold, "seconds_since_verdict": view.seconds_ago}
    return values


def _metrics(views: Sequence[_View], about: Mapping[str, str]) -> Iterator[str]:
    labels = ",".join(f"{name}={_quote(value)}" for name, value in about.items())
    yield from (
        "# HELP adedge_info The bundle and the engine in use.",
        "# TYPE adedge_info gauge",
        f"adedge_info{{{labels}}} 1",
    )
    cameras = [f"camera={_quote(str(index))},source={_quote(view.name)}" for index, view in enumerate(views)]
    values = [_values(view) for view in views]
    for family, kind, text in _FAMILIES:
        yield from (f"# HELP adedge_{family} {text}", f"# TYPE adedge_{family} {kind}")
        for label, of_camera in zip(cameras, values, strict=True):
            if family in of_camera:
                yield f"adedge_{family}{{{label}}} {of_camera[family]!r}"
    name = "adedge_latency_seconds"
    yield f"# HELP {name} Latency at a boundary; quantiles of the latest frames."
    yield f"# TYPE {name} summary"
    for label, view in zip(cameras, views, strict=True):
        for boundary in LATENCIES if view.statistics.frames else ():
            inner = f"{label},boundary={_quote(boundary)}"
            for quantile in QUANTILES:
                seconds = view.statistics.latency_ms(boundary, 100 * quantile) / 1e3
                yield f'{name}{{{inner},quantile="{quantile}"}} {seconds!r}'
            yield f"{name}_sum{{{inner}}} {view.sums_ms[boundary] / 1e3!r}"
            yield f"{name}_count{{{inner}}} {view.statistics.frames}"


def _quote(text: str) -> str:
    """The value of a label, quoted and escaped as the format requires."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log that a client has disconnected, at debug level: it is no error of the inspector."""
        log.debug("the page's client %s disconnected", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds, after which a client that sends nothing loses its thread

    def __init__(self, page: PageSink, *arguments: Any) -> None:
        self._page = page
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer with the page, its data, its pictures or the metrics."""
        path = self.path.partition("?")[0]
        try:
            match path.strip("/").removesuffix(".jpg").split("/"):
                case [""]:
                    self._answer("text/html; charset=utf-8", _PAGE.read_bytes())
                case ["state.json"]:
                    text = json.dumps(self._page.state(), ensure_ascii=False, allow_nan=False)
                    self._answer("application/json", text.encode())
                case ["metrics"]:
                    self._answer("text/plain; version=0.0.4; charset=utf-8", self._page.metrics().encode())
                case ["camera", number] if number.isdecimal():
                    self._answer("image/jpeg", self._page.picture(int(number)))
                case ["reject", number] if number.isdecimal():
                    self._answer("image/jpeg", self._page.reject(int(number)))
                case _:
                    raise LookupError(path)
        except LookupError:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, kind: str, content: bytes) -> None:
        self.send_response(HTTPStatus.OK if content else HTTPStatus.NO_CONTENT)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Do not log requests."""
