"""`adedge import`: from an ONNX file to a bundle, and one sentence for what it cannot be made of."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import Result

from adedge.bundle import Bundle
from adedge.errors import UsageError
from adedge.specs import Gaussian, InputSpec, Opening, Uniform

Adedge = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey noise; anomalous pictures have a bright square."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part in ("train/good", "test/good", "test/spot"):
        (root / part).mkdir(parents=True)
        for number in range(3):
            picture = rng.integers(0, 90, (16, 16, 3), np.uint8)
            if part == "test/spot":
                picture[4:9, 5:10] += 150
            cv2.imwrite(str(root / part / f"{number}.png"), picture)
    return root


def anomalib_like(path: Path, *, input_shape: tuple[object, ...] = ("n", 3, 16, 16)) -> Path:
    """A map and a score, called as anomalib's are: the mean of the channels, and its maximum."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["anomaly_map"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["anomaly_map"], ["pred_score"], axes=[2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [
            helper.make_tensor_value_info("pred_score", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["n", 1, "h", "w"]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_command(tmp_path: Path, data: Path, invoke: Invoke) -> None:
    path, bundle = anomalib_like(tmp_path / "m.onnx", input_shape=("n", 3, "h", "w")), tmp_path / "b.adedge"
    command = ["import", path, "-o", bundle, "--golden", data, "--map", "anomaly_map", "--filter", "gaussian:1.5"]

    assert "--input-size" in str(invoke(*command).exception)
    for wrong in (("--mean", "a,b"), ("--filter", "median:3"), ("--filter", "uniform:0"), ("--input-size", "16")):
        refused = invoke(*command, *wrong).exception
        assert isinstance(refused, UsageError)
        assert wrong[0] in str(refused)
    done = invoke(*command, "--input-size", "16x24", "--mean", "0.4,0.4,0.4", "--trained-on", data)
    assert done.exit_code == 0, done.exception
    manifest = Bundle.open(bundle).manifest
    assert (manifest.input.height, manifest.input.width, manifest.input.mean) == (16, 24, (0.4, 0.4, 0.4))
    assert manifest.score.filters == (Gaussian(sigma=1.5),)
    shown = invoke("inspect", bundle).stdout
    assert "imported from" in shown
    assert "m.onnx" in shown


def test_options_reach_the_specification(tmp_path: Path, data: Path, invoke: Invoke) -> None:
    result = invoke(
        *("import", anomalib_like(tmp_path / "m.onnx"), "-o", tmp_path / "b.adedge", "--golden", data),
        *("--map", "anomaly_map", "--color", "bgr", "--scale", "1", "--mean", "1,2,3", "--std", "4,5,6"),
        *("--filter", "uniform:3", "--filter", "opening:5", "--filter", "gaussian:0.5", "--reduce", "mean"),
    )
    assert result.exit_code == 0, result.exception
    manifest = Bundle.open(tmp_path / "b.adedge").manifest
    assert manifest.input == InputSpec(
        height=16, width=16, channels=3, color="bgr", scale=1, mean=(1, 2, 3), std=(4, 5, 6)
    )
    assert manifest.score.filters == (Uniform(size=3), Opening(size=5), Gaussian(sigma=0.5))
    assert manifest.score.reduce == "mean"
    assert "input 16 × 16 × 3 bgr; score from the map's mean" in result.stderr


def test_what_was_found_and_what_is_not_known_is_said(tmp_path: Path, data: Path, adedge: Adedge) -> None:
    output = tmp_path / "b.adedge"
    call = ("import", anomalib_like(tmp_path / "m.onnx"), "-o", output, "--golden", data, "--map", "anomaly_map")
    result = adedge(*call, "--score", "pred_score")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    said = result.stderr.splitlines()
    assert "warning: without --trained-on, thresholds hold only if the model was not trained on" in said[-3]
    assert said[-2:] == [
        "input 16 × 16 × 3 rgb; score from the model",
        f"wrote {output}; next: adedge export {output}",
    ]
    assert Bundle.open(output).verify() == []
    again = adedge(*call)
    assert again.returncode == 1
    assert again.stderr == f"adedge: {output} already holds a bundle: choose another name, or add --overwrite\n"
    assert Bundle.open(output).manifest.score.reduce == "output"  # still the first


def test_a_file_that_is_no_model_is_one_sentence_and_writes_nothing(tmp_path: Path, data: Path, adedge: Adedge) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"PK not a model")
    result = adedge("import", model, "-o", tmp_path / "b.adedge", "--golden", data)
    assert result.returncode == 1
    assert result.stderr.startswith(f"adedge: {model} cannot be read as ONNX")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [model]


def test_golden_pictures_have_to_be_named(tmp_path: Path, invoke: Invoke) -> None:
    result = invoke("import", anomalib_like(tmp_path / "m.onnx"), "-o", tmp_path / "b.adedge")
    assert result.exit_code == 2
    assert "--golden" in result.stderr
