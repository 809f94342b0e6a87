"""The live page: each camera's pictures and verdicts in a browser, and metrics for Prometheus at /metrics.

Python's own web server runs in threads next to the pipeline. The page is read-only. Pictures are drawn only of cameras
that were viewed within the last `VIEWED_S` seconds, and of rejects at a limited rate; any other frame costs only the
counting.

The inspection comes first: the page answers at most `CONNECTIONS` clients at once and each for at most `DEADLINE_S`
seconds, and what fails in it is logged once and does not reach the pipeline. Requests that name a foreign host are
refused, so that a web site cannot read the page through its visitor's browser (DNS rebinding).
"""

from __future__ import annotations

import io
import ipaddress
import json
import logging
import math
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2

from adedge.errors import OutputError, UsageError, reason
from adedge.escaping import encodable
from adedge.runtime.events import FAULTS, Event, Fault, record_from_event
from adedge.runtime.overlay import annotate, shrunk
from adedge.runtime.sinks import Sink
from adedge.runtime.sources import Frame
from adedge.runtime.statistics import LATENCIES, Statistics
from adedge.runtime.verdict import Verdict, record_from_verdict

log = logging.getLogger(__name__)

VIEWED_S = 2.0  # how long a camera counts as viewed after its picture was requested
DRAW_INTERVAL_S, REJECT_INTERVAL_S = 0.1, 0.2  # minimum time between pictures, and between rejects, of one camera
REJECTS, SCORES = 12, 240  # how many are kept: pictures of rejects, in total; scores, per camera
WIDTH, HEIGHT = 960, 4096  # largest size of a picture in pixels: the frame and the overlay next to it
CONNECTIONS = 32  # clients that are answered at once; any more are turned away
DEADLINE_S = 5.0  # from accepting a connection until its answer is sent
VERDICT_HEADER = "Adedge-Verdict"  # of a camera's picture: the verdict on the frame that it shows, as JSON
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
    """The state of one camera: ``last`` is a verdict without its map, ``picture`` a JPEG of the frame of ``pictured``.

    The picture is b"" if it could not be drawn.
    """

    name: str
    statistics: Statistics = field(default_factory=Statistics)
    sums_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LATENCIES, 0.0))
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
            self._server = _Server(address, self)
        except OSError as error:
            raise OutputError(
                f"the live page cannot be served at {address[0]}:{address[1]} ({reason(error)})"
            ) from error
        host = socket.gethostname() if address[0] in ("", "0.0.0.0") else address[0]
        self.url = f"http://{host}:{self._server.server_address[1]}/"
        self._open = True
        threading.Thread(target=self._serve, name="page", daemon=True).start()

    def take(self, verdict: Verdict, frame: Frame) -> None:
        """Count a verdict; draw its frame if the camera is being viewed or the frame is a reject.

        Raises nothing: a page that fails does not end the inspection.
        """
        try:
            self._take(verdict, frame)
        except Exception as error:
            self.log_failure(error)

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
        if self._open:
            self._open = False
            self._server.shutdown()
            self._server.server_close()

    def log_failure(self, error: BaseException) -> None:
        """Log a failure of the page, only the first of its kind: a frame's may repeat with each one."""
        if type(error) not in self._reported:
            self._reported.add(type(error))
            reason = f"{type(error).__name__}: {error}".strip()
            log.warning("the live page is incomplete, the inspection goes on (%s)", reason)
            log.debug("the live page failed", exc_info=error)

    def _serve(self) -> None:
        while self._open:
            try:
                self._server.serve_forever(poll_interval=0.1)
            except Exception as error:
                self.log_failure(error)
                time.sleep(0.1)

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
            self.log_failure(error)
            return b""

    # Called by the server's threads

    def picture(self, camera: int) -> tuple[bytes, dict[str, Any]] | None:
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

    def reject(self, number: int) -> bytes | None:
        """The picture of a reject as JPEG, b"" if it could not be drawn. None if it is not kept."""
        with self._lock:
            return next((picture for index, _, picture in self._rejects if index == number), None)

    def state(self) -> dict[str, Any]:
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

    def metrics(self) -> str:
        """The same counts and latencies in Prometheus' text format, version 0.0.4."""
        with self._lock:
            return "".join(f"{line}\n" for line in _metrics(self._views, self._about))


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


def _values(view: _View) -> dict[str, float]:
    """A camera's values by family; some exist only after its first frame."""
    counts, last = view.statistics, view.last
    values: dict[str, float] = {
        "frames_total": counts.frames,
        "rejects_total": counts.rejects,
        "lost_frames_total": counts.dropped,
        "seconds_since_verdict": view.seconds_ago,
    }
    if last is not None:
        values |= {"score": last.score, "threshold": last.threshold}
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
    for family, kind, text in _FAULT_FAMILIES:
        yield from (f"# HELP adedge_{family} {text}", f"# TYPE adedge_{family} {kind}")
        for label, view in zip(cameras, views, strict=True):
            for fault in FAULTS:
                value = view.fault_counts[fault] if kind == "counter" else int(fault in view.faults)
                yield f"adedge_{family}{{{label},fault={_quote(fault)}}} {value}"
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
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], page: PageSink) -> None:
        self._page = page
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._all_interfaces = address[0] in ("", "0.0.0.0")
        name = socket.gethostname().lower()
        self._names = {"localhost", address[0].lower(), name, name.partition(".")[0], f"{name.partition('.')[0]}.local"}
        super().__init__(address, partial(_Handler, page))

    def answers_to(self, host: str, address: str) -> bool:
        """Whether a request's Host header names this machine; ``address`` is the one that the client connected to."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
            if name in self._names or name == address:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._all_interfaces  # an address, unlike a name, cannot be made to point here

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; wait a little if that fails, for example for want of descriptors."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.05)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or turn the client away if too many are being answered."""
        if not self._free.acquire(blocking=False):
            with suppress(OSError):
                request.setblocking(False)
                request.send(b"HTTP/1.0 503 Too many clients\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then let another client in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless a client has disconnected or was too slow, which is none of the inspector's."""
        error = sys.exc_info()[1]
        if isinstance(error, ConnectionError | TimeoutError) or error is None:
            log.debug("the page's client %s disconnected", client_address, exc_info=True)
        else:
            self._page.log_failure(error)


class _Connection(io.RawIOBase):
    """A connection as a stream. All reading and writing together ends by the deadline, with `TimeoutError`.

    A socket's own timeout starts anew with every byte.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._ends_at = time.monotonic() + DEADLINE_S

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._limit()
        return self._connection.recv_into(buffer)

    def write(self, data: Any) -> int:
        self._limit()
        return self._connection.send(data)

    def _limit(self) -> None:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def __init__(self, page: PageSink, *arguments: Any) -> None:
        self._page = page
        super().__init__(*arguments)

    def setup(self) -> None:
        """Read and write through a `_Connection`."""
        self.connection = self.request
        stream = _Connection(self.request)
        self.rfile, self.wfile = io.BufferedReader(stream), io.BufferedWriter(stream)

    def do_GET(self) -> None:
        """Answer with the page, its data, its pictures or the metrics."""
        host = self.headers.get("Host")
        if host is not None and not self.server.answers_to(host, self.connection.getsockname()[0]):
            explain = f"This page has another name: open {self._page.url}, or the machine's address."
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, explain=explain)
            return
        try:
            found = self._find(self.path.partition("?")[0])
        except Exception as error:
            self._page.log_failure(error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._answer(*found)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the content."""
        self.do_GET()

    def _find(self, path: str) -> tuple[str, bytes, Mapping[str, str]] | None:
        """The content type, content and further headers at a path."""
        match path.strip("/").removesuffix(".jpg").split("/"):
            case [""]:
                return "text/html; charset=utf-8", _PAGE.read_bytes(), {}
            case ["state.json"]:
                return "application/json", _json(self._page.state()).encode(), {}
            case ["metrics"]:
                text = self._page.metrics().encode(errors="backslashreplace")
                return "text/plain; version=0.0.4; charset=utf-8", text, {}
            case ["camera", number] if _is_index(number):
                if (found := self._page.picture(int(number))) is not None:
                    picture, record = found
                    return "image/jpeg", picture, {VERDICT_HEADER: _json(record)}
            case ["reject", number] if _is_index(number):
                if (reject := self._page.reject(int(number))) is not None:
                    return "image/jpeg", reject, {}
        return None

    def _answer(self, kind: str, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(HTTPStatus.OK if content else HTTPStatus.NO_CONTENT)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Do not log requests."""


def _json(value: Any) -> str:
    """JSON in ASCII, which any name of a file survives, in a header too."""
    return json.dumps(value, allow_nan=False)


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
