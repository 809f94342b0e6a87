"""Plans really built by TensorRT-RTX, which needs no GPU for it: NVIDIA's parser and builder accept the graphs."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from adedge.errors import EngineError, MissingDependency, UsageError
from adedge.export.builders import BuildOptions, Source
from adedge.export.builders.tensorrt_rtx import build, refused_capabilities
from adedge.specs import Precision

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for x86-64 Linux and Windows")

SHAPE = (3, 32, 32)


def initializer(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)


def model(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], opset: int = 17) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, ("N", *SHAPE))],
        [helper.make_tensor_value_info("image_a", TensorProto.FLOAT, ("N", 4, 32, 32))],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def fp32() -> bytes:
    return model(
        [helper.make_node("Conv", ["frame", "w"], ["image_a"], pads=[1, 1, 1, 1])], [initializer("w", weights())]
    )


def fp16() -> bytes:
    return model(
        [
            helper.make_node("Cast", ["frame"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Conv", ["half", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Cast", ["c"], ["image_a"], to=TensorProto.FLOAT),
        ],
        [initializer("w", weights().astype(np.float16))],
    )


def int8(zero_point: int = 0) -> bytes:
    q = np.clip(np.round(weights() / 0.03), -127, 127).astype(np.int8)
    return model(
        [
            helper.make_node("QuantizeLinear", ["frame", "s", "z"], ["qx"]),
            helper.make_node("DequantizeLinear", ["qx", "s", "z"], ["x"]),
            helper.make_node("DequantizeLinear", ["q", "sw", "zw"], ["w"], axis=0),
            helper.make_node("Conv", ["x", "w"], ["image_a"], pads=[1, 1, 1, 1], name="first/conv"),
        ],
        [
            initializer("q", q),
            initializer("s", np.float32(0.01)),
            initializer("z", np.int8(zero_point)),
            initializer("sw", np.full(4, 0.03, np.float32)),
            initializer("zw", np.zeros(4, np.int8)),
        ],
    )


GRAPHS = {"model.fp32": fp32(), "model.fp16": fp16(), "model.int8": int8()}


def source(precision: Precision, **graphs: bytes) -> Source:
    return Source(graphs=graphs or GRAPHS, precision=precision, shape=SHAPE, batch=(1, 2, 4))


@pytest.mark.parametrize(
    ("precision", "graph", "attempts"),
    [("fp32", "model.fp32", 0), ("fp16", "model.fp16", 0), ("int8", "model.int8", 1)],
)
def test_each_precision_builds(precision: Precision, graph: str, attempts: int) -> None:
    built = build(source(precision), BuildOptions())
    assert len(built.plan) > 1000
    assert built.graph == graph
    assert len(built.attempts) == attempts
    assert (built.input.name, built.input.shape) == ("frame", SHAPE)
    assert [(tensor.name, tensor.shape) for tensor in built.outputs] == [("image_a", (4, 32, 32))]
    assert built.compute_capabilities == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def test_the_same_graph_gives_the_same_bytes_and_another_capability_others() -> None:
    plans = [build(source("fp32"), BuildOptions(compute_capabilities=(c,))) for c in ("8.9", "8.9", "8.6")]
    assert plans[0].plan == plans[1].plan != plans[2].plan
    assert plans[2].compute_capabilities == ("8.6",)


def fp32_with_matrix_product() -> bytes:
    """A network that Turing cannot run: it has no FP32 matrix product in TensorRT-RTX."""
    return model(
        [
            helper.make_node("Conv", ["frame", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("MatMul", ["c", "m"], ["image_a"], name="product"),
        ],
        [initializer("w", weights()), initializer("m", np.eye(32, dtype=np.float32) + np.float32(0.5))],
    )


def test_gpus_that_cannot_run_a_network_are_named_and_the_others_are_built_for() -> None:
    graph = {"model.fp32": fp32_with_matrix_product()}
    built = build(source("fp32", **graph), BuildOptions())
    assert built.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    (attempt,) = built.attempts
    assert "Turing" in attempt
    assert attempt.endswith("; leave compute capability 7.5 out with --compute-capability 8.0,8.6,8.9,12.0,12.1")
    some = build(source("fp32", **graph), BuildOptions(compute_capabilities=("7.5", "8.6")))
    assert some.compute_capabilities == ("8.6",)
    with pytest.raises(EngineError, match=r"Turing .*leave compute capability 7.5 out with --compute-capability 8.0,"):
        build(source("fp32", **graph), BuildOptions(compute_capabilities=("7.5",)))


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ("Cannot compile operation 'MatMul_1' for Turing (SM75): FP32 GEMM is not supported", {"7.5"}),
        ("no kernel for sm_120 nor for SM 86, SM89", {"8.9", "12.0"}),
        ("not for SM87", set()),
        ("node 'transform75': unsupported", set()),
    ],
)
def test_refused_gpus_are_those_that_the_builder_names(message: str, refused: set[str]) -> None:
    assert refused_capabilities(message, ("7.5", "8.6", "8.9", "12.0")) == refused


@pytest.mark.parametrize("capability", ["8.7", "11.0", "9.0", "ampere"])
def test_a_jetsons_capability_is_refused_with_the_way_to_go(capability: str) -> None:
    with pytest.raises(UsageError, match=r"builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; a Jetson's engine is built on"):
        build(source("fp32"), BuildOptions(compute_capabilities=(capability,)))


def test_a_graph_with_a_zero_point_is_refused_in_one_line() -> None:
    with pytest.raises(EngineError, match=r"cannot parse model.int8.onnx: node") as caught:
        build(source("int8", **{"model.int8": int8(zero_point=3)}), BuildOptions())
    assert "\n" not in str(caught.value)


def test_another_size_than_the_detectors_is_refused() -> None:
    with pytest.raises(EngineError, match=r"the graph takes \(3, 32, 32\), the detector \(3, 64, 64\)"):
        build(replace(source("fp32"), shape=(3, 64, 64)), BuildOptions())


def test_progress_is_reported() -> None:
    steps: list[tuple[int, int, str]] = []
    build(source("fp32"), BuildOptions(), lambda *step: steps.append(step))
    assert steps
    assert all(0 < done <= total and text for done, total, text in steps)


def test_without_tensorrt_rtx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependency, match=r"pip install -e '\.\[rtx\]'"):
        build(source("fp32"), BuildOptions())
