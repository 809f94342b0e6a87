"""A small read-only web server in threads of its own, for a program that has more important work.

It answers at most `CONNECTIONS` clients at once and each for at most `DEADLINE_S` seconds, and what fails in it is
reported, not raised. Requests that name a foreign host are refused, so that a web site cannot read the answers through
its visitor's browser (DNS rebinding).
"""

from __future__ import annotations

import io
import ipaddress
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

CONNECTIONS = 32  # clients that are answered at once; any more are turned away
DEADLINE_S = 5.0  # from accepting a connection until its answer is sent

_POLICY = (
    "default-src 'none'; img-src 'self' blob:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is found at a path; empty ``content`` is answered with 204."""

    content_type: str
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)  # further ones


Find = Callable[[str], Answer | None]
"""From a path without its query to the answer, None if nothing is there. Called by several threads at once."""

ReportFailure = Callable[[BaseException], None]
"""Takes an error that is neither raised nor a client's. Called by several threads at once."""


class WebServer:
    """Answers until it is closed; ``url`` is its address."""

    def __init__(self, address: tuple[str, int], find: Find, report_failure: ReportFailure) -> None:
        """``address``: host and port, 0 for any free port. Raises `OSError` if it is not available."""
        self._server = _Server(address, find, report_failure)
        self._report_failure = report_failure
        self.url = self._server.url
        self._open = True
        threading.Thread(target=self._serve, name="web server", daemon=True).start()

    def close(self) -> None:
        """Stop the server; a second call does nothing."""
        if self._open:
            self._open = False
            self._server.shutdown()
            self._server.server_close()

    def _serve(self) -> None:
        while self._open:
            try:
                self._server.serve_forever(poll_interval=0.1)
            except Exception as error:
                self._report_failure(error)
                time.sleep(0.1)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], find: Find, report_failure: ReportFailure) -> None:
        self.find, self.report_failure = find, report_failure
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._all_interfaces = address[0] in ("", "0.0.0.0")
        name = socket.gethostname().lower()
        self._names = {"localhost", address[0].lower(), name, name.partition(".")[0], f"{name.partition('.')[0]}.local"}
        super().__init__(address, _Handler)
        host = socket.gethostname() if self._all_interfaces else address[0]
        self.url = f"http://{host}:{self.server_address[1]}/"

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
        """Report an error, unless a client has disconnected or was too slow, which is none of the program's."""
        error = sys.exc_info()[1]
        if isinstance(error, ConnectionError | TimeoutError) or error is None:
            log.debug("the page's client %s disconnected", client_address, exc_info=True)
        else:
            self.report_failure(error)


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

    def setup(self) -> None:
        """Read and write through a `_Connection`."""
        self.connection = self.request
        stream = _Connection(self.request)
        self.rfile, self.wfile = io.BufferedReader(stream), io.BufferedWriter(stream)

    def do_GET(self) -> None:
        """Answer with what is found at the path, if the request is meant for this machine."""
        host = self.headers.get("Host")
        if host is not None and not self.server.answers_to(host, self.connection.getsockname()[0]):
            explain = f"This page has another name: open {self.server.url}, or the machine's address."
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, explain=explain)
            return
        try:
            answer = self.server.find(self.path.partition("?")[0])
        except Exception as error:
            self.server.report_failure(error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._send(answer)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the content."""
        self.do_GET()

    def _send(self, answer: Answer) -> None:
        self.send_response(HTTPStatus.OK if answer.content else HTTPStatus.NO_CONTENT)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Do not log requests."""
