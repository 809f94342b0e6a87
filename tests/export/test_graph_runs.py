"""Runs of graphs built by hand: their batches, their deadline, and what simplifying leaves."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from adedge.errors import EngineError, MissingDependency
from adedge.export.graph_runs import run_graph, simplify

PATH = Path("folder/m.onnx")
FRAMES = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)


def model(nodes: list[onnx.NodeProto], output: str, constants: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """A graph with the input "x" (N, 1, 1, 1), of opset 17, that also imports a domain which it does not use."""
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 1, 1])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def doubled() -> bytes:
    return model([helper.make_node("Add", ["x", "x"], ["y"])], "y").SerializeToString()


def endless() -> bytes:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["go_on"]), helper.make_node("Neg", ["before"], ["after"])],
        "body",
        [info("number", TensorProto.INT64, []), info("going", TensorProto.BOOL, []), info("before", 1, None)],
        [info("go_on", TensorProto.BOOL, []), info("after", TensorProto.FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)
    return model([loop], "y", {"true": np.array(True)}).SerializeToString()


def slow_constant() -> bytes:
    products = [helper.make_node("MatMul", [f"c{n}", "c0"], [f"c{n + 1}"]) for n in range(200)]
    nodes = [
        helper.make_node("ConstantOfShape", ["side"], ["c0"]),
        *products,
        helper.make_node("ReduceMax", ["c200"], ["large"], keepdims=0),
        helper.make_node("Add", ["x", "large"], ["y"]),
    ]
    return model(nodes, "y", {"side": np.array([1500, 1500])}).SerializeToString()


def test_frames_run_in_batches_and_an_incomplete_one_is_skipped() -> None:
    runs = run_graph(PATH, doubled(), FRAMES, batch=2, timeout_s=60)
    assert [[values.ravel().tolist() for values in outputs] for outputs in runs] == [[[0.0, 2.0]], [[4.0, 6.0]]]
    assert len(run_graph(PATH, doubled(), FRAMES, batch=1, timeout_s=60)) == 5


@pytest.mark.parametrize(("batch", "frames"), [(1, "one frame"), (5, "5 frames")])
def test_a_run_beyond_its_deadline_is_ended_and_leaves_no_thread(batch: int, frames: str) -> None:
    threads, started = threading.active_count(), time.monotonic()
    with pytest.raises(EngineError, match=rf"m\.onnx takes longer than 0\.3 s for {frames}: .* raise --timeout"):
        run_graph(PATH, endless(), FRAMES, batch=batch, timeout_s=0.3)
    assert time.monotonic() - started < 10
    assert threading.active_count() <= threads


def test_unoptimised_constants_are_computed_under_the_deadline_too() -> None:
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"takes longer than 0\.5 s"):
        run_graph(PATH, slow_constant(), FRAMES, batch=1, timeout_s=0.5, unoptimised=True)
    assert time.monotonic() - started < 10


def test_what_cannot_be_loaded_or_run_is_one_line() -> None:
    unknown = model([helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")], "y").SerializeToString()
    reshape = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    unfit = model(reshape, "y", {"shape": np.array([7, 7])}).SerializeToString()
    for graph, word in ((b"no graph", "cannot run"), (unknown, "Frobnicate"), (unfit, "Reshape|reshape")):
        with pytest.raises(EngineError, match=word) as refused:
            run_graph(PATH, graph, FRAMES, batch=1, timeout_s=60)
        assert str(refused.value).startswith(f"ONNX Runtime cannot run {PATH}: ")
        assert "\n" not in str(refused.value)


def test_simplifying_folds_constants_and_drops_opsets_without_nodes() -> None:
    nodes = [
        helper.make_node("Mul", ["two", "three"], ["six"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Add", ["same", "six"], ["y"]),
    ]
    constants = {"two": np.array(2, np.float32), "three": np.array(3, np.float32)}
    simplified = simplify(model(nodes, "y", constants))
    assert [node.op_type for node in simplified.graph.node] == ["Add"]
    assert {entry.domain for entry in simplified.opset_import} == {""}
    (outputs,) = run_graph(PATH, simplified.SerializeToString(), FRAMES, batch=5, timeout_s=60)
    np.testing.assert_array_equal(outputs[0], FRAMES + 6)


def test_simplifying_merges_batch_normalisation_into_the_convolution() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["y"], epsilon=0.0),
    ]
    values = {"w": 3.0, "scale": 2.0, "shift": 1.0, "mean": 4.0, "variance": 0.25}
    constants = {name: np.full((1, 1, 1, 1) if name == "w" else (1,), v, np.float32) for name, v in values.items()}
    simplified = simplify(model(nodes, "y", constants))
    assert [node.op_type for node in simplified.graph.node] == ["Conv"]
    (outputs,) = run_graph(PATH, simplified.SerializeToString(), FRAMES, batch=5, timeout_s=60)
    np.testing.assert_allclose(outputs[0], (3 * FRAMES - 4) / 0.5 * 2 + 1, atol=1e-5)


def test_a_graph_that_cannot_be_simplified_is_one_line() -> None:
    with pytest.raises(EngineError, match="ONNX Runtime cannot load the graph: .*Frobnicate") as refused:
        simplify(model([helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")], "y"))
    assert "\n" not in str(refused.value)


def test_without_onnx_runtime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails
    with pytest.raises(MissingDependency, match="onnxruntime"):
        run_graph(PATH, doubled(), FRAMES, batch=1, timeout_s=60)
