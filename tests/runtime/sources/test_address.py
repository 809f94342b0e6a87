"""Addresses: what is shown of them, and the secrets that come from the environment or a file."""

from __future__ import annotations

import base64
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adedge.errors import AdedgeError, SourceError, UsageError
from adedge.runtime.sources import open_source
from adedge.runtime.sources.address import HIDDEN, Address, distinct_names, resolve, shown

# Text that occurs nowhere else in an address, between characters that mean something in one.
SPECIAL = "@/?#:;&=%+!$ \"'\\[]{}|<>~.,"
SECRETS = st.lists(st.sampled_from([*SPECIAL, "é", "密"]), max_size=6).flatmap(
    lambda marks: st.permutations([*marks, "QzXsecret", "QzXagain"]).map("".join)
)
FORMS = (
    "rtsp://admin:{}@10.0.0.5:554/stream",
    "rtsp://{}:pw@10.0.0.5/stream",
    "rtsp://{}@[fe80::1]:554/stream",
    "RTSP://admin:{}@camera.local/stream",
    "rtsp://10.0.0.5:554/user=admin_password={}_channel=1.sdp",
    "https://10.0.0.5/video.mjpg?user=admin&password={}",
    "rtsp://admin:first@second{}@10.0.0.5/x",
    "ftp://admin:{}@10.0.0.5/x",
    "rtsp:/admin:{}@10.0.0.5/x",
    "admin:{}@10.0.0.5",
    " rtsp://admin:{}@10.0.0.5/x",
    "gst:rtspsrc location=rtsp://admin:{}@10.0.0.5/x ! decodebin",
    'gst:rtspsrc location=rtsp://10.0.0.5/x user-id=admin user-pw="{}" ! decodebin',
    "csi://admin:{}@0",
)


@pytest.mark.fault("odd passwords in the address of a camera", tries=100)
@given(st.sampled_from(FORMS), SECRETS)
def test_nothing_of_a_password_is_shown(form: str, secret: str) -> None:
    assume("{}" not in secret)
    assert "QzX" not in shown(form.replace("{}", secret))


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("rtsp://admin:secret@10.0.0.5:554/stream?x=1", "rtsp://10.0.0.5:554"),
        ("rtsp://10.0.0.5/stream", "rtsp://10.0.0.5"),
        ("http://u:p@[fe80::1]:80/x", "http://[fe80::1]:80"),
        ("rtsp://admin:first@second@10.0.0.5/x", "rtsp://10.0.0.5"),
        ("rtsp://admin:a/b@10.0.0.5/x", "rtsp://..."),
        ("rtsp://10.0.0.5/password=a@b", "rtsp://..."),
        ("rtsp://admin:secret", "rtsp://..."),
        ("gst:rtspsrc location=rtsp://u:p@h ! decodebin", "gst:rtspsrc"),
        ("gst:user-pw=x", "gst:..."),
        ("0?width=640", "0"),
        ("/dev/video0", "/dev/video0"),
        ("synthetic:brick?frames=2", "synthetic:brick"),
        ("parts/good", "parts/good"),
        ("10.0.0.5:554/password=x", HIDDEN),
    ],
)
def test_scheme_host_and_port_are_shown(address: str, seen: str) -> None:
    assert shown(address) == seen


@pytest.mark.fault("odd passwords in the address of a camera", tries=100)
@given(st.sampled_from(FORMS), SECRETS)
def test_no_error_of_a_source_shows_a_password(form: str, secret: str) -> None:
    assume("{}" not in secret)
    address = form.replace("{}", secret)
    assume("10.0.0.5" not in address or not address.lower().startswith(("rtsp:", "http")))  # would wait for the network
    with pytest.raises(AdedgeError) as caught:
        open_source(address)
    assert "QzX" not in str(caught.value)


def test_an_address_that_is_too_long_for_a_file_is_not_shown() -> None:
    with pytest.raises(SourceError) as caught:
        open_source("admin:" + "QzXsecret" * 1000)
    assert "QzX" not in str(caught.value)


def test_an_address_is_not_shown_by_its_representation() -> None:
    assert "secret" not in repr(resolve("rtsp://admin:secret@10.0.0.5/x"))


def test_variables_before_the_host_are_percent_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_USER", "line 1")
    monkeypatch.setenv("CAMERA_PASSWORD", "a/b@c:d?é")
    monkeypatch.setenv("CAMERA_STREAM", "live/main")
    address = resolve("rtsp://${CAMERA_USER}:${CAMERA_PASSWORD}@10.0.0.5:554/${CAMERA_STREAM}")
    assert address.text == "rtsp://line%201:a%2Fb%40c%3Ad%3F%C3%A9@10.0.0.5:554/live/main"
    assert address.shown == "rtsp://10.0.0.5:554"


@pytest.mark.parametrize("value", ["hunter2", "rtsp://u:hunter2@10.0.0.5/x", "no/hunter2/path", "u:hunter2@10.0.0.5"])
def test_a_variable_or_a_file_may_hold_a_whole_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    monkeypatch.setenv("CAMERA", value)
    (tmp_path / "camera").write_text(f"{value}\n")
    for given_ in ("${CAMERA}", f"@{tmp_path / 'camera'}"):
        address = resolve(given_)
        assert address.text == value
        assert "hunter2" not in address.shown


def test_a_variable_that_is_not_set() -> None:
    with pytest.raises(SourceError, match="environment variable NO_SUCH_VARIABLE is not set"):
        resolve("rtsp://admin:${NO_SUCH_VARIABLE}@10.0.0.5/x")


def test_a_file_has_no_variables(tmp_path: Path) -> None:
    path = tmp_path / "camera"
    path.write_text("rtsp://admin:${x}@10.0.0.5/x")
    assert resolve(f"@{path}").text == "rtsp://admin:${x}@10.0.0.5/x"


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_file_that_everybody_may_read_is_warned_of(tmp_path: Path, mode: int, warned: bool) -> None:
    path = tmp_path / "camera"
    path.write_text("rtsp://admin:secret@10.0.0.5/x")
    path.chmod(mode)
    notices: list[str] = []
    resolve(f"@{path}", notices.append)
    assert [f"chmod 600 {path}" in notice for notice in notices] == [True] * warned
    assert "secret" not in "".join(notices)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "0 lines"), (b"rtsp://a\nrtsp://b\n", "2 lines"), (b"\xff\xfe", "not UTF-8"), (b"x" * 70_000, "64")],
)
def test_a_file_that_holds_no_address(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "camera"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        resolve(f"@{path}")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(SourceError, match=r"no/such cannot be read .*@PATH stands for a file"):
        resolve("@no/such")


@pytest.mark.parametrize(
    "text", ["rtsp://admin:QzX/secret@h/x", "rtsp://admin:QzX", "http://u:p@QzX;x?@h", "rtsp:///x"]
)
def test_what_cannot_be_a_host_is_not_looked_up(text: str) -> None:
    with pytest.raises(UsageError, match="no valid host and port: .* @ / .* as %40 %2F") as caught:
        resolve(text)
    assert "QzX" not in str(caught.value)


@pytest.mark.parametrize("text", ["rtsp://admin:QzX\x00@h/x", "rtsp://admin:QzX\n@h/x", "gst:a user-pw=QzX\udcff"])
def test_control_characters_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="control character") as caught:
        resolve(text)
    assert "QzX" not in str(caught.value)


def test_cameras_at_one_host_have_names_of_their_own() -> None:
    texts = ["rtsp://u:p@10.0.0.5/1", "rtsp://u:p@10.0.0.6/1", "rtsp://u:p@10.0.0.5/2", "parts", "parts"]
    names = distinct_names([resolve(text) for text in texts])
    assert names == ["rtsp://10.0.0.5 (camera 0)", None, "rtsp://10.0.0.5 (camera 2)", None, None]
    assert distinct_names([Address("0", "0")]) == [None]


@pytest.mark.parametrize("password", ["plain", "a/b", "a@b?c#d", "50%25", "é:密"])
def test_a_camera_receives_the_password_as_it_is(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    """An HTTP server asks for user name and password, and sees what FFmpeg makes of the address."""
    monkeypatch.setenv("PASSWORD", password)
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            while not any("Authorization: Basic" in request for request in asked):
                connection, _ = server.accept()
                with connection:
                    asked.append(connection.recv(65536).decode())
                    connection.sendall(
                        b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="camera"\r\n'
                        b"Content-Length: 0\r\nConnection: close\r\n\r\n"
                    )

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(SourceError, match="delivers no video"):
            open_source(f"http://admin:${{PASSWORD}}@127.0.0.1:{server.getsockname()[1]}/video.mjpg")
        thread.join(timeout=20)
    line = next(line for line in asked[-1].splitlines() if line.startswith("Authorization: Basic "))
    assert base64.b64decode(line.rpartition(" ")[2]).decode() == f"admin:{password}"
