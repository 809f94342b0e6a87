"""The live page over HTTP: what a browser and Prometheus read, what is drawn for whom, and what stands in the way."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from adedge.errors import OutputError, UsageError
from adedge.runtime import page as page_module
from adedge.runtime.page import REJECTS, SCORES, PageSink, page_address
from adedge.runtime.sources import Frame
from adedge.runtime.verdict import Verdict

Page = Callable[..., PageSink]


@pytest.fixture
def serve() -> Iterator[Page]:
    made: list[PageSink] = []

    def start(*names: str) -> PageSink:
        made.append(PageSink(("127.0.0.1", 0), names or ("line",), {"bundle": "b.adedge", "engine": "e/fp32"}))
        return made[-1]

    yield start
    for page in made:
        page.close()


def get(page: PageSink, path: str) -> tuple[int, bytes, Any]:
    with urllib.request.urlopen(page.url + path, timeout=10) as answer:
        return answer.status, answer.read(), answer.headers


def state(page: PageSink) -> Any:
    return json.loads(get(page, "state.json")[1])


def picture(page: PageSink, path: str) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(get(page, path)[1], np.uint8), cv2.IMREAD_COLOR))


def test_a_source_whose_name_is_not_utf8_is_shown(serve: Page) -> None:
    page = serve(os.fsdecode(b"/line/Gr\xf6\xdfe"))
    assert state(page)["cameras"][0]["name"] == r"/line/Gr\xf6\xdfe"
    assert get(page, "metrics")[0] == 200


SEEN = np.full((300, 400, 3), 90, np.uint8)


def give(
    page: PageSink,
    score: float,
    *,
    index: int = 0,
    camera: int | None = None,
    name: str = "line#0",
    image: np.ndarray = SEEN,
    nv12: bool = False,
) -> None:
    now = time.monotonic_ns()
    verdict = Verdict(
        frame_id=index,
        name=name,
        captured_at_ns=now,
        decided_at_ns=now,
        score=score,
        threshold=0.5,
        anomalous=score > 0.5,
        camera=camera,
        map=np.full((8, 8), score, np.float32),
        timings_ms={"network": 2.0, "frame": 3.0, "verdict": 4.0},
    )
    page.take(verdict, Frame(index, now, image, name, nv12))


def test_the_page_is_one_document_that_loads_nothing_from_elsewhere(serve: Page) -> None:
    status, content, headers = get(serve(), "")
    text = content.decode()
    assert status == 200
    assert "text/html" in headers["Content-Type"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    # What a source is called never becomes markup.
    assert "innerHTML" not in text


def test_counts_scores_and_latencies(serve: Page) -> None:
    page = serve()
    assert state(page)["cameras"][0]["last"] is None
    for index, score in ((0, 0.2), (1, 0.9), (4, 0.4)):
        give(page, score, index=index)
    told = state(page)
    (camera,) = told["cameras"]
    assert told["about"] == {"bundle": "b.adedge", "engine": "e/fp32"}
    assert (camera["name"], camera["frames"], camera["rejects"], camera["lost"]) == ("line", 3, 1, 2)
    assert camera["scores"] == [0.2, 0.9, 0.4]
    assert camera["latency_ms"] == {"network": 2.0, "frame": 3.0, "verdict": 4.0}
    assert camera["last"]["score"] == 0.4
    assert 0 <= camera["seconds_ago"] < 5
    assert [reject["score"] for reject in told["rejects"]] == [0.9]


def test_what_is_kept_does_not_grow(serve: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "REJECT_INTERVAL_S", 0.0)
    page = serve()
    for index in range(SCORES + 50):
        give(page, 0.9, index=index)
    told = state(page)
    assert len(told["cameras"][0]["scores"]) == SCORES
    numbers = [reject["number"] for reject in told["rejects"]]
    assert numbers == list(range(SCORES + 50, SCORES + 50 - REJECTS, -1))
    assert picture(page, f"reject/{numbers[-1]}.jpg").shape[2] == 3
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(page, f"reject/{numbers[-1] - 1}.jpg")


def test_an_nv12_frame_is_drawn_as_opencv_converts_it(serve: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "REJECT_INTERVAL_S", 0.0)
    page = serve()
    image = np.random.default_rng(4).integers(0, 256, (450, 400), np.uint8)
    give(page, 0.9, image=image, nv12=True)
    give(page, 0.9, index=1, image=cv2.cvtColor(image, cv2.COLOR_YUV2BGR_NV12))
    np.testing.assert_array_equal(picture(page, "reject/1.jpg"), picture(page, "reject/2.jpg"))


def test_a_picture_is_drawn_for_who_looks_and_for_nobody_else(serve: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    page = serve()
    drawn: list[int] = []
    annotate = page_module.annotate

    def counting(frame: Any, verdict: Verdict, **options: Any) -> Any:
        drawn.append(verdict.frame_id)
        return annotate(frame, verdict, **options)

    monkeypatch.setattr(page_module, "annotate", counting)
    monkeypatch.setattr(
        page_module, "DRAW_INTERVAL_S", 3600.0
    )  # however slow this machine is, what comes "at once" is too soon
    give(page, 0.1, index=0)
    assert drawn == []
    assert get(page, "camera/0.jpg")[:2] == (204, b"")
    give(page, 0.1, index=1)
    assert drawn == [1]
    # Frame and overlay side by side, 480 pixels wide each, with 4 between them.
    assert picture(page, "camera/0.jpg").shape[1] == 2 * 400 + 4
    give(page, 0.1, index=2)  # at once: too soon to draw again
    assert drawn == [1]
    assert state(page)["cameras"][0]["pictured"] == 1
    monkeypatch.setattr(page_module, "VIEWED_S", 0.0)
    monkeypatch.setattr(page_module, "DRAW_INTERVAL_S", 0.0)
    give(page, 0.1, index=3)
    assert drawn == [1]


def test_large_frames_are_shrunk(serve: Page) -> None:
    page = serve()
    get(page, "camera/0.jpg")
    give(page, 0.0, image=np.zeros((3000, 4000), np.uint8))
    assert picture(page, "camera/0.jpg").shape[1] == 480 + 4 + 480


def test_cameras_are_told_apart(serve: Page) -> None:
    page = serve("left", "right")
    give(page, 0.9, camera=1, name="right#0")
    told = state(page)
    assert [camera["frames"] for camera in told["cameras"]] == [0, 1]
    assert told["rejects"][0]["camera"] == 1
    assert get(page, "camera/0.jpg")[0] == 204
    assert get(page, "camera/1.jpg")[0] == 200  # the reject's
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(page, "camera/2.jpg")


def test_metrics_follow_the_text_format(serve: Page) -> None:
    page = serve('a "line" \\ more')
    give(page, 0.25, index=0)
    give(page, 0.75, index=3)
    _, content, headers = get(page, "metrics")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = content.decode().splitlines()
    values: dict[str, float] = {}
    typed: dict[str, str] = {}
    for line in lines:
        if line.startswith("#"):
            if (found := re.fullmatch(r"# TYPE (\w+) (counter|gauge|summary)", line)) is not None:
                typed[found[1]] = found[2]
            continue
        found = re.fullmatch(r"""(\w+)(\{(?:\w+="(?:[^"\\\n]|\\[\\"n])*",?)*\})? (\S+)""", line)
        assert found is not None, line
        values[found[1] + (found[2] or "")] = float(found[3])
        assert re.sub(r"_(sum|count)$", "", found[1]) in typed, line
    label = r'{camera="0",source="a \"line\" \\ more"}'
    assert values[f"adedge_frames_total{label}"] == 2
    assert values[f"adedge_rejects_total{label}"] == 1
    assert values[f"adedge_lost_frames_total{label}"] == 2
    assert values[f"adedge_score{label}"] == 0.75
    assert values[f"adedge_threshold{label}"] == 0.5
    inner = label.replace("}", ',boundary="verdict"}')
    assert values[f"adedge_latency_seconds_count{inner}"] == 2
    assert values[f"adedge_latency_seconds_sum{inner}"] == pytest.approx(0.008)
    quantile = inner.replace("}", ',quantile="0.5"}')
    assert values[f"adedge_latency_seconds{quantile}"] == pytest.approx(0.004)


@pytest.mark.parametrize("path", ["nothing", "camera/x.jpg", "camera/-1.jpg", "../page.py", "reject/1.jpg", "camera"])
def test_nothing_else_is_served(serve: Page, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(serve(), path)


def test_only_reading_is_possible(serve: Page) -> None:
    request = urllib.request.Request(serve().url, data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(request, timeout=10)


def test_a_reader_that_goes_away_disturbs_nobody(serve: Page, capfd: pytest.CaptureFixture[str]) -> None:
    page = serve()
    port = int(page.url.rsplit(":", 1)[1].strip("/"))
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port)) as reader:
            reader.sendall(b"GET /state.json HTTP/1.0\r\n\r\n")
    give(page, 0.1)
    assert state(page)["cameras"][0]["frames"] == 1
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_one_sentence(serve: Page) -> None:
    port = int(serve().url.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(OutputError, match=f"127.0.0.1:{port} .*in use"):
        PageSink(("127.0.0.1", port), ["line"], {})
    with pytest.raises(OutputError, match="cannot be served at no.such.host.invalid"):
        PageSink(("no.such.host.invalid", 8080), ["line"], {})


def test_closed_it_answers_no_more(serve: Page) -> None:
    page = serve()
    page.close()
    page.close()
    with pytest.raises(urllib.error.URLError):
        get(page, "")


@pytest.mark.parametrize(
    ("text", "address"),
    [("8080", ("127.0.0.1", 8080)), ("0.0.0.0:80", ("0.0.0.0", 80)), ("jetson.local:0", ("jetson.local", 0))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert page_address(text) == address


@pytest.mark.parametrize("text", ["", "x", ":8080", "host:", "70000", "-1", "8080:", "\u0663"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give a port"):
        page_address(text)
