"""FP16 by casts: types in the graph, and rounding against PyTorch's own half precision."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from adedge.errors import EngineError
from adedge.export.fp16 import fp16_from_fp32, rounded_to_fp16
from adedge.export.fp32 import graph_from_module
from adedge.specs import InputSpec

SPEC = InputSpec(height=16, width=16, channels=3, color="rgb")
FRAMES = np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(8, 1, 3, stride=2, padding=1),
    ).eval()


@pytest.fixture(scope="module")
def fp32() -> bytes:
    return graph_from_module(network(), SPEC, ("map",))


def run(graph: bytes) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    result: np.ndarray = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run(
        None, {"frame": FRAMES}
    )[0]
    return result


def test_inputs_and_outputs_stay_fp32_and_all_between_is_fp16(fp32: bytes) -> None:
    model = onnx.load_model_from_string(fp16_from_fp32(fp32))
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert types == {"frame": TensorProto.FLOAT, "map": TensorProto.FLOAT}
    assert {value.type.tensor_type.elem_type for value in model.graph.value_info} == {TensorProto.FLOAT16}
    assert [node.op_type for node in model.graph.node].count("Cast") == 2
    weights = [tensor for tensor in model.graph.initializer if tensor.name.endswith("weight")]
    assert weights
    assert all(tensor.data_type == TensorProto.FLOAT16 for tensor in weights)


def test_rounding_every_activation_is_as_far_from_fp32_as_pytorch_half(fp32: bytes) -> None:
    exact = run(fp32)
    with torch.inference_mode():
        half = network().half()(torch.from_numpy(FRAMES).half()).float().numpy()
    emulated = run(rounded_to_fp16(fp32))
    assert 0 < np.abs(run(fp16_from_fp32(fp32)) - exact).max() < 5e-3
    ratio = np.abs(emulated - exact).mean() / np.abs(half - exact).mean()
    assert 0.5 < ratio < 2


def test_an_input_passed_on_is_not_rounded() -> None:
    class Passing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, self.net(x)

    graph = graph_from_module(Passing(), SPEC, ("image_a", "image_b"))
    for made in (fp16_from_fp32(graph), rounded_to_fp16(graph)):
        np.testing.assert_array_equal(run(made), FRAMES)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_constants_that_are_not_finite_stay_what_they_are(value: float) -> None:
    """FP16 has NaN and infinity too. No result depends on this one, as in graphs with an unused mask."""
    info = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Greater", ["frame", "big"], ["never"]),
        onnx.helper.make_node("Where", ["never", "odd", "frame"], ["map"]),
    ]
    constants = [numpy_helper.from_array(np.array(v, np.float32), name) for name, v in (("odd", value), ("big", 9.0))]
    shape = (2, 3, 16, 16)
    ends = [info(name, TensorProto.FLOAT, shape) for name in ("frame", "map")]
    graph = onnx.helper.make_graph(nodes, "masked", ends[:1], ends[1:], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    made = fp16_from_fp32(model.SerializeToString())
    kept = {tensor.name: tensor for tensor in onnx.load_model_from_string(made).graph.initializer}["odd"]
    assert kept.data_type == TensorProto.FLOAT16
    np.testing.assert_array_equal(numpy_helper.to_array(kept), np.float16(value))
    for graph_bytes in (made, rounded_to_fp16(model.SerializeToString())):
        np.testing.assert_allclose(run(graph_bytes), FRAMES, atol=np.finfo(np.float16).eps)


def test_a_weight_beyond_fp16_is_named(fp32: bytes) -> None:
    model = onnx.load_model_from_string(fp32)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("weight"))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = 1e5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(EngineError, match=rf"'{tensor.name}' holds 1e\+05, beyond FP16's 65504"):
        fp16_from_fp32(model.SerializeToString())
