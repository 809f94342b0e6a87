"""The whole path by the commands that a user types, on a photograph, small: from pictures to verdicts and a report."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from adedge.bundle import Bundle
from adedge.data.synthesis import write_demo_dataset

PRECISIONS = ("fp32", "fp16", "int8")


def adedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adedge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def must(*arguments: object) -> str:
    result = adedge(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and a bundle part.adedge that went through train, export, calibrate and build-engine."""
    place = tmp_path_factory.mktemp("line")
    data, bundle = place / "data", place / "part.adedge"
    write_demo_dataset(data, texture="brick", seed=0, train=40, calibration=24, test=12)
    options = ("--size", 64, "--color", "gray", "--margin", 4, "--ae-iterations", 120, "--sdn-iterations", 10)
    must("train", "oesdn", data, "-o", bundle, *options)
    must("export", bundle, "--with-scoring")
    must("calibrate", bundle, data, "--false-alarm-rate", 0.05)
    for target in ("onnxruntime", "tensorrt-rtx"):
        for precision in PRECISIONS:
            must("build-engine", bundle, "--target", target, "--precision", precision)
    return place


def test_bundle_holds_every_graph_engine_and_threshold(place: Path) -> None:
    bundle = Bundle.open(place / "part.adedge")
    assert bundle.verify() == []
    assert {"model.fp32", "model.fp16", "model.int8", "scored.fp32"} <= bundle.manifest.graphs.keys()
    assert {f"onnxruntime/{p}" for p in PRECISIONS} | {"pytorch/fp32"} <= bundle.manifest.thresholds.keys()
    assert bundle.manifest.normalisation is not None
    for target in ("onnxruntime", "tensorrt-rtx"):
        for precision in PRECISIONS:
            record = bundle.json(f"engines/{target}-{precision}/engine.json")
            assert record["target"] == target
            # An ahead-of-time TensorRT-RTX plan cannot run without its GPU, and must not claim a self-test.
            assert (record["self_test"] is None) == (target == "tensorrt-rtx")
    fp32 = bundle.json("engines/onnxruntime-fp32/engine.json")["self_test"]
    assert fp32["score_error"] < 1e-4
    assert fp32["flips"] == 0


def test_run_judges_a_video_source(place: Path) -> None:
    source = "synthetic:brick?seed=0&frames=12"
    lines = must("run", place / "part.adedge", source, "--video", place / "out.mp4", "--rejects", place / "rejects")
    verdicts = [json.loads(line) for line in lines.splitlines()]
    assert len(verdicts) == 12
    for verdict in verdicts:
        assert verdict["anomalous"] == (verdict["score"] > verdict["threshold"])
        assert {"preprocess", "network", "scoring", "frame", "verdict"} <= verdict["latency_ms"].keys()
    written = [path for path in place.iterdir() if path.stem == "out"]
    assert len(written) == 1
    video = cv2.VideoCapture(str(written[0]))
    assert video.read()[0]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_benchmark_writes_a_report_that_stands_alone(place: Path) -> None:
    out = place / "report"
    must("benchmark", place / "part.adedge", "--data", place / "data", "--frames", 20, "-o", out)
    report = json.loads((out / "report.json").read_text())
    assert set(report["latency"]) == {f"onnxruntime/{p}" for p in PRECISIONS}
    assert set(report["accuracy"]) == {*report["latency"], "pytorch/fp32"}
    for latency in report["latency"].values():
        assert 0 < latency["network"]["p50"] <= latency["frame"]["p50"]
        assert latency["frame"]["p50"] <= latency["frame"]["p99"]
        assert len(latency["frame"]["samples_ms"]) == 20
    reference, fp32 = report["accuracy"]["pytorch/fp32"], report["accuracy"]["onnxruntime/fp32"]
    assert fp32["auroc"] == pytest.approx(reference["auroc"], abs=1e-3)
    assert reference["flips"] == 0
    assert any(
        note.startswith("Not measured: tensorrt-rtx/fp32, tensorrt-rtx/fp16, tensorrt-rtx/int8: ")
        for note in report["notes"]
    ), "TensorRT-RTX plans cannot run here"
    page = Page()
    page.feed((out / "report.html").read_text())
    assert "script" not in page.tags
    assert page.sources
    for source in page.sources:
        kind, _, content = source.partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg"), f"the page needs {source[:80]}"
        assert cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR) is not None
    assert "AUROC" in (out / "report.md").read_text()


def test_tampered_engine_is_refused(place: Path) -> None:
    plan = next((place / "part.adedge" / "engines" / "onnxruntime-fp32").glob("engine.[!j]*"))
    intact = plan.read_bytes()
    plan.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    try:
        result = adedge("run", place / "part.adedge", "synthetic:brick?frames=2", "--precision", "fp32")
    finally:
        plan.write_bytes(intact)
    assert result.returncode == 1
    assert "not the file that was written" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (("calibrate", "BUNDLE", "DATA", "--false-alarm-rate", 0.001), "999"),
        (("benchmark", "BUNDLE", "--target", "tensorrt"), "build-engine"),
        (("build-engine", "BUNDLE", "--target", "tensorrt", "--precision", "fp16"), "tensorrt"),
        (("run", "BUNDLE", "no-such-video.mp4"), "no-such-video.mp4"),
        (("run", "BUNDLE", "EMPTY"), "empty"),
        (("train", "oesdn", "EMPTY", "-o", "new.adedge"), "empty"),
    ],
    ids=["too few pictures", "no engine", "no TensorRT", "no video", "empty folder", "nothing to train on"],
)
def test_what_cannot_work_is_one_sentence_and_changes_nothing(
    place: Path, call: tuple[object, ...], sentence: str
) -> None:
    (place / "empty").mkdir(exist_ok=True)
    names = {
        "BUNDLE": place / "part.adedge",
        "DATA": place / "data",
        "EMPTY": place / "empty",
        "new.adedge": place / "n",
    }
    before = (place / "part.adedge" / "bundle.json").read_bytes()
    result = adedge(*(names.get(str(word), word) for word in call))
    assert result.returncode in (1, 2)
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert (place / "part.adedge" / "bundle.json").read_bytes() == before
    assert not (place / "n").exists()
