"""The web server: which requests it answers, and that neither slow clients nor errors keep it from answering."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adedge.runtime import web_server
from adedge.runtime.web_server import CONNECTIONS, Answer, WebServer

ANSWERS = {
    "/": Answer(content_type="text/html; charset=utf-8", content=b"<p>page</p>"),
    "/data.json": Answer(content_type="application/json", content=b"{}", headers={"Data-Age": "3 s"}),
    "/empty.jpg": Answer(content_type="image/jpeg", content=b""),
}


def find(path: str) -> Answer | None:
    if path == "/broken":
        raise ZeroDivisionError("a bug")
    return ANSWERS.get(path)


Serve = Callable[..., WebServer]


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def serve(failures: list[BaseException]) -> Iterator[Serve]:
    made: list[WebServer] = []

    def start(host: str = "127.0.0.1", find: Callable[[str], Answer | None] = find) -> WebServer:
        made.append(WebServer((host, 0), find, failures.append))
        return made[-1]

    yield start
    for server in made:
        server.close()


def port_of(server: WebServer) -> int:
    return int(server.url.rsplit(":", 1)[1].strip("/"))


def asked(
    server: WebServer, host: str | None = "localhost", path: str = "/", method: str = "GET"
) -> tuple[int, bytes, Any]:
    """The answer to a request for a host, sent to the server by whatever name."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True)
        if host is not None:
            connection.putheader("Host", host.replace("PORT", str(port_of(server))))
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_what_is_found_is_answered_with_its_type_and_headers(serve: Serve) -> None:
    status, content, headers = asked(serve(), path="/data.json?t=1")
    assert (status, content) == (200, b"{}")
    assert (headers["Content-Type"], headers["Content-Length"], headers["Data-Age"]) == ("application/json", "2", "3 s")
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_empty_content_and_a_path_with_nothing_have_answers_of_their_own(serve: Serve) -> None:
    server = serve()
    assert asked(server, path="/empty.jpg")[:2] == (204, b"")
    assert asked(server, path="/nothing")[0] == 404


def test_only_reading_is_possible(serve: Serve) -> None:
    request = urllib.request.Request(serve().url, data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(request, timeout=10)


@pytest.mark.parametrize("path", ["/", "/data.json", "/empty.jpg", "/nothing", "/broken"])
def test_head_answers_every_path_as_get_without_the_content(serve: Serve, path: str) -> None:
    server = serve()
    got, head = (asked(server, path=path, method=method) for method in ("GET", "HEAD"))
    assert head[0] == got[0]
    assert head[1] == b""
    for name in ("Content-Type", "Content-Length"):
        assert head[2][name] == got[2][name]


NAME = socket.gethostname()


@pytest.mark.parametrize("host", ["127.0.0.1:PORT", "127.0.0.1", "LocalHost:PORT", f"{NAME}:PORT", f"{NAME}.", None])
@pytest.mark.parametrize("path", ["/", "/data.json", "/empty.jpg"])
def test_the_machines_own_names_are_answered(serve: Serve, host: str | None, path: str) -> None:
    assert asked(serve(), host, path)[0] in (200, 204)


@pytest.mark.fault("requests to the live page under a foreign name")
@pytest.mark.parametrize(
    "host", ["evil.example:PORT", "localhost.evil.example", "10.1.2.3:PORT", "127.0.0.1.nip.io", "", "[", "[::1]:PORT"]
)
@pytest.mark.parametrize("path", ["/", "/data.json", "/empty.jpg", "/nothing", "/broken"])
def test_a_foreign_host_is_refused(serve: Serve, failures: list[BaseException], host: str, path: str) -> None:
    server = serve()
    status, content, _ = asked(server, host, path)
    assert status == 421
    assert server.url in content.decode()
    assert failures == []  # nothing was looked for


def test_any_address_but_no_other_name_is_answered_on_all_interfaces(serve: Serve) -> None:
    server = serve("0.0.0.0")
    assert [asked(server, host)[0] for host in ("10.1.2.3:PORT", "[fe80::1]:PORT", "localhost", NAME)] == [200] * 4
    assert [asked(server, host)[0] for host in ("evil.example", "0.0.0.0.evil.example:PORT")] == [421] * 2
    assert asked(server, server.url.split("/")[2])[0] == 200


def test_what_fails_is_reported_and_answered_with_an_error(serve: Serve, failures: list[BaseException]) -> None:
    server = serve()
    assert [asked(server, path="/broken")[0] for _ in range(2)] == [500] * 2
    assert [str(failure) for failure in failures] == ["a bug"] * 2
    assert asked(server)[0] == 200


def test_a_reader_that_goes_away_disturbs_nobody(
    serve: Serve, failures: list[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port_of(server))) as reader:
            reader.sendall(b"GET /data.json HTTP/1.0\r\n\r\n")
    assert asked(server)[0] == 200
    assert failures == []
    assert capfd.readouterr().err == ""


CROWD = """
import socket, sys, time
port, count = int(sys.argv[1]), int(sys.argv[2])
clients = []
for number in range(count):
    client = socket.create_connection(("127.0.0.1", port))
    client.setblocking(False)
    clients.append(client)
print("connected", flush=True)
while True:
    for client in clients[::2]:  # the others are idle
        try:
            client.send(b"G")
        except OSError:
            pass
    time.sleep(0.1)
"""


@pytest.mark.fault("400 idle and trickling clients of the live page", tries=400)
def test_hundreds_of_slow_clients_cost_a_bounded_number_of_descriptors(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "DEADLINE_S", 2.0)
    given = 0
    server = serve(find=lambda path: Answer(content_type="text/plain", content=str(given).encode()))
    before = descriptors()
    crowd = subprocess.Popen([sys.executable, "-c", CROWD, str(port_of(server)), "400"], stdout=subprocess.PIPE)
    with crowd:
        try:
            most, answered = 0, False
            patience = time.monotonic() + 30
            while not answered and time.monotonic() < patience:
                given += 1
                most = max(most, descriptors() - before)
                if given == 1:
                    assert crowd.stdout is not None
                    assert crowd.stdout.readline() == b"connected\n"
                try:
                    with urllib.request.urlopen(server.url, timeout=10) as answer:
                        answered = int(answer.read()) == given
                except (urllib.error.URLError, ConnectionError, http.client.HTTPException):
                    time.sleep(0.01)  # turned away
        finally:
            crowd.kill()
    assert answered
    # The pipe to the crowd and this test's own client are in the same process.
    assert CONNECTIONS / 2 < most <= CONNECTIONS + 4


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.fault("a client of the live page that sends or reads too slowly")
def test_a_client_that_sends_byte_after_byte_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "DEADLINE_S", 0.5)
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port_of(serve()))) as client:
        with pytest.raises(ConnectionError):
            for _ in range(100):
                client.send(b"G")
                time.sleep(0.1)
        assert time.monotonic() - started < 5


@pytest.mark.fault("a client of the live page that sends or reads too slowly")
def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "DEADLINE_S", 0.3)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TimeoutError):
        stream = web_server._Connection(ours)
        for _ in range(1000):
            stream.write(bytes(1 << 16))


@pytest.mark.fault("an error of the operating system in the live page")
@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")])
def test_no_error_ends_the_acceptance_of_clients(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing = iter([error] * 3)
    accept = web_server._Server.get_request

    def get_request(server: Any) -> Any:
        for one in failing:
            raise one
        return accept(server)

    monkeypatch.setattr(web_server._Server, "get_request", get_request)
    assert asked(serve())[0] == 200
    assert next(failing, None) is None


@pytest.mark.fault("an error of the operating system in the live page")
def test_a_thread_that_cannot_be_started_keeps_no_place(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()

    def start(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", start)
        for _ in range(2 * CONNECTIONS):
            with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
                asked(server)
    assert asked(server)[0] == 200


def test_a_port_that_is_taken_is_an_error_of_the_operating_system(serve: Serve) -> None:
    with pytest.raises(OSError, match="in use"):
        WebServer(("127.0.0.1", port_of(serve())), find, print)


def test_closed_it_answers_no_more(serve: Serve) -> None:
    server = serve()
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        asked(server)
