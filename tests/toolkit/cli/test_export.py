"""`adedge export`: its table, what it says to do next, and refusals that leave the bundle as it was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import Result

from adedge.bundle import Bundle
from adedge.cli.export import print_graphs
from adedge.errors import BundleError, GateError
from adedge.manifest import Graph

Adedge = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]


def test_graphs_are_written_shown_and_what_comes_next_is_said(red_bundle: Bundle, adedge: Adedge) -> None:
    result = adedge("export", red_bundle.path, "--with-scoring")
    assert result.returncode == 0, result.stderr
    stems = ["model.fp16", "model.fp32", "scored.fp16", "scored.fp32"]
    rows = [line.split("│")[1:-1] for line in result.stdout.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == stems
    assert [row[1].strip() for row in rows] == ["17"] * 4
    assert [row[4].strip() for row in rows] == ["unknown", "0 of 4", "unknown", "0 of 4"]  # FP16 has no threshold yet
    exported = Bundle.open(red_bundle.path)
    assert set(exported.manifest.graphs) == set(stems)
    assert exported.verify() == []
    said = result.stderr.splitlines()
    absent = f"no INT8 graphs: {red_bundle.path} has no ranges.json: run 'adedge calibrate' first"
    assert any(line.startswith(f"warning: {absent}") for line in said)
    assert said[-1].endswith(f"; next: adedge calibrate {red_bundle.path} PICTURES")


def test_an_unknown_precision_exits_with_2(red_bundle: Bundle, adedge: Adedge) -> None:
    result = adedge("export", red_bundle.path, "--precision", "fp32,fp8")
    assert result.returncode == 2
    assert result.stderr == "adedge: unknown precision 'fp8': choose from fp32, fp16, int8\n"
    assert Bundle.open(red_bundle.path).manifest == red_bundle.manifest


def test_an_opset_that_is_too_old_is_a_wrong_call(red_bundle: Bundle, invoke: Invoke) -> None:
    result = invoke("export", red_bundle.path, "--opset", 16)
    assert result.exit_code == 2
    assert "--opset" in result.stderr


def test_a_graph_beyond_its_tolerance_is_refused_and_nothing_is_written(
    red_bundle: Bundle, graph_that_shows_red: Callable[[float], bytes], invoke: Invoke
) -> None:
    with red_bundle.edit() as draft:
        draft.write("imported.onnx", graph_that_shows_red(0.5))
    before = Bundle.open(red_bundle.path)
    refused = invoke("export", red_bundle.path)
    assert isinstance(refused.exception, GateError)
    assert "model.fp32.onnx differs from the model by" in str(refused.exception)
    assert refused.stdout == ""
    assert Bundle.open(red_bundle.path).manifest == before.manifest
    assert before.verify() == []


def imported_beyond_fp16(bundle: Bundle, graph: bytes) -> Bundle:
    """The bundle whose model multiplies by 1e5 and divides by it again: 1e5 is no FP16 number."""
    model = onnx.load_from_string(graph)
    model.graph.node[0].output[0] = "plain"
    model.graph.node.append(onnx.helper.make_node("Mul", ["plain", "large"], ["huge"], name="up"))
    model.graph.node.append(onnx.helper.make_node("Div", ["huge", "large"], ["map"], name="down"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1e5), "large"))
    with bundle.edit() as draft:
        draft.write("imported.onnx", model.SerializeToString())
    return Bundle.open(bundle.path)


def test_what_fp16_cannot_hold_keeps_nothing_else_from_being_written(
    red_bundle: Bundle, red_pictures: Path, graph_that_shows_red: Callable[[float], bytes], invoke: Invoke
) -> None:
    bundle = imported_beyond_fp16(red_bundle, graph_that_shows_red(1.0))
    exported = invoke("export", bundle.path, "--precision", "fp32,fp16")
    assert exported.exit_code != 0
    assert isinstance(exported.exception, GateError)
    assert exported.exception.exit_code == 1
    sentence = "'large' holds 1e+05, beyond FP16's 65504: leave fp16 out of --precision"
    assert str(exported.exception) == f"not written: model.fp16.onnx: {sentence}"
    assert "model.fp32" in exported.stdout
    assert set(Bundle.open(bundle.path).manifest.graphs) == {"model.fp32"}
    assert Bundle.open(bundle.path).verify() == []

    calibrated = invoke("calibrate", bundle.path, red_pictures, "--false-alarm-rate", 0.1)
    assert isinstance(calibrated.exception, GateError)
    assert str(calibrated.exception) == f"not written: model.fp16.onnx, model.int8-fp16.onnx: {sentence}"
    manifest = Bundle.open(bundle.path).manifest
    assert set(manifest.graphs) == {"model.fp32", "model.int8"}
    assert {name: one.pictures for name, one in manifest.thresholds.items()} == {
        "onnxruntime/fp32": 17,
        "onnxruntime/int8": 17,
    }
    assert Bundle.open(bundle.path).verify() == []


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path, invoke: Invoke) -> None:
    refused = invoke("export", tmp_path).exception
    assert isinstance(refused, BundleError)
    assert f"{tmp_path} is not a bundle" in str(refused)


def test_a_note_of_several_graphs_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    def graph(*notes: str) -> Graph:
        return Graph(file="", opset=17, inputs=(), outputs=(), with_scoring=False, weights_sha256="", notes=notes)

    print_graphs({"model.int8": graph("[x] stays in FP32"), "model.int8-fp16": graph("[x] stays in FP32", "more")})
    assert capsys.readouterr().err.splitlines() == [
        "model.int8, model.int8-fp16: [x] stays in FP32",
        "model.int8-fp16: more",
    ]
