"""Q/DQ placement: against ONNX Runtime's own quantiser, NumPy's rounding, and TensorRT-RTX's parser and builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from adedge.calibration.qdq import first_and_last, int8_from_fp32, quantisable_nodes
from adedge.calibration.ranges import Ranges
from adedge.errors import DataError, EngineError
from adedge.export.graphs import graph_files
from adedge.specs import InputSpec

SPEC = InputSpec(height=16, width=16, channels=3, color="rgb")
FRAMES = np.random.default_rng(0).random((6, 3, 16, 16), dtype=np.float32)


def test_what_is_quantised(fp32: bytes, ranges: Ranges) -> None:
    model = onnx.load_model_from_string(int8_from_fp32(fp32, ranges, ()))
    made_by = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 5
    for node in convolutions:
        assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        assert node.input[2] not in made_by  # the bias is a float constant
    (transposed,) = (node for node in model.graph.node if node.op_type == "ConvTranspose")
    assert made_by[transposed.input[0]].op_type != "DequantizeLinear"
    # The residual comes from a pair, the convolution beside it reaches the Add untouched.
    residual = next(
        node for node in model.graph.node if node.op_type == "Add" and made_by[node.input[1]].op_type == "Conv"
    )
    assert made_by[residual.input[0]].op_type == "DequantizeLinear"
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_zero_point"):
            assert tensor.data_type == onnx.TensorProto.INT8
            assert not numpy_helper.to_array(tensor).any()


def test_weights_round_as_numpy_does(fp32: bytes, ranges: Ranges) -> None:
    model = onnx.load_model_from_string(int8_from_fp32(fp32, ranges, ()))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = constants["first.weight"]
    scale = constants["first.weight_scale"]
    np.testing.assert_allclose(scale, np.abs(weights).max(axis=(1, 2, 3)) / 127, rtol=1e-6)


def test_close_to_fp32_and_no_worse_than_onnxruntime_quantiser(
    fp32: bytes, ranges: Ranges, tmp_path: Path, run: Callable[..., np.ndarray]
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.frames = iter(FRAMES)

        def get_next(self) -> dict[str, np.ndarray] | None:
            frame = next(self.frames, None)
            return None if frame is None else {"frame": frame[None]}

    (tmp_path / "fp32.onnx").write_bytes(fp32)
    quantize_static(
        tmp_path / "fp32.onnx",
        tmp_path / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Add"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": ["Conv", "Add"],
        },
    )
    reference = run(fp32)
    ours = np.abs(run(int8_from_fp32(fp32, ranges, ())) - reference).max()
    theirs = np.abs(run((tmp_path / "int8.onnx").read_bytes()) - reference).max()
    assert 0 < ours < 0.05 * np.abs(reference).max()
    assert ours < 2 * theirs


def test_float_nodes_leave_the_graph_as_it_was(fp32: bytes, ranges: Ranges, run: Callable[..., np.ndarray]) -> None:
    untouched = int8_from_fp32(fp32, ranges, quantisable_nodes(fp32))
    np.testing.assert_array_equal(run(untouched), run(fp32))
    with pytest.raises(EngineError, match="no node 'nowhere'"):
        int8_from_fp32(fp32, ranges, ["nowhere"])
    with pytest.raises(DataError, match="no range for"):
        int8_from_fp32(fp32, ranges.model_copy(update={"tensors": {}}), ())


def test_first_and_last_convolutions(fp32: bytes) -> None:
    model = onnx.load_model_from_string(fp32)
    by_weight = {node.input[1]: node.name for node in model.graph.node if node.op_type == "Conv"}
    first = next(node.name for node in model.graph.node if "frame" in node.input)
    assert first_and_last(fp32) == {first, by_weight["tail.weight"]}


def test_every_graph_is_built_by_tensorrt_rtx(fp32: bytes, ranges: Ranges) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for x86-64 Linux and Windows")
    from adedge.export.builders import BuildOptions, Source
    from adedge.export.builders.tensorrt_rtx import build

    files = {f"model.{kind}": data for kind, data in graph_files(fp32, ("fp32", "fp16", "int8"), ranges).items()}
    for precision, stems in {
        "fp32": ["model.fp32"],
        "fp16": ["model.fp16"],
        "int8": ["model.int8", "model.int8-fp16"],
    }.items():
        for stem in stems:
            source = Source(graphs={stem: files[stem]}, precision=precision, shape=SPEC.shape, batch=(1, 2, 4))  # type: ignore[arg-type]
            assert build(source, BuildOptions(compute_capabilities=("8.6",))).graph == stem
