"""`adedge build-engine`: what it shows of an engine, its gates, and calls that cannot be."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from typer.testing import Result

from adedge.bundle import Bundle
from adedge.cli.build_engine import build_engine_command, parse_batch
from adedge.errors import BundleError, EngineError, UsageError
from adedge.export.graphs import export_graphs
from adedge.runtime.engines import read_record
from adedge.specs import EngineKey

Adedge = Callable[..., subprocess.CompletedProcess[str]]
Invoke = Callable[..., Result]


@pytest.fixture
def bundle(red_bundle: Bundle) -> Bundle:
    """Exported in FP32 and FP16, with neither engines nor thresholds."""
    with red_bundle.edit() as draft:
        for name in ("engines", "model.fp32.onnx", "model.int8.onnx"):
            draft.remove(name)
        draft.manifest = draft.manifest.replace(thresholds={})
    return export_graphs(Bundle.open(red_bundle.path), ("fp32", "fp16"))[0]


def test_the_command_shows_what_it_built(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    build_engine_command(bundle.path, "onnxruntime", "fp32", batch="1, 2,4")
    shown = capsys.readouterr()
    assert "onnxruntime/fp32" in shown.out
    assert "model.fp32.onnx" in shown.out
    assert "no decision threshold for onnxruntime/fp32" in shown.err.replace("\n", " ")
    assert read_record(Bundle.open(bundle.path), EngineKey("onnxruntime", "fp32")).batch == (1, 2, 4)


@pytest.mark.parametrize("text", ["1", "1,2", "1,2,x", "1,2,3,4", "1,-2,3"])
def test_a_batch_that_is_no_three_numbers_is_a_wrong_call(text: str) -> None:
    with pytest.raises(UsageError, match="three numbers MIN,OPT,MAX"):
        parse_batch(text)


def test_a_batch_is_read_with_or_without_spaces() -> None:
    assert parse_batch("1,4,8") == parse_batch(" 1, 4 ,8") == (1, 4, 8)


def test_facts_of_the_engine_are_shown(bundle: Bundle, adedge: Adedge) -> None:
    result = adedge("build-engine", bundle.path, "--target", "onnxruntime", "--precision", "fp16")
    assert result.returncode == 0, result.stderr
    rows = {
        name.strip(): value.strip()
        for name, value in (line.split("│")[1:3] for line in result.stdout.splitlines() if line.startswith("│"))
    }
    built = Bundle.open(bundle.path)
    record = read_record(built, EngineKey("onnxruntime", "fp16"))
    assert rows["file"].startswith("engines/onnxruntime-fp16/engine.onnx (0.00 MB)")
    assert rows["graph"] == "model.fp16.onnx"
    assert rows["built"].startswith("the exported graph, computed in FP32 by a CPU, ")
    assert rows["batch"] == "1, 1, 1"
    assert rows["verdict flips"] == "unknown"  # without thresholds there are no verdicts
    assert rows["AUROC change"] == "+0.0000"
    assert record.self_test is not None
    assert float(rows["map error"]) == pytest.approx(record.self_test.map_error, rel=0.01, abs=1e-12)
    assert f"fit one with 'adedge calibrate {bundle.path} PICTURES'" in result.stderr
    assert built.verify() == []


def test_a_gate_that_is_not_passed_exits_with_1_and_writes_nothing(bundle: Bundle, adedge: Adedge) -> None:
    call = ("build-engine", bundle.path, "--target", "onnxruntime", "--precision", "fp32")
    result = adedge(*call, "--max-flips", 0)
    assert result.returncode == 1
    assert "--max-flips cannot be checked: " in result.stderr
    assert result.stderr.splitlines()[-1].startswith("adedge: ")
    assert result.stdout == ""
    assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_an_engine_of_a_graph_that_is_not_there_says_how_to_make_it(bundle: Bundle, invoke: Invoke) -> None:
    refused = invoke("build-engine", bundle.path, "--target", "onnxruntime", "--precision", "int8").exception
    assert isinstance(refused, BundleError)
    assert "has no model.int8.onnx: run 'adedge export' (and 'adedge calibrate' for INT8) first" in str(refused)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--batch", "1,2"), "--batch 1,2: give three numbers MIN,OPT,MAX, such as 1,4,8"),
        (("--batch", "4,2,1"), "--batch 4,2,1: give MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX"),
        (("--dla-core", "0"), "--dla-core: not an option of --target onnxruntime"),
        (("--compute-capability", "8.6, 8.9"), "--compute-capability: not an option of --target onnxruntime"),
        (("--timing-cache", "cache", "--opt-level", "3"), "--opt-level, --timing-cache: not an option of"),
        (("--version-compatible", "--tf32"), "--tf32, --version-compatible: not an option of"),
    ],
)
def test_options_that_cannot_be_are_wrong_calls(
    bundle: Bundle, invoke: Invoke, options: tuple[str, ...], sentence: str
) -> None:
    refused = invoke("build-engine", bundle.path, "--target", "onnxruntime", "--precision", "fp32", *options).exception
    assert isinstance(refused, UsageError)
    assert sentence in str(refused)
    assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_gpus_that_cannot_run_the_network_are_left_out_and_told_of(
    red_bundle: Bundle, graph_that_shows_red: Callable[[float], bytes], invoke: Invoke
) -> None:
    """TensorRT-RTX has no FP32 matrix product for Turing, compute capability 7.5."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for x86-64 Linux and Windows")
    model = onnx.load_from_string(graph_that_shows_red(1.0))
    model.graph.node[0].output[0] = "plain"
    model.graph.node.append(onnx.helper.make_node("MatMul", ["plain", "same"], ["map"], name="product"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "same"))
    with red_bundle.edit() as draft:
        draft.write("imported.onnx", model.SerializeToString())
    export_graphs(Bundle.open(red_bundle.path), ("fp32",))
    key = EngineKey("tensorrt-rtx", "fp32")
    call = ("build-engine", red_bundle.path, "--target", key.target, "--precision", key.precision)

    result = invoke(*call)
    assert result.exit_code == 0, result.exception
    assert "leave compute capability 7.5 out with --compute-capability 8.0,8.6," in result.stderr
    assert "7.5" not in read_record(Bundle.open(red_bundle.path), key).compute_capabilities

    refused = invoke(*call, "--compute-capability", "7.5,8.6").exception  # 7.5 was asked for
    assert isinstance(refused, EngineError)
    assert str(refused) == (
        "the engine was not built for compute capability 7.5 (see above): it runs on GPUs of 8.6 only"
    )
    assert read_record(Bundle.open(red_bundle.path), key).compute_capabilities == ("8.6",)


def test_a_gate_of_auroc_is_passed_by_the_model_itself(bundle: Bundle, invoke: Invoke) -> None:
    call = ("build-engine", bundle.path, "--target", "onnxruntime", "--precision", "fp32")
    result = invoke(*call, "--max-auroc-drop", 0)
    assert result.exit_code == 0, result.exception
    assert invoke(*call, "--max-auroc-drop", -0.1).exit_code == 2
