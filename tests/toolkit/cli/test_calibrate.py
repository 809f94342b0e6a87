"""`adedge calibrate`: thresholds of good pictures, the sentences beside them, and refusals that change nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import Result

from adedge.bundle import Bundle
from adedge.data.datasets import load_dataset
from adedge.errors import DataError, UsageError
from adedge.export.calibrate import split_pictures

Adedge = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]


def test_graphs_and_thresholds_are_written_and_shown(red_bundle: Bundle, red_pictures: Path, adedge: Adedge) -> None:
    result = adedge("calibrate", red_bundle.path, red_pictures, "--false-alarm-rate", 0.1, "--precision", "fp16,int8")
    assert result.returncode == 0, result.stderr
    manifest = Bundle.open(red_bundle.path).manifest
    assert set(manifest.graphs) == {"model.fp32", "model.fp16", "model.int8", "model.int8-fp16"}
    # Of 25 pictures 9 are needed at this rate; half of the other 16 go to INT8.
    assert "17 good pictures for thresholds, 8 others for INT8; 0 training pictures left out" in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"next: adedge build-engine {red_bundle.path} ")
    parts = split_pictures(red_bundle, load_dataset(str(red_pictures)), 0.1)
    lowest, *_, second, highest = sorted(int(sample.read()[0, 0, 2]) for sample in parts.thresholds)
    # The 17th of 17, and above it half its distance to the one below, but no more than a tenth of the range.
    expected = highest + min((highest - second) / 2, (highest - lowest) / 10)
    rows = {
        name.strip(): value.strip()
        for name, value, *_ in (line.split("│")[1:-1] for line in result.stdout.splitlines() if line.startswith("│"))
    }
    for precision in ("fp32", "fp16", "int8"):
        fitted = manifest.thresholds[f"onnxruntime/{precision}"]
        assert (fitted.pictures, fitted.false_alarm_rate) == (17, 0.1)
        # Every score is a picture's level / 255; how INT8 and FP16 round them is small.
        assert fitted.value * 255 == pytest.approx(expected, abs=1)
        assert rows[f"onnxruntime/{precision}"] == f"{fitted.value:.5f}"


def test_too_few_pictures_are_refused_and_nothing_is_written(
    red_bundle: Bundle, red_pictures: Path, adedge: Adedge
) -> None:
    result = adedge("calibrate", red_bundle.path, red_pictures)
    assert result.returncode == 1
    assert "needs at least 99 good pictures" in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert Bundle.open(red_bundle.path).manifest == red_bundle.manifest
    assert [path.name for path in red_bundle.path.parent.iterdir() if "red" in path.name] == ["red.adedge"]


def test_thresholds_alone_are_those_of_the_engines(red_bundle: Bundle, red_pictures: Path, invoke: Invoke) -> None:
    result = invoke("calibrate", red_bundle.path, red_pictures, "--thresholds-only")
    assert result.exit_code == 0, result.exception
    said = result.stderr
    assert "25 good pictures for thresholds; 0 training pictures left out" in said
    assert "the threshold of onnxruntime/fp32 was fitted on other pictures or for another rate" in said
    assert f"next: adedge prove {red_bundle.path}" in said
    # The rate of the bundle's own threshold, 0.1: between level 235, the 24th of 25, and the last.
    values = {name: one.value for name, one in Bundle.open(red_bundle.path).manifest.thresholds.items()}
    assert values == {
        "onnxruntime/fp32": pytest.approx(240 / 255, abs=1e-6),
        "onnxruntime/int8": pytest.approx(0.92 * 240 / 255, abs=1e-6),
    }
    assert Bundle.open(red_bundle.path).manifest.graphs == {}


def test_golden_frames_left_out_are_counted(red_bundle: Bundle, red_pictures: Path, invoke: Invoke) -> None:
    """The bundle's golden frames have levels 10, 60, 200 and 240; the pictures 5, 15, ..., and now 60."""
    cv2.imwrite(str(red_pictures / "060.png"), np.full((8, 8, 3), (255 - 60, 0, 60), np.uint8))
    result = invoke("calibrate", red_bundle.path, red_pictures, "--thresholds-only")
    assert result.exit_code == 0, result.exception
    assert "25 good pictures for thresholds; 0 training pictures left out, and 1 golden frame\n" in result.stderr


def test_an_unreadable_picture_is_skipped_by_name_or_refused(
    red_bundle: Bundle, red_pictures: Path, invoke: Invoke
) -> None:
    (red_pictures / "[b] broken.png").write_bytes(b"no picture")
    call = ("calibrate", red_bundle.path, red_pictures, "--thresholds-only")
    refused = invoke(*call, "--strict").exception
    assert isinstance(refused, DataError)
    assert "[b] broken.png" in str(refused)
    assert Bundle.open(red_bundle.path).manifest == red_bundle.manifest
    result = invoke(*call)
    assert result.exit_code == 0, result.exception
    said = result.stderr
    assert "warning: " in said
    assert "[b] broken.png" in said
    assert "25 good pictures" in said


@pytest.mark.parametrize(
    "options", [("--method", "median"), ("--false-alarm-rate", "1.5")], ids=["unknown method", "rate above 1"]
)
def test_a_wrong_call_names_the_option(
    red_bundle: Bundle, red_pictures: Path, invoke: Invoke, options: tuple[str, ...]
) -> None:
    result = invoke("calibrate", red_bundle.path, red_pictures, *options)
    assert result.exit_code == 2
    assert options[0] in result.stderr


def test_an_unknown_precision_lists_the_known_ones(red_bundle: Bundle, red_pictures: Path, invoke: Invoke) -> None:
    refused = invoke("calibrate", red_bundle.path, red_pictures, "--precision", "int4").exception
    assert isinstance(refused, UsageError)
    assert str(refused) == "unknown precision 'int4': choose from fp32, fp16, int8"
