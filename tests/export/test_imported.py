"""Detectors that come as ONNX: small graphs built by hand or by PyTorch, whose results are known otherwise."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from torch.nn import functional as F
from typer.testing import CliRunner

from adedge.bundle import Bundle
from adedge.calibration.sensitivity import Limits
from adedge.cli import app, benchmark, import_, inspect
from adedge.data.datasets import Dataset, load_dataset
from adedge.data.pictures import network_input
from adedge.errors import AdedgeError, BundleError, DataError, EngineError, GateError, UsageError
from adedge.export.build import build_engine
from adedge.export.calibrate import calibrate
from adedge.export.graphs import export_graphs
from adedge.export.imported import Description, detector_from_onnx, import_model
from adedge.runtime.engines import load_engine
from adedge.scoring import gaussian_filter
from adedge.specs import EngineKey, Gaussian, InputSpec

torch.set_num_threads(1)
SIZE = 16
COMMANDS = (import_, benchmark, inspect)  # imported, they have added their commands to `app`


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey noise; anomalous pictures have a bright square."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder, count, bright in (("train/good", 12, False), ("calibration/good", 24, False), ("test/good", 4, False)):
        _write(root / folder, count, bright, rng)
    _write(root / "test/spot", 4, True, rng)
    return root


def _write(folder: Path, count: int, bright: bool, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        picture = rng.integers(0, 90, (SIZE, SIZE, 3)).astype(np.uint8)
        if bright:
            picture[4:9, 5:10] += 150
        cv2.imwrite(str(folder / f"{number:03}.png"), picture)


@pytest.fixture(scope="module")
def dataset(data: Path) -> Dataset:
    return load_dataset(str(data))


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    outputs: list[tuple[str, int, list[Any]]],
    *,
    input_shape: tuple[Any, ...] = ("n", 3, SIZE, SIZE),
    input_type: int = TensorProto.FLOAT,
    constants: dict[str, np.ndarray] | None = None,
    inputs: int = 1,
    opset: int = 17,
) -> Path:
    """An ONNX file whose first input is "x"."""
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info(name, input_type, input_shape) for name in ("x", "y", "z")[:inputs]],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(values, name) for name, values in (constants or {}).items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)], ir_version=8
    )
    onnx.save(model, path)
    return path


def mean_map() -> list[onnx.NodeProto]:
    """ "m": the mean of the channels (N, 1, H, W)."""
    return [helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1)]


MAP = ("m", TensorProto.FLOAT, ["n", 1, SIZE, SIZE])


def golden_input(bundle_or_spec: InputSpec, frames: np.ndarray) -> np.ndarray:
    """Preprocessing once more, by its formula."""
    x = frames.astype(np.float64).transpose(0, 3, 1, 2) * bundle_or_spec.scale
    for values, undo in ((bundle_or_spec.mean, np.subtract), (bundle_or_spec.std, np.divide)):
        if values:
            x = undo(x, np.array(values)[:, None, None])
    return x


def test_a_map(tmp_path: Path, dataset: Dataset) -> None:
    path = save(tmp_path / "m.onnx", mean_map(), [MAP])
    detector = detector_from_onnx(path, Description(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)), dataset)
    assert detector.input == InputSpec(
        height=SIZE, width=SIZE, channels=3, color="rgb", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    expected = golden_input(detector.input, detector.golden.frames).mean(axis=1)
    np.testing.assert_allclose(detector.maps, expected, atol=1e-5)
    np.testing.assert_allclose(detector.scores, expected.max(axis=(1, 2)), atol=1e-5)
    assert detector.score.reduce == "max"
    assert detector.notes == ()
    assert np.mean(detector.scores[detector.golden.labels == 1]) > np.mean(detector.scores[detector.golden.labels == 0])


def test_filters_and_mean(tmp_path: Path, dataset: Dataset) -> None:
    path = save(tmp_path / "m.onnx", mean_map(), [MAP])
    detector = detector_from_onnx(path, Description(filters=(Gaussian(sigma=2),), reduce="mean"), dataset)
    expected = gaussian_filter(golden_input(detector.input, detector.golden.frames).mean(axis=1), 2)
    np.testing.assert_allclose(detector.maps, expected, atol=1e-5)
    np.testing.assert_allclose(detector.scores, expected.mean(axis=(1, 2)), atol=1e-5)


def test_a_small_map_without_channels_is_resized(tmp_path: Path, dataset: Dataset) -> None:
    nodes = [
        *mean_map(),
        helper.make_node("AveragePool", ["m"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Squeeze", ["p", "axes"], ["small"]),
    ]
    path = save(
        tmp_path / "m.onnx",
        nodes,
        [("small", TensorProto.FLOAT, ["n", "h", "w"])],
        constants={"axes": np.array([1])},
    )
    detector = detector_from_onnx(path, Description(), dataset)
    means = golden_input(detector.input, detector.golden.frames).mean(axis=1)
    small = means.reshape(len(means), 4, 4, 4, 4).mean(axis=(2, 4)).astype(np.float32)
    expected = np.stack([cv2.resize(one, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for one in small])
    np.testing.assert_allclose(detector.maps, expected, atol=1e-5)


def test_a_score_alone_gets_a_flat_map(tmp_path: Path, dataset: Dataset) -> None:
    nodes = [helper.make_node("ReduceMax", ["x"], ["s"], axes=[1, 2, 3], keepdims=0)]
    path = save(tmp_path / "m.onnx", nodes, [("s", TensorProto.FLOAT, ["n"])])
    detector = detector_from_onnx(path, Description(), dataset)
    expected = golden_input(detector.input, detector.golden.frames).max(axis=(1, 2, 3))
    assert detector.score.reduce == "output"
    np.testing.assert_allclose(detector.scores, expected, atol=1e-6)
    np.testing.assert_allclose(detector.maps, np.broadcast_to(expected[:, None, None], detector.maps.shape), atol=1e-6)


def anomalib_like(path: Path, **options: Any) -> Path:
    """Four outputs as anomalib's: pred_score, pred_label, anomaly_map, pred_mask."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["anomaly_map"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["anomaly_map"], ["pred_score"], axes=[2, 3], keepdims=0),
        helper.make_node("Greater", ["anomaly_map", "half"], ["pred_mask"]),
        helper.make_node("Greater", ["pred_score", "half"], ["pred_label"]),
    ]
    outputs = [
        ("pred_score", TensorProto.FLOAT, ["n", 1]),
        ("pred_label", TensorProto.BOOL, ["n", 1]),
        ("anomaly_map", TensorProto.FLOAT, ["n", 1, "h", "w"]),
        ("pred_mask", TensorProto.BOOL, ["n", 1, "h", "w"]),
    ]
    return save(path, nodes, outputs, constants={"half": np.array(0.5, np.float32)}, **options)


def test_of_several_outputs_it_is_asked_which(tmp_path: Path, dataset: Dataset) -> None:
    path = anomalib_like(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"has 4 outputs, pred_score \(n × 1\), pred_label .*say which .*--map NAME"):
        detector_from_onnx(path, Description(), dataset)
    with pytest.raises(UsageError, match="has no output 'heat' for --map: it has pred_score"):
        detector_from_onnx(path, Description(map="heat"), dataset)
    detector = detector_from_onnx(path, Description(map="anomaly_map", score="pred_score"), dataset)
    assert detector.score.reduce == "output"
    assert {node.op_type for node in onnx.load_from_string(detector.graph).graph.node}.isdisjoint({"Greater"})
    np.testing.assert_allclose(detector.scores, detector.maps.max(axis=(1, 2)), atol=1e-6)


def test_of_a_picture_of_any_size_it_is_asked_which(tmp_path: Path, dataset: Dataset) -> None:
    path = anomalib_like(tmp_path / "m.onnx", input_shape=("n", 3, "h", "w"))
    with pytest.raises(
        UsageError, match=r"x \(n × 3 × h × w\) takes pictures of any size: choose one with --input-size"
    ):
        detector_from_onnx(path, Description(map="anomaly_map"), dataset)
    detector = detector_from_onnx(path, Description(map="anomaly_map", size=(24, 32)), dataset)
    assert detector.maps.shape[1:] == (24, 32)


def test_a_graph_for_one_frame_gets_a_dynamic_batch_where_it_can(tmp_path: Path, dataset: Dataset) -> None:
    path = save(tmp_path / "m.onnx", mean_map(), [MAP], input_shape=(1, 3, SIZE, SIZE))
    detector = detector_from_onnx(path, Description(), dataset)
    assert detector.notes == ()
    assert onnx.load_from_string(detector.graph).graph.input[0].type.tensor_type.shape.dim[0].dim_param


@pytest.mark.parametrize("mixes", [False, True], ids=["fails", "mixes frames"])
def test_a_graph_that_takes_one_frame_only_says_so_and_goes_the_whole_way(
    tmp_path: Path, dataset: Dataset, mixes: bool
) -> None:
    if mixes:  # the map of a frame minus the mean over all frames that came with it
        nodes = [
            *mean_map(),
            helper.make_node("ReduceMean", ["m"], ["level"], axes=[0, 1, 2, 3], keepdims=1),
            helper.make_node("Sub", ["m", "level"], ["out"]),
        ]
    else:
        nodes = [*mean_map(), helper.make_node("Reshape", ["m", "shape"], ["out"])]
    path = save(
        tmp_path / "m.onnx",
        nodes,
        [("out", TensorProto.FLOAT, None)],  # type: ignore[list-item]
        input_shape=(1, 3, SIZE, SIZE),
        constants={"shape": np.array([1, 1, SIZE, SIZE])},
    )
    bundle, notes = import_model(path, Description(), dataset, output=tmp_path / "b.adedge")
    assert "one frame at a time" in notes[0]
    bundle, _ = export_graphs(bundle, ("fp32",), with_scoring=True)
    bundle = build_engine(bundle, EngineKey("onnxruntime", "fp32"))
    engine = load_engine(bundle, EngineKey("onnxruntime", "fp32"))
    assert engine.batch == 1
    engine.close()


@pytest.mark.parametrize("declared", ["input", "output"])
def test_a_graph_for_four_frames_at_once_says_how_to_export_it(tmp_path: Path, dataset: Dataset, declared: str) -> None:
    nodes = [*mean_map(), helper.make_node("Reshape", ["m", "shape"], ["out"])]
    path = save(
        tmp_path / "m.onnx",
        nodes,
        [("out", TensorProto.FLOAT, [4, 1, SIZE, SIZE])],
        input_shape=(4 if declared == "input" else "n", 3, SIZE, SIZE),
        constants={"shape": np.array([4, 1, SIZE, SIZE])},
    )
    with pytest.raises(EngineError, match="m.onnx takes exactly 4 frames at once: export it for one frame, or"):
        detector_from_onnx(path, Description(), dataset)


def test_a_graph_for_four_frames_that_cannot_run_at_all_says_why(tmp_path: Path, dataset: Dataset) -> None:
    nodes = [helper.make_node("Frobnicate", ["x"], ["m"], domain="com.example")]
    path = save(tmp_path / "m.onnx", nodes, [MAP], input_shape=(4, 3, SIZE, SIZE))
    with pytest.raises(EngineError, match="Frobnicate"):
        detector_from_onnx(path, Description(), dataset)


def test_a_batch_that_is_declared_but_not_needed_is_no_obstacle(tmp_path: Path, dataset: Dataset) -> None:
    path = save(tmp_path / "m.onnx", mean_map(), [MAP], input_shape=(4, 3, SIZE, SIZE))
    assert detector_from_onnx(path, Description(), dataset).notes == ()


@pytest.mark.fault("a graph that never ends")
@pytest.mark.parametrize("counted", [True, False], ids=["10^12 iterations", "endless"])
def test_a_loop_that_does_not_end_is_ended(tmp_path: Path, dataset: Dataset, counted: bool) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["go_on"]), helper.make_node("Neg", ["before"], ["after"])],
        "body",
        [info("number", TensorProto.INT64, []), info("going", TensorProto.BOOL, []), info("before", 1, None)],
        [info("go_on", TensorProto.BOOL, []), info("after", TensorProto.FLOAT, None)],
    )
    path = save(
        tmp_path / "m.onnx",
        [*mean_map(), helper.make_node("Loop", ["count" if counted else "", "true", "m"], ["out"], body=body)],
        [("out", TensorProto.FLOAT, MAP[2])],
        constants={"count": np.array(10**12), "true": np.array(True)},
    )
    threads = threading.active_count()
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"m.onnx takes longer than 0.5 s for one frame: .* raise --timeout"):
        detector_from_onnx(path, Description(), dataset, timeout_s=0.5)
    assert time.monotonic() - started < 20
    assert threading.active_count() <= threads


@pytest.mark.fault("a graph that never ends")
def test_constants_that_take_too_long_to_compute_are_ended(tmp_path: Path, dataset: Dataset) -> None:
    """ONNX Runtime would compute them while it loads the graph, which nothing can interrupt."""
    products = [helper.make_node("MatMul", [f"c{n}", "c0"], [f"c{n + 1}"]) for n in range(200)]
    nodes = [
        helper.make_node("ConstantOfShape", ["side"], ["c0"]),
        *products,
        helper.make_node("ReduceMax", ["c200"], ["large"], keepdims=0),
        *mean_map(),
        helper.make_node("Add", ["m", "large"], ["out"]),
    ]
    path = save(
        tmp_path / "m.onnx",
        nodes,
        [("out", TensorProto.FLOAT, MAP[2])],
        constants={"side": np.array([1500, 1500])},
    )
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"m.onnx takes longer than 0.5 s for one frame"):
        detector_from_onnx(path, Description(), dataset, timeout_s=0.5)
    assert time.monotonic() - started < 10


def test_an_imported_graph_that_lost_its_weights_is_not_exported(tmp_path: Path, dataset: Dataset) -> None:
    path, _ = network(tmp_path / "net.onnx")
    bundle, _ = import_model(path, Description(map="score"), dataset, output=tmp_path / "b.adedge")
    model = onnx.load_from_string(bundle.read("imported.onnx"))
    tensor = model.graph.initializer[0]
    (tmp_path / "w.bin").write_bytes(tensor.raw_data)
    set_external_data(tensor, "w.bin")
    tensor.ClearField("raw_data")
    with bundle.edit() as draft:
        draft.write("imported.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match="keeps weights in other files"):
        export_graphs(Bundle.open(bundle.path), ("fp32",))


def network(path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A detector with batch normalisation, a residual and two outputs that are called as ours are; and its weights."""
    rng = np.random.default_rng(1)
    weights = {
        **{f"w{n}": rng.normal(0, 0.3, (8, 3 if n == 1 else 8, 3, 3)).astype(np.float32) for n in (1, 2, 3)},
        "w4": rng.normal(0, 0.3, (1, 8, 1, 1)).astype(np.float32),
        **{name: rng.uniform(0.5, 1.5, 8).astype(np.float32) for name in ("gamma", "beta", "mean", "variance")},
    }
    nodes = [
        helper.make_node("Conv", ["frame", "w1"], ["c1"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "variance"], ["b1"]),
        helper.make_node("Relu", ["b1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], pads=[1] * 4),
        helper.make_node("Add", ["r1", "c3"], ["features"]),
        helper.make_node("Conv", ["features", "w4"], ["c4"]),
        helper.make_node("Mul", ["c4", "c4"], ["score"]),
        helper.make_node("GlobalAveragePool", ["score"], ["map"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1, SIZE, SIZE]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["n", 1, 1, 1]),
        ],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path, weights


def by_pytorch(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The map (N, H, W) of `network`, computed without ONNX."""
    w = {name: torch.from_numpy(values) for name, values in weights.items()}
    first = F.conv2d(torch.from_numpy(x), w["w1"], padding=1)
    first = torch.relu(F.batch_norm(first, w["mean"], w["variance"], w["gamma"], w["beta"], eps=1e-5))
    second = torch.relu(F.conv2d(first, w["w2"], padding=1))
    features = first + F.conv2d(second, w["w3"], padding=1)
    return F.conv2d(features, w["w4"]).square()[:, 0].numpy()


def test_a_network_goes_the_whole_way(tmp_path: Path, dataset: Dataset) -> None:
    path, weights = network(tmp_path / "net.onnx")
    # The outputs' names are the wrong way round on purpose.
    description = Description(map="score", score="map", mean=(0.4,) * 3, std=(0.2,) * 3)
    seen = load_dataset(dataset.name, holdout=0)
    bundle, notes = import_model(path, description, dataset, output=tmp_path / "b.adedge", trained_on=seen)
    assert "opset 18" in notes[0]
    with np.load(io.BytesIO(bundle.read("golden.npz"))) as golden:
        expected = by_pytorch(network_input(golden["frames"], bundle.manifest.input), weights)
        np.testing.assert_allclose(golden["maps"], expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(golden["scores"], expected.mean(axis=(1, 2)), rtol=1e-4)
    assert set(bundle.json("training.json")["pictures"]) == {s.digest for s in (*seen.train, *seen.calibration)}

    with pytest.raises(DataError, match="needs at least 19 good pictures .* there are 0"):
        calibrate(bundle, dataset, false_alarm_rate=0.05)
    bundle, _ = import_model(path, description, dataset, output=tmp_path / "b.adedge", overwrite=True)
    limits = Limits(score_noise=10)  # random weights: all that can be in INT8 shall be
    bundle = calibrate(export_graphs(bundle)[0], dataset, false_alarm_rate=0.05, limits=limits).bundle
    assert set(bundle.manifest.thresholds) == {f"onnxruntime/{p}" for p in ("fp32", "fp16", "int8")}
    fp32, int8 = (onnx.load_model_from_string(bundle.read(f"model.{precision}.onnx")) for precision in ("fp32", "int8"))
    assert "BatchNormalization" not in {node.op_type for node in fp32.graph.node}
    assert "QuantizeLinear" in {node.op_type for node in int8.graph.node}
    for precision in ("fp32", "fp16", "int8"):
        bundle = build_engine(bundle, EngineKey("onnxruntime", precision))
    assert bundle.verify() == []
    found = bundle.manifest.graphs["model.fp32"].difference
    assert found is not None
    assert (found.flips, found.auroc_change) == (0, 0)

    folder = tmp_path / "report"
    command = ("benchmark", bundle.path, "--data", dataset.name, "--frames", 20, "-o", folder)
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, done.exception
    report = json.loads((folder / "report.json").read_text())
    assert report["reference"] == "onnxruntime/fp32"
    assert {name: one["flips"] for name, one in report["accuracy"].items()}["onnxruntime/fp32"] == 0
    assert "the imported model (onnxruntime/fp32)" in (folder / "report.md").read_text()


def test_values_beyond_fp16_leave_fp32_and_int8(tmp_path: Path, dataset: Dataset) -> None:
    """The sum of 3 x 3 large numbers is far beyond 65504."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Conv", ["c", "w2"], ["out"], pads=[1] * 4),
    ]
    weights = {"w": np.full((4, 3, 3, 3), 3e4, np.float32), "w2": np.full((1, 4, 3, 3), 1e-3, np.float32)}
    path = save(tmp_path / "m.onnx", nodes, [("out", TensorProto.FLOAT, MAP[2])], constants=weights)
    bundle, _ = import_model(path, Description(), dataset, output=tmp_path / "b.adedge")
    with pytest.raises(GateError, match="FP16 gives values that are not finite .* leave out the precision"):
        export_graphs(bundle)
    bundle = Bundle.open(bundle.path)
    assert set(bundle.manifest.graphs) == {"model.fp32"}  # what can be made is
    bundle = calibrate(
        bundle, dataset, precisions=("int8",), false_alarm_rate=0.05, limits=Limits(score_noise=10)
    ).bundle
    assert set(bundle.manifest.graphs) == {"model.fp32", "model.int8"}
    assert set(bundle.manifest.thresholds) == {"onnxruntime/fp32", "onnxruntime/int8"}
    again, notes = export_graphs(bundle, ("fp32", "int8"))
    assert (again.manifest.thresholds, notes) == (bundle.manifest.thresholds, ())


def test_old_opsets_are_converted(tmp_path: Path, dataset: Dataset) -> None:
    detector = detector_from_onnx(save(tmp_path / "m.onnx", mean_map(), [MAP], opset=11), Description(), dataset)
    assert onnx.load_from_string(detector.graph).opset_import[0].version == 17
    expected = golden_input(detector.input, detector.golden.frames).mean(axis=1)
    np.testing.assert_allclose(detector.maps, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"inputs": 2}, EngineError, r"has 2 inputs \(x, y\)"),
        ({"input_type": TensorProto.FLOAT16}, EngineError, "is float16: export it with a float32 input"),
        (
            {"input_shape": ("n", SIZE, SIZE, 3)},
            EngineError,
            r"its input x \(n × 16 × 16 × 3\) has the channels last: export it as \(N, C, H, W\), .*--inputs-as-nchw x",
        ),
        ({"input_type": 127}, EngineError, "is of the unknown type 127: export it with a float32 input"),
        ({"input_shape": ("n", "h", "w", 1)}, EngineError, "has the channels last"),
        ({"input_shape": ("n", 16, SIZE, SIZE)}, EngineError, "has 16 channels, not 1 or 3: export it as"),
        ({"input_shape": ("n", 3, 4, 4)}, UsageError, "greater than or equal to 8"),
    ],
    ids=["two inputs", "half", "channels last", "unknown type", "grey, channels last", "many channels", "tiny"],
)
def test_inputs_that_are_no_pictures_are_refused(
    tmp_path: Path, dataset: Dataset, arguments: dict[str, Any], error: type[AdedgeError], sentence: str
) -> None:
    path = save(tmp_path / "m.onnx", mean_map(), [("m", TensorProto.FLOAT, None)], **arguments)  # type: ignore[list-item]
    with pytest.raises(error, match=sentence):
        detector_from_onnx(path, Description(), dataset)


def test_sizes_and_channels_that_contradict_the_graph_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    path = save(tmp_path / "m.onnx", mean_map(), [MAP])
    with pytest.raises(UsageError, match="--input-size 8x16 does not match its input"):
        detector_from_onnx(path, Description(size=(8, SIZE)), dataset)
    with pytest.raises(UsageError, match="do not fit color 'gray'"):
        detector_from_onnx(path, Description(color="gray"), dataset)
    with pytest.raises(UsageError, match="mean has 1 values for 3"):
        detector_from_onnx(path, Description(mean=(0.5,)), dataset)


def test_outputs_that_are_neither_map_nor_score_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    features = save(
        tmp_path / "f.onnx",
        [helper.make_node("Relu", ["x"], ["f"])],
        [("f", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
    )
    with pytest.raises(EngineError, match=r"'f' has shape \(1, 3, 16, 16\) for one frame; a map must be \(H, W\)"):
        detector_from_onnx(features, Description(), dataset)
    masks = anomalib_like(tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="'pred_mask' is bool: choose or export a float32 output"):
        detector_from_onnx(masks, Description(map="pred_mask"), dataset)
    with pytest.raises(EngineError, match=r"'anomaly_map' has shape .* a score must be one number"):
        detector_from_onnx(masks, Description(score="anomaly_map"), dataset)
    with pytest.raises(UsageError, match="nothing to filter"):
        detector_from_onnx(masks, Description(score="pred_score", filters=(Gaussian(sigma=1),)), dataset)


def test_results_that_are_not_finite_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    nodes = [*mean_map(), helper.make_node("Sub", ["m", "two"], ["d"]), helper.make_node("Log", ["d"], ["out"])]
    path = save(
        tmp_path / "m.onnx",
        nodes,
        [("out", TensorProto.FLOAT, MAP[2])],
        constants={"two": np.array(2, np.float32)},
    )
    with pytest.raises(GateError, match="'out' is not finite for a golden frame"):
        detector_from_onnx(path, Description(), dataset)


@pytest.mark.parametrize(
    ("low", "high", "warning"),
    [
        # Grey noise below 90 / 255 = 0.35, and squares of at least 150 / 255 = 0.59: the mean of three channels.
        (0.3, 0.5, "golden frames: of 8 scores 4 exactly 1: if the graph clips or normalises"),
        (0.45, 1.5, "golden frames: of 8 scores 4 exactly 0: if the graph clips or normalises"),
        (2.0, 3.0, "golden frames: all 8 pictures have the score 0: check the preprocessing"),
        (0.0, 2.0, None),
    ],
    ids=["clipped at 1", "clipped at 0", "constant", "raw"],
)
def test_golden_scores_that_pile_up_are_told_of(
    tmp_path: Path, dataset: Dataset, low: float, high: float, warning: str | None
) -> None:
    """The brightest mean of the channels, from ``low`` to ``high`` normalised to 0 to 1 and clipped."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["mean"], ["brightest"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["brightest", "low"], ["above"]),
        helper.make_node("Div", ["above", "span"], ["normalised"]),
        helper.make_node("Clip", ["normalised", "zero", "one"], ["s"]),
    ]
    constants = {"low": low, "span": high - low, "zero": 0.0, "one": 1.0}
    path = save(
        tmp_path / "m.onnx",
        nodes,
        [("s", TensorProto.FLOAT, ["n"])],
        constants={name: np.float32(value) for name, value in constants.items()},
    )
    notes = detector_from_onnx(path, Description(score="s"), dataset).notes
    found = [note[: len(warning or "")] for note in notes if note.startswith("golden frames: ")]
    assert found == ([] if warning is None else [warning])


def test_operators_are_named(tmp_path: Path, dataset: Dataset) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Frobnicate", ["x"], ["m"], domain="com.example")], [MAP])
    with pytest.raises(EngineError, match="Frobnicate"):
        detector_from_onnx(path, Description(), dataset)
    nodes = [
        *mean_map(),
        helper.make_node("DynamicQuantizeLinear", ["m"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["out"]),
    ]
    path = save(tmp_path / "q.onnx", nodes, [("out", TensorProto.FLOAT, MAP[2])], input_shape=(1, 3, SIZE, SIZE))
    detector = detector_from_onnx(path, Description(), dataset)
    assert any("TensorRT does not support DynamicQuantizeLinear" in note for note in detector.notes)


def test_weights_beside_the_file_are_taken_in_or_missed_by_name(tmp_path: Path, dataset: Dataset) -> None:
    model = onnx.load(
        save(
            tmp_path / "m.onnx",
            [helper.make_node("Mul", ["x", "w"], ["f"]), *_mean_of("f")],
            [MAP],
            constants={"w": np.full((1, 3, SIZE, SIZE), 2, np.float32)},
        )
    )
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    detector = detector_from_onnx(tmp_path / "e.onnx", Description(), dataset)
    expected = 2 * golden_input(detector.input, detector.golden.frames).mean(axis=1)
    np.testing.assert_allclose(detector.maps, expected, atol=1e-5)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(EngineError, match=r"e.onnx cannot be read as ONNX .*weights.bin"):
        detector_from_onnx(tmp_path / "e.onnx", Description(), dataset)


def _mean_of(name: str) -> list[onnx.NodeProto]:
    return [helper.make_node("ReduceMean", [name], ["m"], axes=[1], keepdims=1)]


def test_a_graph_without_outputs_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(EngineError, match="has no outputs: export it with the anomaly map"):
        detector_from_onnx(save(tmp_path / "m.onnx", mean_map(), []), Description(), dataset)


def test_a_file_that_is_no_onnx_is_named(tmp_path: Path, dataset: Dataset) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"PK not a model")
    with pytest.raises(EngineError, match="m.onnx cannot be read as ONNX"):
        detector_from_onnx(path, Description(), dataset)
    with pytest.raises(EngineError, match="absent.onnx cannot be read"):
        detector_from_onnx(tmp_path / "absent.onnx", Description(), dataset)


def test_no_pytorch_is_needed(tmp_path: Path, data: Path) -> None:
    path = save(tmp_path / "m.onnx", mean_map(), [MAP])
    code = """
import sys
from pathlib import Path
sys.modules["torch"] = None  # importing it fails
from adedge.data.datasets import load_dataset
from adedge.export.build import build_engine
from adedge.export.calibrate import calibrate
from adedge.export.graphs import export_graphs
from adedge.export.imported import Description, import_model
from adedge.specs import EngineKey

model, data, output = sys.argv[1:]
dataset = load_dataset(data)
bundle, _ = import_model(Path(model), Description(), dataset, output=Path(output))
bundle = calibrate(export_graphs(bundle)[0], dataset, false_alarm_rate=0.05).bundle
build_engine(bundle, EngineKey("onnxruntime", "fp32"))
"""
    command = [sys.executable, "-c", code, str(path), str(data), str(tmp_path / "b.adedge")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Bundle.open(tmp_path / "b.adedge").has("engines/onnxruntime-fp32/engine.json")
