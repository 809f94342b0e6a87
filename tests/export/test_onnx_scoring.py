"""The scoring appended to a graph equals `adedge.scoring`, and NVIDIA's parser and builder take it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import skimage.data
from onnx import TensorProto, helper

from adedge.errors import EngineError
from adedge.export.onnx_scoring import append_scoring
from adedge.scoring import image_scores, score_maps
from adedge.specs import Dssim, Filter, Gaussian, InputSpec, Opening, ReadyMap, ScoreSpec, Uniform

HEIGHT, WIDTH = 45, 64
SPEC = InputSpec(height=HEIGHT, width=WIDTH, channels=3, color="rgb")


def two_images(opset: int) -> bytes:
    """Six channels in, its two halves out."""
    count = {"num_outputs": 2} if opset >= 18 else {}
    node = helper.make_node("Split", ["frame"], ["image_a", "image_b"], name="split", axis=1, **count)
    return model([node], 6, {"image_a": ["n", 3, HEIGHT, WIDTH], "image_b": ["n", 3, HEIGHT, WIDTH]}, opset)


def ready_map(shape: list[object], axis: int | None, opset: int) -> bytes:
    node = helper.make_node("Identity", ["frame"], ["map"], name="same")
    if axis is not None:
        node = helper.make_node("ReduceSum", ["frame", "axes"], ["map"], name="sum", keepdims=0)
    return model([node], 1, {"map": shape}, opset)


def model(nodes: list[object], channels: int, outputs: dict[str, list[object]], opset: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, ["n", channels, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def photographs() -> tuple[np.ndarray, np.ndarray]:
    """Two pictures (2, 3, H, W), and nearly the same with a changed and with a flat bright region."""
    cut = [image[60 : 60 + HEIGHT, 30 : 30 + WIDTH] for image in (skimage.data.brick(), skimage.data.grass())]
    a = np.stack(cut)[:, None].repeat(3, 1).astype(np.float32) / 255
    a[:, 1] *= 0.9
    a[1, :, :20, :20] = 1
    b = np.clip(a + np.random.default_rng(0).normal(0, 0.02, a.shape), 0, 1).astype(np.float32)
    b[0, :, 10:20, 10:20] = 0.3
    b[1, :, :20, :20] = 0.999
    return a, b


FILTERS: list[tuple[Filter, ...]] = [
    (),
    (Uniform(size=32),),
    (Gaussian(sigma=4.0), Opening(size=3)),
    (Opening(size=6), Uniform(size=5), Opening(size=7)),
    (Uniform(size=200),),
]


@pytest.mark.parametrize("filters", FILTERS, ids=lambda f: "+".join(step.kind for step in f) or "none")
@pytest.mark.parametrize("opset", [17, 19])
@pytest.mark.parametrize("comparison", [Dssim(), ReadyMap()], ids=["dssim", "map"])
@pytest.mark.parametrize(("reduce", "margin"), [("max", 0), ("mean", 3)])
def test_equals_the_reference(
    filters: tuple[Filter, ...], opset: int, comparison: Dssim | ReadyMap, reduce: str, margin: int
) -> None:
    score = ScoreSpec(comparison=comparison, filters=filters, reduce=reduce, margin=margin)  # type: ignore[arg-type]
    a, b = photographs()
    if isinstance(comparison, Dssim):
        graph, frames, outputs = two_images(opset), np.concatenate([a, b], axis=1), [a, b]
    else:
        graph, frames, outputs = ready_map(["n", 1, HEIGHT, WIDTH], None, opset), b[:, :1], [b[:, :1]]
    session = ort.InferenceSession(append_scoring(graph, score, SPEC), providers=["CPUExecutionProvider"])
    maps, scores = session.run(["map", "score"], {"frame": frames})
    expected = score_maps(score, outputs)
    assert maps.shape == (2, HEIGHT, WIDTH)
    assert scores.shape == (2,)
    np.testing.assert_allclose(maps, expected, atol=2e-5)
    np.testing.assert_allclose(scores, image_scores(score, expected), atol=1e-5)


def test_a_map_without_channel_axis() -> None:
    score = ScoreSpec(comparison=ReadyMap(), filters=(Uniform(size=5),))
    graph = ready_map(["n", HEIGHT, WIDTH], 1, 17)
    frames = photographs()[0][:, :1]
    session = ort.InferenceSession(append_scoring(graph, score, SPEC), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["map"], {"frame": frames})[0], score_maps(score, [frames]), atol=1e-5)


def map_and_score(score_shape: list[object], opset: int) -> bytes:
    """The input as a map, and twice its mean as the network's own score."""
    nodes = [
        helper.make_node("Identity", ["frame"], ["map"], name="same"),
        helper.make_node("Add", ["frame", "frame"], ["double"], name="double"),
        helper.make_node("GlobalAveragePool", ["double"], ["mean"], name="mean"),
        helper.make_node("Reshape", ["mean", "shape"], ["score"], name="score"),
    ]
    graph = model(nodes, 1, {"map": ["n", 1, HEIGHT, WIDTH], "score": score_shape}, opset)
    parsed = onnx.load_from_string(graph)
    sizes = [-1, *[int(str(size)) for size in score_shape[1:]]]
    parsed.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [len(sizes)], sizes))
    return parsed.SerializeToString()


@pytest.mark.parametrize("score_shape", [["n"], ["n", 1]], ids=["n", "n x 1"])
@pytest.mark.parametrize("opset", [17, 19])
def test_the_network_s_own_score_passes_through(score_shape: list[object], opset: int) -> None:
    score = ScoreSpec(comparison=ReadyMap(), filters=(Gaussian(sigma=4), Opening(size=3)), reduce="output")
    frames = photographs()[0][:, :1]
    session = ort.InferenceSession(
        append_scoring(map_and_score(score_shape, opset), score, SPEC), providers=["CPUExecutionProvider"]
    )
    assert [output.name for output in session.get_outputs()] == ["map", "score"]
    for count in (1, 2):
        maps, scores = session.run(None, {"frame": frames[:count]})
        np.testing.assert_allclose(maps, score_maps(score, [frames[:count]]), atol=2e-5)
        np.testing.assert_allclose(scores, 2 * frames[:count].mean((1, 2, 3), dtype=np.float64), atol=1e-5)


def test_a_graph_without_the_score_that_the_spec_takes_is_refused() -> None:
    score = ScoreSpec(comparison=ReadyMap(), reduce="output")
    with pytest.raises(EngineError, match=r"compares 2 output.* the graph has 1"):
        append_scoring(ready_map(["n", 1, HEIGHT, WIDTH], None, 17), score, SPEC)


def test_equal_images_score_exactly_zero() -> None:
    a, _ = photographs()
    graph = append_scoring(two_images(17), ScoreSpec(comparison=Dssim()), SPEC)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    maps, scores = session.run(None, {"frame": np.concatenate([a, a], axis=1)})
    assert not maps.any()
    assert not scores.any()


def test_another_number_of_outputs_is_refused() -> None:
    with pytest.raises(EngineError, match="compares 1 output"):
        append_scoring(two_images(17), ScoreSpec(comparison=ReadyMap()), SPEC)


@pytest.mark.parametrize("opset", [17, 19])
def test_tensorrt_rtx_builds_it(opset: int) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for x86-64 Linux and Windows")
    from adedge.export.builders import BuildOptions, Source
    from adedge.export.builders.tensorrt_rtx import build

    assert trt.__version__
    score = ScoreSpec(comparison=Dssim(), filters=(*FILTERS[2], *FILTERS[3]), reduce="mean", margin=3)
    graph = append_scoring(two_images(opset), score, SPEC)
    source = Source(graphs={"model.fp32": graph}, precision="fp32", shape=(6, HEIGHT, WIDTH), batch=(1, 2, 4))
    built = build(source, BuildOptions(compute_capabilities=("8.6",)))
    assert [tensor.name for tensor in built.outputs] == ["map", "score"]
