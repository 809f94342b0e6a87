"""Opening an inspector for a bundle, judging pictures with it, and that every command does so in this one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from adedge.bundle import Bundle
from adedge.data.datasets import Dataset, load_dataset
from adedge.errors import DataError, EngineError
from adedge.runtime import host_inspector, inspection
from adedge.runtime.backends import FunctionBackend
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from adedge.runtime.inspection import judge, judge_frames, make_inspector, open_inspector
from adedge.runtime.inspector import Maps
from adedge.runtime.pipeline import Stream, run
from adedge.runtime.sinks import ListSink
from adedge.runtime.sources import ArraySource, Frame
from adedge.runtime.verdict import Verdict
from adedge.specs import EngineKey, InputSpec, ReadyMap, ScoreSpec

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SPEC = InputSpec(height=8, width=8, channels=3, color="rgb")
SCORE = ScoreSpec(comparison=ReadyMap())


def picture(level: int) -> NDArray[np.uint8]:
    """8 x 8 BGR whose red is ``level`` and whose blue is its opposite."""
    return np.full((8, 8, 3), (255 - level, 0, level), np.uint8)


def red(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [x[:, 0].copy()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Good pictures are darker than the bad ones; no two are alike."""
    root = tmp_path_factory.mktemp("red")
    levels = {"train/good": range(10, 110, 2), "test/good": range(11, 111, 10), "test/spot": range(200, 250, 5)}
    for kind, values in levels.items():
        (root / kind).mkdir(parents=True)
        for level in values:
            cv2.imwrite(str(root / kind / f"{level:03}.png"), picture(level))
    return load_dataset(str(root))


@pytest.fixture(scope="module")
def bundle(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An imported detector that shows red, exported, calibrated, with engines in FP32 and FP16."""
    from adedge.export.build import build_engine
    from adedge.export.calibrate import calibrate
    from adedge.export.graphs import export_graphs
    from adedge.export.imported import Description, import_model

    make = onnx.helper.make_tensor_value_info
    frame, out = (make(n, onnx.TensorProto.FLOAT, ["n", c, 8, 8]) for n, c in (("frame", 3), ("map", 1)))
    weight = onnx.numpy_helper.from_array(np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1), "w")
    node = onnx.helper.make_node("Conv", ["frame", "w"], ["map"])
    graph = onnx.helper.make_graph([node], "red", [frame], [out], [weight])
    folder = tmp_path_factory.mktemp("bundle")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (folder / "red.onnx").write_bytes(model.SerializeToString())
    imported, _ = import_model(folder / "red.onnx", Description(), dataset, output=folder / "red.adedge")
    exported, _ = export_graphs(imported, ("fp32", "fp16"))
    made = calibrate(exported, dataset, precisions=("fp32", "fp16"), false_alarm_rate=0.1).bundle
    for precision in ("fp32", "fp16"):
        made = build_engine(made, EngineKey("onnxruntime", precision))  # type: ignore[arg-type]  # a Precision
    return made


def test_an_opened_inspector_judges_an_array(bundle: Bundle) -> None:
    with open_inspector(bundle.path) as inspector:
        good, bad = inspector.judge(picture(50)), inspector.judge(picture(230))
        assert inspector.key == EngineKey("onnxruntime", "fp32")
        assert inspector.threshold == bundle.manifest.threshold("onnxruntime/fp32")
    assert (good.anomalous, bad.anomalous) == (False, True)
    assert (good.score, bad.score) == pytest.approx((50 / 255, 230 / 255))
    assert good.map is not None
    np.testing.assert_allclose(good.map, 50 / 255, rtol=1e-6)  # its own copy: the second picture did not change it


def test_precision_and_threshold_can_be_chosen(bundle: Bundle) -> None:
    with open_inspector(bundle, precision="fp16", threshold=0.99) as inspector:
        assert inspector.key == EngineKey("onnxruntime", "fp16")
        assert not inspector.judge(picture(230)).anomalous


def test_calibrated_engines_come_first(bundle: Bundle) -> None:
    thresholds = {k: v for k, v in bundle.manifest.thresholds.items() if k != "onnxruntime/fp32"}
    lacking = replace(bundle, manifest=bundle.manifest.replace(thresholds=thresholds))
    with open_inspector(lacking) as inspector:
        assert inspector.key.precision == "fp16"
    with pytest.raises(EngineError, match="no threshold for onnxruntime/fp32: run 'adedge calibrate'"):
        open_inspector(lacking, precision="fp32")
    with pytest.raises(EngineError, match="has no tensorrt/fp32 engine"):
        open_inspector(bundle, target="tensorrt")


def test_better_engines_that_lack_a_threshold_are_named(bundle: Bundle) -> None:
    said: list[str] = []
    thresholds = {k: v for k, v in bundle.manifest.thresholds.items() if k != "onnxruntime/fp32"}
    lacking = replace(bundle, manifest=bundle.manifest.replace(thresholds=thresholds))
    open_inspector(lacking, notify=said.append).close()
    (sentence,) = said
    assert sentence.startswith("onnxruntime/fp32 is not used, for want of a threshold: ")
    assert f"'adedge calibrate {bundle.path} PICTURES --thresholds-only'" in sentence
    for options in ({"precision": "fp16"}, {"threshold": 0.5}):
        open_inspector(lacking, notify=said.append, **options).close()  # type: ignore[arg-type]
    thresholds = {k: v for k, v in bundle.manifest.thresholds.items() if k != "onnxruntime/fp16"}
    worse = replace(bundle, manifest=bundle.manifest.replace(thresholds=thresholds))
    open_inspector(worse, notify=said.append).close()
    assert len(said) == 1


def test_that_a_threshold_is_missing_is_said_before_an_engine_is_loaded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = replace(bundle, manifest=bundle.manifest.replace(thresholds={}))
    loaded: list[EngineKey] = []
    monkeypatch.setattr(inspection, "load_engine", lambda bundle, key, **options: loaded.append(key))
    with pytest.raises(EngineError, match="no threshold for onnxruntime/fp32: run 'adedge calibrate'"):
        open_inspector(lacking)
    assert loaded == []


def test_a_picture_that_is_no_picture_is_refused(bundle: Bundle) -> None:
    with open_inspector(bundle) as inspector, pytest.raises(DataError, match="shape"):
        inspector.judge(np.zeros((4, 4, 2), np.uint8))


def test_an_engine_takes_as_many_pictures_at_once_as_it_can() -> None:
    backend = FunctionBackend(red, SPEC.shape, batch=4)
    seen: list[int] = []
    images = ((str(level), picture(level)) for level in range(0, 90, 10))
    judged = judge(backend, SPEC, SCORE, images, name="fake", maps=True, watch=seen.append)
    assert backend.calls == [4, 4, 1]
    assert seen == list(range(1, 10))
    np.testing.assert_allclose(judged.scores, np.arange(0, 90, 10) / 255, rtol=1e-6)
    np.testing.assert_allclose([one.max() for one in judged.maps], judged.scores)


def test_conformed_frames_are_in_the_network_s_colours() -> None:
    frames = np.stack([picture(level)[..., ::-1] for level in (10, 200)])  # RGB, as the spec says
    judged = judge_frames(FunctionBackend(red, SPEC.shape), SPEC, SCORE, frames, name="fake")
    np.testing.assert_allclose(judged.scores, [10 / 255, 200 / 255], rtol=1e-6)


def test_why_a_gpu_is_not_used_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise EngineError("no compiler")

    monkeypatch.setattr(inspection, "TensorRTBackend", FunctionBackend)
    monkeypatch.setattr(inspection, "CudaInspector", refuse)
    said: list[str] = []
    made = make_inspector(FunctionBackend(red, SPEC.shape), SPEC, SCORE, notify=said.append)
    assert isinstance(made, host_inspector.HostInspector)
    assert said == ["preprocessing and scoring on the processor: no compiler"]


class OnGpu(host_inspector.HostInspector):
    """Stands for `CudaInspector`, and counts the frames it is given."""

    frames = 0

    def __init__(self, *args: Any, maps: Maps, **options: Any) -> None:
        super().__init__(*args, **options)
        self.maps = maps

    def submit(self, frames: Sequence[Frame]) -> None:
        OnGpu.frames += len(frames)
        super().submit(frames)


def run_calibrate(bundle: Bundle, dataset: Dataset) -> None:
    from adedge.export.calibrate import calibrate

    calibrate(bundle, dataset, precisions=("fp32",), false_alarm_rate=0.1)


def run_fit_thresholds(bundle: Bundle, dataset: Dataset) -> None:
    from adedge.export.calibrate import fit_thresholds

    fit_thresholds(bundle, dataset)


def run_build(bundle: Bundle, dataset: Dataset) -> None:
    from adedge.export.build import build_engine

    build_engine(bundle, EngineKey("onnxruntime", "fp32"))


def run_prove(bundle: Bundle, dataset: Dataset) -> None:
    from adedge.export.proof import prove

    assert all(proof.problem is None for proof in prove(bundle))


def run_prove_pictures(bundle: Bundle, dataset: Dataset) -> None:
    from adedge.export.proof import pictures_with_scores, prove

    pictures, bundle = pictures_with_scores(bundle, dataset.test)
    assert [proof.flips for proof in prove(bundle, pictures)] == [0, 0]


def run_benchmark(bundle: Bundle, dataset: Dataset) -> None:
    pytest.importorskip("matplotlib")
    from adedge.benchmarks.measure import BenchmarkOptions, benchmark

    report = benchmark(bundle, dataset.name, BenchmarkOptions(frames=20)).report
    assert {name: found.flips for name, found in report.accuracy.items()} == {
        "onnxruntime/fp32": 0,
        "onnxruntime/fp16": 0,
    }


def run_run(bundle: Bundle, dataset: Dataset) -> None:
    sink = ListSink()
    with open_inspector(bundle) as inspector:
        run([Stream(ArraySource([picture(50), picture(230)]), [sink])], inspector)
    verdicts: list[Verdict] = sink.verdicts
    assert [verdict.anomalous for verdict in verdicts] == [False, True]


@pytest.mark.parametrize(
    "command",
    [run_calibrate, run_fit_thresholds, run_build, run_prove, run_prove_pictures, run_benchmark, run_run],
    ids=lambda command: command.__name__.removeprefix("run_"),
)
def test_every_command_judges_on_the_gpu_where_the_engine_is(
    command: Callable[[Bundle, Dataset], None],
    bundle: Bundle,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An inspector that computes on the processor may not even be made: the engines pass for ones on a GPU."""
    import shutil

    own = Bundle.open(shutil.copytree(bundle.path, tmp_path / "own.adedge"))
    monkeypatch.setattr(inspection, "TensorRTBackend", OnnxRuntimeBackend)
    monkeypatch.setattr(inspection, "CudaInspector", OnGpu)
    monkeypatch.setattr(inspection, "HostInspector", None)
    monkeypatch.setattr(OnGpu, "frames", 0)
    made: list[type] = []
    init = host_inspector.HostInspector.__init__

    def noticed(self: host_inspector.HostInspector, *args: Any, **options: Any) -> None:
        made.append(type(self))
        init(self, *args, **options)

    monkeypatch.setattr(host_inspector.HostInspector, "__init__", noticed)
    command(own, dataset)
    assert OnGpu.frames > 0
    assert set(made) == {OnGpu}
