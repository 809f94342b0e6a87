"""ONNX Runtime as a backend: in-place buffers, threads, and one sentence for each way a graph can be unusable."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from adedge.errors import EngineError, MissingDependency
from adedge.processors import physical_cores
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend, library_version


def graph(
    nodes: list[onnx.NodeProto] | None = None,
    shape: tuple[object, ...] = ("N", 2, 8, 9),
    dtype: int = TensorProto.FLOAT,
    output_shape: tuple[object, ...] | None = None,
    inputs: int = 1,
) -> bytes:
    """A graph of one input "frame" and outputs "a" = -frame, "b" = frame + frame."""
    nodes = nodes or [helper.make_node("Neg", ["frame"], ["a"]), helper.make_node("Add", ["frame", "frame"], ["b"])]
    names = ["frame", *(f"extra{i}" for i in range(inputs - 1))]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info(name, dtype, shape) for name in names],
            [helper.make_tensor_value_info(name, dtype, output_shape or shape) for name in ("a", "b")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return model.SerializeToString()


def test_outputs_are_written_in_place_for_every_n() -> None:
    backend = OnnxRuntimeBackend(graph(), batch=3, threads=1)
    frames = np.random.default_rng(0).random((3, 2, 8, 9), dtype=np.float32)
    addresses = [backend.input.ctypes.data, *(output.ctypes.data for output in backend.outputs)]
    for n in (1, 3, 2, 1):
        for output in backend.outputs:
            output[:] = np.nan
        backend.input[:] = frames + n
        backend.run(n)
        np.testing.assert_array_equal(backend.outputs[0][:n], -(frames[:n] + n))
        np.testing.assert_array_equal(backend.outputs[1][:n], 2 * (frames[:n] + n))
        assert np.isnan(backend.outputs[0][n:]).all()
    assert addresses == [backend.input.ctypes.data, *(output.ctypes.data for output in backend.outputs)]


def test_names_and_threads_are_known() -> None:
    backend = OnnxRuntimeBackend(graph(), threads=1)
    assert (backend.input_name, backend.output_names, backend.threads) == ("frame", ("a", "b"), 1)
    assert 1 <= physical_cores() <= len(__import__("os").sched_getaffinity(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"no graph", "cannot load the graph"),
        (lambda: graph(shape=("N", 2, "H", "W")), "fixed C, H and W"),
        (lambda: graph(shape=("N", 2, 8)), r"not \(N, C, H, W\)"),
        (lambda: graph(shape=(5, 2, 8, 9)), "exactly 5 frame"),
        (lambda: graph(dtype=TensorProto.DOUBLE), r"not tensor\(float\)"),
        (lambda: graph(inputs=2), "2 inputs"),
        (
            lambda: graph(
                nodes=[
                    helper.make_node("ReduceSum", ["frame"], ["a"], keepdims=0),
                    helper.make_node("Neg", ["frame"], ["b"]),
                ],
                output_shape=(),
            ),
            "cannot load|not float32",
        ),
    ],
    ids=["no onnx", "dynamic size", "three axes", "fixed batch", "float64", "two inputs", "output without batch"],
)
def test_unusable_graphs_are_refused_in_one_sentence(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        OnnxRuntimeBackend(make(), batch=1, threads=1)
    assert "\n" not in str(caught.value)


def test_weights_in_the_working_directory_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = numpy_helper.from_array(np.full((1, 2, 1, 1), 2, np.float32), "w")
    model = onnx.load_from_string(graph(nodes=[helper.make_node("Mul", ["frame", "w"], [n]) for n in ("a", "b")]))
    model.graph.initializer.append(weights)
    OnnxRuntimeBackend(model.SerializeToString(), threads=1).close()
    (tmp_path / "w.bin").write_bytes(weights.raw_data)
    set_external_data(model.graph.initializer[0], "w.bin")
    model.graph.initializer[0].ClearField("raw_data")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match="cannot load the graph: it keeps weights in other files"):
        OnnxRuntimeBackend(model.SerializeToString(), threads=1)


def test_a_closed_backend_refuses_to_run() -> None:
    with OnnxRuntimeBackend(graph(), threads=1) as backend:
        pass
    with pytest.raises(EngineError, match="closed"):
        backend.run(1)


def test_a_failure_while_running_names_onnx_runtime() -> None:
    # Reshape to 1 x 144 holds for one frame only: at batch 2 ONNX Runtime fails, not the loading.
    nodes = [
        helper.make_node("Constant", [], ["to"], value=helper.make_tensor("to", TensorProto.INT64, [4], [1, 2, 8, 9])),
        helper.make_node("Reshape", ["frame", "to"], ["a"]),
        helper.make_node("Neg", ["frame"], ["b"]),
    ]
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        OnnxRuntimeBackend(graph(nodes), batch=2, threads=1)


def test_without_onnx_runtime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install -e '\.\[onnxruntime\]'"):
        library_version()
