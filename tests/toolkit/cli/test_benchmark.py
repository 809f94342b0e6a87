"""`adedge benchmark`: which files a report is, what is printed of it, and calls that write nothing."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import Result

from adedge.bundle import Bundle
from adedge.errors import BundleError, DataError, EngineError
from adedge.signing import create_key, require, sign

pytest.importorskip("matplotlib")

Adedge = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]
QUICK = ("--frames", 20, "--threads", 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Flat pictures by their red. At thresholds of 0.5 a level of 135 is anomalous, and 0.92 times 135 is not."""
    for part, levels in {"train/good": (1, 2), "test/good": (10, 20, 30), "test/spot": (135, 200, 210, 220)}.items():
        (tmp_path / "parts" / part).mkdir(parents=True)
        for level in levels:
            picture = np.full((8, 8, 3), (0, 0, level), np.uint8)
            cv2.imwrite(str(tmp_path / "parts" / part / f"{level}.png"), picture)
    return tmp_path / "parts"


def test_a_folder_gets_the_report_in_three_forms_and_the_heat_maps(
    red_bundle: Bundle, data: Path, tmp_path: Path, adedge: Adedge
) -> None:
    out = tmp_path / "new" / "report"
    call = ("benchmark", red_bundle.path, "--data", data, "-o", out, *QUICK)
    result = adedge(*call)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in out.iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
        "heat-maps.onnxruntime-fp32.jpg",
        "heat-maps.onnxruntime-int8.jpg",
    }
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert {name: found["flips"] for name, found in report["accuracy"].items()} == {
        "onnxruntime/fp32": 0,
        "onnxruntime/int8": 1,
    }
    assert report["command"] == " ".join(["adedge", *map(str, call)])
    for path in out.glob("*.jpg"):
        assert cv2.imread(str(path)) is not None
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines()}
    # Every anomalous picture scores higher than every good one; of 7 pictures one flips.
    assert rows["onnxruntime/int8"][2] == "1.0000"
    assert rows["onnxruntime/int8"][-3:] == ["1", "of", "7"]
    assert "Verdicts that differ from" in result.stderr
    assert result.stderr.splitlines()[-1] == f"wrote {out / 'report.html'}, report.md and report.json"
    assert Bundle.open(red_bundle.path).manifest == red_bundle.manifest  # which is left alone then


def test_without_a_folder_the_report_goes_into_the_bundle(red_bundle: Bundle, invoke: Invoke) -> None:
    result = invoke("benchmark", red_bundle.path, *QUICK)
    assert result.exit_code == 0, result.exception
    measured = Bundle.open(red_bundle.path)
    assert measured.verify() == []
    assert set(measured.manifest.files) - set(red_bundle.manifest.files) == {
        f"reports/report.{kind}" for kind in ("json", "md", "html")
    }
    assert set(measured.json("reports/report.json")["latency"]) == {"onnxruntime/fp32", "onnxruntime/int8"}
    assert "Verdicts are not compared with" in result.stderr


def test_a_signed_bundle_stays_signed_and_the_report_is_printed(
    red_bundle: Bundle, tmp_path: Path, invoke: Invoke
) -> None:
    key = create_key(tmp_path / "key")
    sign(red_bundle, tmp_path / "key")
    result = invoke("benchmark", red_bundle.path, *QUICK)
    assert result.exit_code == 0, result.exception
    assert f"{red_bundle.path} is signed, so the report is printed and not stored in it: give -o" in result.stderr
    assert "onnxruntime/int8" in result.stdout
    require(Bundle.open(red_bundle.path), key)
    assert Bundle.open(red_bundle.path).manifest == red_bundle.manifest
    assert invoke("benchmark", red_bundle.path, "-o", tmp_path / "out", *QUICK).exit_code == 0
    assert (tmp_path / "out" / "report.html").is_file()
    require(Bundle.open(red_bundle.path), key)


def test_a_read_only_bundle_is_told_of_before_anything_is_measured(
    red_bundle: Bundle, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    refused = invoke("benchmark", red_bundle.path, *QUICK)
    assert isinstance(refused.exception, BundleError)
    assert str(refused.exception) == (
        f"{red_bundle.path} cannot be written by this user: give a folder for the report with -o"
    )
    assert "benchmark: " not in refused.stderr  # no progress
    (tmp_path / "mine").mkdir()
    assert invoke("benchmark", red_bundle.path, "-o", tmp_path / "mine" / "new", *QUICK).exit_code == 0
    refused = invoke("benchmark", red_bundle.path, "-o", tmp_path / "new", *QUICK)
    assert isinstance(refused.exception, DataError)
    assert f"{tmp_path} is not writable): choose another place with -o" in str(refused.exception)
    assert "benchmark: " not in refused.stderr


def test_a_folder_that_cannot_be_is_told_and_nothing_is_left(
    red_bundle: Bundle, tmp_path: Path, invoke: Invoke
) -> None:
    (tmp_path / "file").write_text("a file")
    refused = invoke("benchmark", red_bundle.path, "-o", tmp_path / "file" / "report", *QUICK)
    assert isinstance(refused.exception, DataError)
    assert "the report cannot be written to" in str(refused.exception)
    assert "choose another place with -o" in str(refused.exception)
    assert "benchmark: " not in refused.stderr  # nothing was measured for it
    assert (tmp_path / "file").read_text() == "a file"


def test_engines_that_are_not_there_are_one_sentence(red_bundle: Bundle, tmp_path: Path, invoke: Invoke) -> None:
    refused = invoke("benchmark", red_bundle.path, "--precision", "fp16", "-o", tmp_path / "out", *QUICK)
    assert isinstance(refused.exception, EngineError)
    assert f"run 'adedge build-engine {red_bundle.path} --target onnxruntime' first" in str(refused.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(("--frames", "19"), "--frames"), (("--batch", "0"), "--batch"), (("--target", "abacus"), "abacus")],
    ids=["frames", "batch", "target"],
)
def test_a_wrong_call_exits_with_2(red_bundle: Bundle, invoke: Invoke, options: tuple[str, ...], sentence: str) -> None:
    result = invoke("benchmark", red_bundle.path, *options)
    assert result.exit_code == 2
    assert sentence in result.stderr
