"""`adedge run` on a network camera: a web server that sends JPEG pictures, as many cameras do."""

from __future__ import annotations

import json
import socket
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import Result

from adedge.errors import SourceError, UsageError

Invoke = Callable[..., Result]


class Camera(ThreadingHTTPServer):
    """Sends 50 pictures a second. ``picture`` makes them; while ``silent`` is set it sends nothing."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.rng = np.random.default_rng(0)
        self.picture: Callable[[], np.ndarray] = self.noise
        self.silent = threading.Event()
        self.host = f"127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def noise(self) -> np.ndarray:
        return self.rng.integers(0, 100, (48, 64, 3), np.uint8)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none."""


class _Handler(BaseHTTPRequestHandler):
    server: Camera

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        while True:
            if not self.server.silent.is_set():
                data = cv2.imencode(".jpg", self.server.picture())[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
            time.sleep(0.02)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nobody reads it."""


@pytest.fixture(scope="module")
def shared_camera() -> Iterator[Camera]:
    camera = Camera()
    yield camera
    camera.shutdown()
    camera.server_close()


@pytest.fixture
def camera(shared_camera: Camera) -> Iterator[Camera]:
    yield shared_camera
    shared_camera.picture = shared_camera.noise
    shared_camera.silent.clear()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Watcher:
    """Reads the page's state and metrics over and over, in a thread."""

    def __init__(self, port: int) -> None:
        self.texts: list[str] = []
        self._url = f"http://127.0.0.1:{port}/"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        while not self._done.wait(0.02):
            try:
                for path in ("state.json", "metrics"):
                    with urllib.request.urlopen(self._url + path, timeout=5) as answer:
                        self.texts.append(answer.read().decode())
            except (OSError, urllib.error.URLError):
                continue

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join(timeout=10)


def outputs(invoke: Invoke, bundle: Path, *arguments: object, frames: int = 8) -> tuple[Result, str]:
    """Everything that a run lets out: stdout and stderr, the traceback of its error, the page, the metrics."""
    port = free_port()
    with Watcher(port) as watcher:
        result = invoke("run", bundle, *arguments, "--page", port, "--max-frames", frames)
    error = "" if result.exception is None else "".join(traceback.format_exception(result.exception))
    return result, "\n".join([result.output, result.stderr, error, *watcher.texts])


MARKS = st.text(st.sampled_from("@/?#:;&=%+!$ \"'\\[]{}|<>~.,é密"), max_size=4)
PASSWORDS = st.tuples(MARKS, MARKS, MARKS).map(lambda marks: f"{marks[0]}QzXone{marks[1]}QzXtwo{marks[2]}")


def test_runs_on_a_camera_with_a_password(
    invoke: Invoke, grey_bundle: Path, camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_PASSWORD", "QzX@/?#&=one")
    address = f"http://admin:${{CAMERA_PASSWORD}}@{camera.host}/video?password=QzXtwo"
    result, text = outputs(invoke, grey_bundle, address)
    assert result.exit_code == 0, text
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert records[0]["name"] == f"http://{camera.host}#0"
    assert f'source="http://{camera.host}"' in text, "the metrics were read"
    assert "QzX" not in text


@pytest.mark.fault("odd passwords in the address of a camera", tries=25)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    password=PASSWORDS,
    form=st.sampled_from(
        [
            "http://admin:{}@{host}/video",
            "http://admin:${{CAMERA_PASSWORD}}@{host}/video",
            "http://{host}/user=admin_password={}_channel=1",
            "http://{host}/video?user=admin&password={}",
            "@{file}",
            "gst:rtspsrc location=rtsp://admin:{}@{host}/x user-pw={} ! decodebin",
            "admin:{}@{host}/video",
        ]
    ),
)
def test_no_password_leaves_a_run(
    invoke: Invoke,
    grey_bundle: Path,
    camera: Camera,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    password: str,
    form: str,
) -> None:
    monkeypatch.setenv("CAMERA_PASSWORD", password)
    file = tmp_path / "camera"
    file.write_text(f"http://{camera.host}/video?password={password}", encoding="utf-8")
    address = form.replace("{host}", camera.host).replace("{file}", str(file)).replace("{{", "{").replace("}}", "}")
    address = address.replace("{}", password)
    _, text = outputs(invoke, grey_bundle, address, frames=3)
    assert "QzX" not in text


def test_a_source_in_the_place_of_the_bundle_is_not_shown(invoke: Invoke, grey_bundle: Path) -> None:
    for address in (
        "rtsp://admin:QzX@10.0.0.5/x",
        "http://10.0.0.5/x?password=QzX",
        "gst:a user-pw=QzX",
        "a@" + "QzX" * 999,
    ):
        result = invoke("run", address, grey_bundle)
        assert isinstance(result.exception, UsageError)
        assert "give the bundle first" in str(result.exception)
        assert "QzX" not in "".join([result.output, *traceback.format_exception(result.exception)])


def test_names_replace_addresses(invoke: Invoke, grey_bundle: Path, camera: Camera) -> None:
    addresses = [f"http://u:QzX@{camera.host}/{number}" for number in (1, 2)]
    result, text = outputs(invoke, grey_bundle, *addresses, "--name", "left", "--name", "right belt")
    assert result.exit_code == 0, text
    names = {json.loads(line)["name"].partition("#")[0] for line in result.stdout.splitlines()}
    assert names == {"left", "right belt"}
    assert 'camera="1",source="right belt"' in text
    assert "QzX" not in text


def test_without_names_two_cameras_at_one_host_are_told_apart(
    invoke: Invoke, grey_bundle: Path, camera: Camera
) -> None:
    result, text = outputs(invoke, grey_bundle, *(f"http://{camera.host}/{number}" for number in (1, 2)))
    assert result.exit_code == 0, text
    for index in (0, 1):
        assert f"http://{camera.host} (camera {index}), policy latest" in result.stderr


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", ""), ("a", "b\nc"), ("a", "b", "c")])
def test_names_that_do_not_fit(invoke: Invoke, grey_bundle: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    words = [word for name in names for word in ("--name", name)]
    result = invoke("run", grey_bundle, "synthetic:brick?frames=1", "synthetic:brick?frames=1", *words)
    assert result.exception is not None
    assert f"{len(names)} --name for 2 source(s): give each source one" in str(result.exception)
    if len(names) == 2:
        assert f"{names[1]!r} is not" in str(result.exception)


def test_strict_fails_on_a_damaged_video(invoke: Invoke, grey_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "line.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (160, 112))
    noise = np.random.default_rng(0).integers(0, 100, (112, 160, 3), np.uint8)
    for number in range(30):
        writer.write(np.roll(noise, number, 1))
    writer.release()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) * 6 // 10] = bytes(len(data) // 10)
    path.write_bytes(data)
    result = invoke("run", grey_bundle, path)
    assert result.exit_code == 0
    numbers = [json.loads(line)["frame"] for line in result.stdout.splitlines()]
    assert numbers[-1] == 29, "what lies behind the damage is judged"
    skipped = 30 - len(numbers)
    assert 0 < skipped < 10
    assert f"{skipped} skipped" in result.stderr
    strict = invoke("run", grey_bundle, path, "--strict")
    assert strict.exit_code != 0
    assert "cannot be decoded" in str(strict.exception)


def events(result: Result) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in result.stdout.splitlines()]
    return [(record["event"], record["fault"]) for record in records if "event" in record]


@pytest.mark.fault("a camera that is silent, frozen, covered or changes its size")
def test_a_silent_camera_is_an_event_among_the_verdicts_and_so_is_its_return(
    invoke: Invoke, grey_bundle: Path, camera: Camera
) -> None:
    pause = threading.Timer(1.0, camera.silent.set)
    back = threading.Timer(2.2, camera.silent.clear)
    for timer in (pause, back):
        timer.start()
    result, text = outputs(
        invoke, grey_bundle, f"http://{camera.host}/", "--camera-timeout", 0.5, "--policy", "every", frames=80
    )
    assert result.exit_code == 0, text
    assert events(result) == [("camera_fault", "silent"), ("camera_recovered", "silent")]
    assert f"warning: http://{camera.host} delivers no frame for 0." in result.stderr
    metric = f'adedge_camera_fault{{camera="0",source="http://{camera.host}",fault="silent"}} '
    assert {line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(metric)} == {"0", "1"}
    states = [json.loads(line)["cameras"][0] for line in text.splitlines() if line.startswith('{"about"')]
    assert any([fault["fault"] for fault in state["faults"]] == ["silent"] for state in states)
    assert max(state["seconds_ago"] for state in states) > 0.5


@pytest.mark.fault("a camera that is silent, frozen, covered or changes its size")
def test_a_frozen_camera_is_rejected(invoke: Invoke, grey_bundle: Path, camera: Camera) -> None:
    still = camera.noise()
    camera.picture = lambda: still
    result, _ = outputs(
        invoke,
        grey_bundle,
        *(f"http://{camera.host}/", "--on-camera-fault", "reject", "--policy", "every", "--fail-on-reject"),
        frames=15,
    )
    assert result.exit_code == 3
    verdicts = [record for record in map(json.loads, result.stdout.splitlines()) if "event" not in record]
    assert [record.get("fault") for record in verdicts] == [None] * 9 + ["frozen"] * 6
    assert [record["anomalous"] for record in verdicts] == [False] * 9 + [True] * 6
    assert events(result) == [("camera_fault", "frozen")]


@pytest.mark.fault("a camera that is silent, frozen, covered or changes its size")
def test_a_covered_camera_stops_the_run(invoke: Invoke, grey_bundle: Path, camera: Camera) -> None:
    camera.picture = lambda: np.zeros((48, 64, 3), np.uint8)
    result, _ = outputs(invoke, grey_bundle, f"http://{camera.host}/", "--on-camera-fault", "stop")
    assert isinstance(result.exception, SourceError)
    assert "delivers a picture without content" in str(result.exception)
    assert events(result) == [("camera_fault", "constant")]


def test_a_camera_that_comes_later_is_waited_for(invoke: Invoke, grey_bundle: Path, camera: Camera) -> None:
    port = free_port()
    late: list[Camera] = []
    timer = threading.Timer(1.5, lambda: late.append(Camera(port)))
    timer.start()
    result, text = outputs(invoke, grey_bundle, f"http://127.0.0.1:{port}/", "--reconnect", 30, "--camera-timeout", 0.5)
    assert result.exit_code == 0, text
    assert "delivers no video" in result.stderr
    assert "(waiting for it for up to 30 s)" in result.stderr
    assert events(result) == [("camera_fault", "silent"), ("camera_recovered", "silent")]
    late[0].shutdown()
    late[0].server_close()
