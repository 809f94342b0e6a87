"""The graphs of a bundle: which are made, what replaces what, and that a graph runs as NumPy computes it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from adedge.bundle import Bundle
from adedge.calibration.ranges import Ranges, collect_ranges
from adedge.errors import BundleError, EngineError, GateError, MissingDependency
from adedge.export.graphs import (
    PartialExport,
    VerifiedGraph,
    dropped_threshold_notes,
    export_graphs,
    graph_files,
    json_from_ranges,
    precision_of,
    require_packages,
    run_with_onnxruntime,
    store,
)
from adedge.manifest import Graph, Threshold
from adedge.specs import Precision


@pytest.fixture
def red(red_bundle: Bundle) -> Bundle:
    return red_bundle


@pytest.fixture
def exported(red: Bundle) -> Bundle:
    return export_graphs(red, ("fp32", "fp16"))[0]


def ranges_of(graph: bytes) -> Ranges:
    return collect_ranges(graph, ["frame"], [np.full((3, 8, 8), 1, np.float32)], data_digest="d")


# --- which graphs are made -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precisions", "with_ranges", "expected"),
    [
        (("fp32",), True, {"fp32"}),
        (("fp16",), True, {"fp32", "fp16"}),
        (("int8",), True, {"fp32", "int8"}),
        (("fp32", "fp16", "int8"), True, {"fp32", "fp16", "int8", "int8-fp16"}),
        (("fp32", "fp16", "int8"), False, {"fp32", "fp16"}),
    ],
)
def test_fp32_comes_with_what_is_asked_for(
    graph_that_shows_red: Callable[[float], bytes],
    precisions: tuple[Precision, ...],
    with_ranges: bool,
    expected: set[str],
) -> None:
    fp32 = graph_that_shows_red(1.0)
    files = graph_files(fp32, precisions, ranges_of(fp32) if with_ranges else None)
    assert set(files) == expected
    assert files["fp32"] == fp32


def test_scales_are_of_the_precision_that_surrounds_them(graph_that_shows_red: Callable[[float], bytes]) -> None:
    fp32 = graph_that_shows_red(1.0)
    files = graph_files(fp32, ("fp32", "fp16", "int8"), ranges_of(fp32))
    kinds = {}
    for kind in ("int8", "int8-fp16"):
        model = onnx.load_from_string(files[kind])
        (opset,) = (entry.version for entry in model.opset_import)
        kinds[kind] = opset, {t.data_type for t in model.graph.initializer if t.name.endswith("_scale")}
    # FP16 scales came with opset 19.
    assert kinds == {"int8": (17, {TensorProto.FLOAT}), "int8-fp16": (19, {TensorProto.FLOAT16})}


@pytest.mark.parametrize(
    ("stem", "precision"), [("model.fp32", "fp32"), ("scored.fp16", "fp16"), ("scored.int8-fp16", "int8")]
)
def test_the_precision_is_in_the_stem(stem: str, precision: Precision) -> None:
    assert precision_of(stem) == precision


# --- exporting into a bundle -----------------------------------------------------------------------------------------


def test_every_graph_is_described_and_compared(exported: Bundle) -> None:
    graphs = exported.manifest.graphs
    assert set(graphs) == {"model.fp32", "model.fp16"}
    fp32, fp16 = graphs["model.fp32"], graphs["model.fp16"]
    assert (fp32.file, fp32.opset, fp32.inputs, fp32.outputs) == ("model.fp32.onnx", 17, ("frame",), ("map",))
    assert fp32.weights_sha256 == exported.manifest.files["imported.onnx"].sha256
    assert fp32.difference is not None
    assert (fp32.difference.frames, fp32.difference.flips, fp32.difference.auroc_change) == (4, 0, 0)
    assert fp32.difference.map_error < 1e-6
    # The graph gives 1.0 times red, which FP16 weights hold exactly; red itself is rounded on a GPU alone.
    assert fp16.difference is not None
    assert fp16.difference.map_error < 1e-3
    assert "rounded to FP16 as well, as on a GPU: map error" in fp16.notes[1]
    assert exported.verify() == []


def test_exporting_again_changes_nothing(exported: Bundle) -> None:
    again, notes = export_graphs(exported, ("fp32", "fp16"))
    assert notes == ()
    assert again.manifest == exported.manifest


def test_int8_needs_ranges_and_the_rest_is_made_without(red: Bundle) -> None:
    exported, notes = export_graphs(red)
    assert set(exported.manifest.graphs) == {"model.fp32", "model.fp16"}
    assert notes[0] == f"no INT8 graphs: {red.path} has no ranges.json: run 'adedge calibrate' first"


def test_ranges_of_the_graph_make_int8_and_others_do_not(red: Bundle) -> None:
    exported, _ = export_graphs(red, ("fp32",))
    fp32 = exported.read("model.fp32.onnx")
    for ranges, expected in ((ranges_of(fp32), True), (ranges_of(fp32).model_copy(update={"graph_sha256": ""}), False)):
        with exported.edit() as draft:
            draft.write("ranges.json", json_from_ranges(ranges))
        exported, notes = export_graphs(Bundle.open(exported.path), ("fp32", "int8"))
        if expected:
            record = exported.manifest.graphs["model.int8"]
            assert notes == ()
            assert record.ranges_sha256 == exported.manifest.files["ranges.json"].sha256
        else:
            assert "no INT8 graphs: ranges.json is stale" in notes[0]


def test_graphs_with_scoring_stay_once_they_were_asked_for(red: Bundle) -> None:
    scored, _ = export_graphs(red, ("fp32",), with_scoring=True)
    record = scored.manifest.graphs["scored.fp32"]
    assert (record.outputs, record.with_scoring) == (("map", "score"), True)
    maps, scores = run_with_onnxruntime(scored.read("scored.fp32.onnx"))(np.full((2, 3, 8, 8), 0.25, np.float32))
    np.testing.assert_array_equal(maps, np.full((2, 8, 8), 0.25, np.float32))
    np.testing.assert_array_equal(scores, [0.25, 0.25])
    again, _ = export_graphs(scored, ("fp32", "fp16"))
    assert set(again.manifest.graphs) == {"model.fp32", "model.fp16", "scored.fp32", "scored.fp16"}


def test_another_opset_is_written(red: Bundle) -> None:
    exported, _ = export_graphs(red, ("fp32",), opset=19)
    assert exported.manifest.graphs["model.fp32"].opset == 19


def test_a_graph_beyond_its_tolerance_leaves_the_bundle_as_it_was(
    red: Bundle, graph_that_shows_red: Callable[[float], bytes]
) -> None:
    """The model was replaced, and its golden frames were not."""
    with red.edit() as draft:
        draft.write("imported.onnx", graph_that_shows_red(0.5))
    changed = Bundle.open(red.path)
    with pytest.raises(GateError, match="model.fp32.onnx differs from the model by .* the bundle is unchanged"):
        export_graphs(changed)
    assert Bundle.open(red.path).manifest == changed.manifest
    assert changed.verify() == []


def test_fp16_beyond_its_tolerance_leaves_fp32_and_takes_int8_with_fp16_along(
    red: Bundle, graph_that_shows_red: Callable[[float], bytes]
) -> None:
    """Red is the difference of two large numbers: they exceed no range, but FP16 holds only 11 bits of each."""
    model = onnx.load_from_string(graph_that_shows_red(1.0))
    model.graph.node[0].output[0] = "plain"
    model.graph.node.append(onnx.helper.make_node("Sub", ["plain", "large"], ["far"], name="out"))
    model.graph.node.append(onnx.helper.make_node("Add", ["far", "large"], ["map"], name="back"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(500), "large"))
    with red.edit() as draft:
        draft.write("imported.onnx", model.SerializeToString())
    exported, _ = export_graphs(Bundle.open(red.path), ("fp32",))
    with exported.edit() as draft:
        draft.write("ranges.json", json_from_ranges(ranges_of(exported.read("model.fp32.onnx"))))
    with pytest.raises(PartialExport, match=r"not written: model.fp16.onnx, model.int8-fp16.onnx: .*differs") as caught:
        export_graphs(Bundle.open(red.path), with_scoring=True)
    assert set(caught.value.bundle.manifest.graphs) == {"model.fp32", "model.int8", "scored.fp32", "scored.int8"}
    assert caught.value.bundle.verify() == []


def test_changed_weights_are_refused(bundle: Bundle) -> None:
    weights = bundle.path / "weights.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.unlink()
    weights.write_bytes(changed)
    with pytest.raises(BundleError, match="not the file that was written"):
        export_graphs(bundle)


# --- what a new graph replaces ---------------------------------------------------------------------------------------


def made(stem: str, data: bytes) -> VerifiedGraph:
    record = Graph(
        file=f"{stem}.onnx", opset=17, inputs=(), outputs=(), with_scoring="scored" in stem, weights_sha256=""
    )
    return VerifiedGraph(stem=stem, precision=precision_of(stem), data=data, record=record)


STEMS = ("model.fp32", "model.fp16", "model.int8", "scored.fp32")


@pytest.fixture
def stored(red: Bundle) -> Bundle:
    """Four graphs, and thresholds of all precisions for two targets and the model in PyTorch."""
    fitted = Threshold(value=0.5, false_alarm_rate=0.1, pictures=9, data_digest="")
    names = [f"{target}/{p}" for target in ("onnxruntime", "tensorrt") for p in ("fp32", "fp16", "int8")]
    with red.edit() as draft:
        store(draft, [made(stem, stem.encode()) for stem in STEMS])
        draft.manifest = draft.manifest.replace(thresholds=dict.fromkeys([*names, "pytorch/fp32"], fitted))
    return Bundle.open(red.path)


def test_the_same_graphs_keep_every_threshold(stored: Bundle) -> None:
    with stored.edit() as draft:
        changed, notes = store(draft, [made(stem, stem.encode()) for stem in STEMS])
        assert (changed, notes) == (set(), [])
        assert dropped_threshold_notes(stored.manifest, draft.manifest) == []


def test_a_changed_graph_takes_the_thresholds_of_its_precision_along(stored: Bundle) -> None:
    with stored.edit() as draft:
        changed, notes = store(draft, [made("model.fp32", b"model.fp32"), made("model.fp16", b"another")])
        assert (changed, notes) == ({"model.fp16.onnx"}, [])
        (sentence,) = dropped_threshold_notes(stored.manifest, draft.manifest)
    assert sentence == (
        "the graphs changed, so the thresholds of onnxruntime/fp16, tensorrt/fp16 were dropped: "
        "run 'adedge calibrate' again"
    )
    after = Bundle.open(stored.path)
    assert set(after.manifest.graphs) == set(STEMS)
    assert after.read("model.fp16.onnx") == b"another"


def test_a_changed_fp32_graph_takes_along_what_came_from_the_old_one(stored: Bundle) -> None:
    with stored.edit() as draft:
        changed, notes = store(draft, [made("model.fp32", b"another"), made("model.fp16", b"model.fp16")])
    assert changed == {"model.fp32.onnx"}
    assert notes == [
        f"{stem}.onnx was removed: the FP32 graph it was derived from has changed"
        for stem in ("model.int8", "scored.fp32")
    ]
    after = Bundle.open(stored.path)
    assert set(after.manifest.graphs) == {"model.fp32", "model.fp16"}
    assert not after.has("model.int8.onnx")
    # FP16 did not change; those of PyTorch are not of a graph.
    assert set(after.manifest.thresholds) == {"onnxruntime/fp16", "tensorrt/fp16", "pytorch/fp32"}
    assert after.verify() == []


# --- running a graph -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 8, 19])
def test_a_graph_runs_on_any_number_of_frames(graph_that_shows_red: Callable[[float], bytes], count: int) -> None:
    frames = np.random.default_rng(count).random((count, 3, 8, 8), np.float32)
    (maps,) = run_with_onnxruntime(graph_that_shows_red(0.5))(frames)
    np.testing.assert_allclose(maps[:, 0], frames[:, 0] / 2, rtol=1e-6)


def test_a_graph_for_one_frame_at_a_time_runs_too(graph_that_shows_red: Callable[[float], bytes]) -> None:
    model = onnx.load_from_string(graph_that_shows_red(2.0))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    frames = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    (maps,) = run_with_onnxruntime(model.SerializeToString())(frames)
    np.testing.assert_allclose(maps[:, 0], 2 * frames[:, 0], rtol=1e-6)


def test_what_is_no_graph_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="cannot load the graph"):
        run_with_onnxruntime(b"no graph")(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages_the_extra_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"needs the package '{package}': .*pip install -e '\.\[export\]'"):
        require_packages()
