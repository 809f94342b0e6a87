"""`adedge export`: its table, what it says to do next, and refusals that leave the bundle as it was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from adedge.bundle import Bundle, Graph
from adedge.cli.export import print_graphs
from adedge.errors import BundleError, GateError

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
