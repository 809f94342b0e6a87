"""The live page over HTTP: what a browser and Prometheus read, what is drawn for whom, and what stands in the way.

test_web_server.py has what holds for any answer, test_prometheus.py the format of the metrics.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
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
from adedge.runtime.events import Event
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


def fault(kind: str, camera: int | None = None, name: str = "silent") -> Event:
    return Event(
        kind=kind,  # type: ignore[arg-type]
        fault=name,  # type: ignore[arg-type]
        at_ns=time.monotonic_ns(),
        seconds=2.5,
        name="right",
        camera=camera,
        message="right delivers no frame for 2.5 s",
    )


def metric(page: PageSink, start: str) -> float:
    (line,) = [line for line in get(page, "metrics")[1].decode().splitlines() if line.startswith(start)]
    return float(line.rpartition(" ")[2])


def test_a_camera_that_never_delivered_counts_from_the_start(serve: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    page = serve()
    begun = time.monotonic_ns()
    monkeypatch.setattr(page_module.time, "monotonic_ns", lambda: begun + 7_000_000_000)
    assert state(page)["cameras"][0]["seconds_ago"] == pytest.approx(7, abs=1)
    assert metric(page, "adedge_seconds_since_verdict") == pytest.approx(7, abs=1)


def test_a_fault_is_shown_until_it_ends_and_stays_counted(serve: Page) -> None:
    page = serve("left", "right")
    silent = 'adedge_camera_fault{camera="1",source="right",fault="silent"}'
    total = 'adedge_camera_faults_total{camera="1",source="right",fault="silent"}'
    assert (metric(page, silent), metric(page, total)) == (0, 0)
    page.report(fault("camera_fault", camera=1))
    page.report(fault("camera_fault", camera=1, name="resized"))
    left, right = state(page)["cameras"]
    assert left["faults"] == []
    assert next((shown["fault"], shown["message"]) for shown in right["faults"]) == (
        "silent",
        "right delivers no frame for 2.5 s",
    )
    assert (metric(page, silent), metric(page, total)) == (1, 1)
    assert metric(page, silent.replace("silent", "frozen")) == 0
    page.report(fault("camera_recovered", camera=1))
    assert [shown["fault"] for shown in state(page)["cameras"][1]["faults"]] == ["resized"]
    assert (metric(page, silent), metric(page, total)) == (0, 1)


def test_metrics_tell_what_the_page_shows(serve: Page) -> None:
    page = serve('a "line" \\ more')
    give(page, 0.25, index=0)
    give(page, 0.75, index=3)
    headers = get(page, "metrics")[2]
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    label = r'{camera="0",source="a \"line\" \\ more"}'
    assert metric(page, f"adedge_frames_total{label}") == 2
    assert metric(page, f"adedge_rejects_total{label}") == 1
    assert metric(page, f"adedge_lost_frames_total{label}") == 2
    assert metric(page, f"adedge_score{label}") == 0.75
    assert metric(page, f"adedge_threshold{label}") == 0.5
    assert metric(page, 'adedge_info{bundle="b.adedge",engine="e/fp32"}') == 1
    inner = label.replace("}", ',boundary="verdict"}')
    assert metric(page, f"adedge_latency_seconds_count{inner}") == 2
    assert metric(page, f"adedge_latency_seconds_sum{inner}") == pytest.approx(0.008)


@pytest.mark.parametrize("path", ["nothing", "camera/x.jpg", "camera/-1.jpg", "../page.py", "reject/1.jpg", "camera"])
def test_nothing_else_is_served(serve: Page, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(serve(), path)


def broken(*arguments: Any, **options: Any) -> Any:
    raise ZeroDivisionError("a bug")


@pytest.mark.fault("a bug, an encoder's error or an empty frame in the live page", tries=20)
@pytest.mark.parametrize(
    "fault", ["annotate", "imencode", "refused", "empty", "record", "counts"], ids=lambda fault: str(fault)
)
def test_what_fails_in_the_page_is_logged_once_and_does_not_reach_the_inspection(
    serve: Page, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    monkeypatch.setattr(page_module, "REJECT_INTERVAL_S", 0.0)
    image = SEEN
    match fault:
        case "annotate":
            monkeypatch.setattr(page_module, "annotate", broken)
        case "imencode":
            monkeypatch.setattr(cv2, "imencode", broken)
        case "refused":
            monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
        case "empty":
            image = np.zeros((0, 0, 3), np.uint8)
        case "record":
            monkeypatch.setattr(page_module, "record_from_verdict", broken)
        case "counts":
            monkeypatch.setattr(page_module._View, "add", broken)
    page = serve()
    for index in range(20):
        give(page, 0.9, index=index, image=image)
    if fault == "record":
        with pytest.raises(urllib.error.HTTPError, match="500"):
            state(page)
    else:
        told = state(page)
        assert told["cameras"][0]["frames"] == (0 if fault == "counts" else 20)
        assert get(page, "camera/0.jpg")[:2] == (204, b"")
        for reject in told["rejects"]:
            assert get(page, f"reject/{reject['number']}.jpg")[0] == 204
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "the inspection goes on" in warnings[0].getMessage()


@pytest.mark.fault("pictures too long for JPEG, H.264 or VP8")
@pytest.mark.parametrize("size", [(70_000, 8), (8, 70_000), (70_000, 2000), (1, 1)])
def test_a_picture_too_long_for_jpeg_is_shrunk(serve: Page, size: tuple[int, int]) -> None:
    page = serve()
    give(page, 0.9, image=np.zeros(size, np.uint8))
    assert max(picture(page, "reject/1.jpg").shape) <= 65_500


@pytest.mark.parametrize("path", ["", "state.json", "metrics", "camera/0.jpg", "nothing"])
def test_a_foreign_host_reads_nothing_of_the_page(serve: Page, path: str) -> None:
    request = urllib.request.Request(serve().url + path, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="421"):
        urllib.request.urlopen(request, timeout=10)


@pytest.mark.parametrize("path", ["", "state.json", "metrics", "camera/0.jpg", "reject/1.jpg"])
def test_head_answers_as_get_without_the_content(serve: Page, path: str) -> None:
    page = serve()
    give(page, 0.9)
    status, _, headers = get(page, path)
    with urllib.request.urlopen(urllib.request.Request(page.url + path, method="HEAD"), timeout=10) as head:
        assert (head.status, head.read()) == (status, b"")
        assert head.headers["Content-Type"] == headers["Content-Type"]
        if path not in ("state.json", "metrics"):  # they tell the time, in more or fewer digits
            assert head.headers["Content-Length"] == headers["Content-Length"]


def test_a_picture_comes_with_the_verdict_on_its_frame(serve: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "DRAW_INTERVAL_S", 3600.0)
    page = serve()
    give(page, 0.9, index=3, name="bad \udcff\u00e9.png")  # a name in no encoding
    give(page, 0.1, index=4)
    last = state(page)["cameras"][0]["last"]
    assert (last["frame"], last["anomalous"]) == (4, False)
    _, content, headers = get(page, "camera/0.jpg")
    record = json.loads(headers["Adedge-Verdict"])
    assert (record["frame"], record["anomalous"], record["score"]) == (3, True, 0.9)
    assert record["name"] == "bad \\xff\u00e9.png"
    assert 0 <= record["seconds_ago"] < 5
    blue, green, red = np.moveaxis(cv2.imdecode(np.frombuffer(content, np.uint8), 1)[-20:, :20].astype(int), 2, 0)
    assert ((red - green > 60) & (red - blue > 60)).any(), "the picture says NG"


def test_the_page_stays_after_the_end_and_says_so(serve: Page) -> None:
    page = serve()
    sink = page.staying()
    assert state(page)["ended"] is False
    now = time.monotonic_ns()
    sink.take(
        Verdict(
            frame_id=0,
            name="a",
            captured_at_ns=now,
            decided_at_ns=now,
            score=0.1,
            threshold=0.5,
            anomalous=False,
            timings_ms={"network": 2.0, "frame": 3.0, "verdict": 4.0},
        ),
        Frame(0, now, SEEN, "a"),
    )
    sink.close()
    told = state(page)
    assert told["ended"] is True
    assert told["cameras"][0]["frames"] == 1


def schemes() -> dict[str, dict[str, str]]:
    """The colours of the page's variables, by colour scheme."""
    style = page_module._PAGE.read_text().partition("<style>")[2].partition("</style>")[0]
    dark, light = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in style.split("@media")[:2])
    assert dark.keys() > light.keys() > {"ink", "back"}
    return {"dark": dark, "light": {**dark, **light}}


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_text_is_legible_in_both_colour_schemes(scheme: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WCAG's example that just fails
    colours = schemes()[scheme]
    text = [*itertools.product(("ink", "dim", "warning"), ("back", "card")), *(("on-chip", c) for c in CHIPS)]
    marks = [(mark, "card") for mark in ("good-mark", "bad-mark", "dim")]
    for least, pairs in ((4.5, text), (3.0, marks)):
        for front, ground in pairs:
            assert contrast(colours[front], colours[ground]) >= least, (front, ground)


CHIPS = ("good", "bad", "none")


def test_every_colour_of_the_page_is_one_of_those_checked() -> None:
    text = page_module._PAGE.read_text()
    named = set(re.findall(r"(?:^|[\s;{])color: var\(--([\w-]+)\)", text))
    assert named == {"ink", "dim", "warning", "on-chip"}
    unnamed = re.sub(r"--[\w-]+: #[0-9a-f]{6};", "", text)
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgba?\(|hsla?\(", unnamed)


def test_requests_of_the_page_time_out_before_a_verdict_is_old() -> None:
    text = page_module._PAGE.read_text()
    assert text.count("fetch(") == 1
    assert "signal: AbortSignal.timeout(TIMEOUT_MS)" in text
    assert "TIMEOUT_MS = 2000" in text


def test_a_port_that_is_taken_is_one_sentence(serve: Page) -> None:
    port = int(serve().url.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(OutputError, match=f"127.0.0.1:{port} .*in use"):
        PageSink(("127.0.0.1", port), ["line"], {})
    with pytest.raises(OutputError, match=r"at no.such.host.invalid:8080 \(.*\): give --page another port"):
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
