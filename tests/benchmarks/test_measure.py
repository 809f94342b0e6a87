"""Measuring a bundle: which engines, on what, against which reference, and what a reader is told of the rest."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from adedge.benchmarks.measure import BenchmarkOptions, _latency_notes, benchmark
from adedge.benchmarks.report import headline, markdown, page
from adedge.bundle import Bundle
from adedge.data.datasets import Dataset
from adedge.errors import EngineError, MissingDependency
from adedge.manifest import Threshold
from adedge.runtime.engines import EngineRecord
from adedge.specs import Precision

QUICK = BenchmarkOptions(frames=20, threads=1)
FP32, INT8 = "onnxruntime/fp32", "onnxruntime/int8"


@pytest.fixture
def bundle(red_bundle: Bundle) -> Bundle:
    """A detector of red in grey pictures; its "INT8" engine gives 0.92 times the map. Both thresholds are 0.38."""
    fitted = Threshold(value=0.38, false_alarm_rate=0.1, pictures=9, data_digest="")
    with red_bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={name: fitted.model_dump() for name in (FP32, INT8)})
    return Bundle.open(red_bundle.path)


def test_latency_accuracy_and_heat_maps_of_every_engine(bundle: Bundle, dataset: Dataset) -> None:
    measured = benchmark(bundle, dataset.name, QUICK, command="adedge benchmark x")
    report = measured.report
    assert set(report.latency) == set(report.accuracy) == set(report.engines) == set(measured.sheets) == {FP32, INT8}
    fp32, int8 = report.accuracy[FP32], report.accuracy[INT8]
    # The dim spot of 100 / 255 = 0.392 is above 0.38, and 0.92 times it is below.
    assert (fp32.pictures, fp32.misses, fp32.false_alarms, fp32.flips) == (12, 0, 0, 0)
    assert (int8.misses, int8.false_alarms, int8.flips) == (pytest.approx(1 / 6), 0, 1)
    assert fp32.pixel_auroc is not None
    assert fp32.pixel_auroc > 0.9
    assert (report.bundle, report.command, report.data) == ("red.adedge", "adedge benchmark x", dataset.name)
    assert (report.data_digest, report.reference, report.threads) == (dataset.digest, FP32, 1)
    assert report.input == (3, 8, 8)
    assert report.resident_mib > 20
    assert [len(one.frame.samples_ms) for one in report.latency.values()] == [20, 20]
    for sheet in measured.sheets.values():
        assert cv2.imdecode(np.frombuffer(sheet, np.uint8), cv2.IMREAD_COLOR) is not None


@pytest.mark.parametrize(("threshold", "verdict"), [(2.0, "accepts"), (-1.0, "rejects")])
def test_engines_that_agree_on_one_verdict_for_all_prove_nothing(
    bundle: Bundle, dataset: Dataset, threshold: float, verdict: str
) -> None:
    """Scores are levels / 255: none exceeds 2, and all exceed -1."""
    fitted = Threshold(value=threshold, false_alarm_rate=0.1, pictures=9, data_digest="")
    with bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={name: fitted.model_dump() for name in (FP32, INT8)})
    report = benchmark(Bundle.open(bundle.path), dataset.name, QUICK).report
    assert [one.flips for one in report.accuracy.values()] == [0, 0]
    assert f"The threshold {verdict} all 12 pictures, good and anomalous: {FP32}, {INT8}. " in "".join(report.notes)


@pytest.mark.parametrize(
    ("options", "measured", "judged", "flips"),
    [
        (BenchmarkOptions(frames=20, precisions=("int8",)), {INT8}, {FP32, INT8}, 1),
        (BenchmarkOptions(frames=20, precisions=("int8",), reference=False), {INT8}, {INT8}, None),
        (BenchmarkOptions(frames=20, target="onnxruntime", precisions=("fp32",)), {FP32}, {FP32}, 0),
    ],
    ids=["precision", "no reference", "target"],
)
def test_engines_are_picked_and_the_model_judges_beside_them(
    bundle: Bundle, dataset: Dataset, options: BenchmarkOptions, measured: set[str], judged: set[str], flips: int | None
) -> None:
    report = benchmark(bundle, dataset.name, options).report
    assert (set(report.latency), set(report.accuracy)) == (measured, judged)
    assert report.accuracy[min(measured)].flips == flips


def test_each_engine_record_is_read_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the report describes the engine that was measured, even if the file changes meanwhile."""
    read: list[str] = []
    original = Bundle.read
    monkeypatch.setattr(Bundle, "read", lambda self, name: read.append(name) or original(self, name))
    report = benchmark(bundle, options=QUICK).report
    assert set(report.engines) == {FP32, INT8}
    for precision in ("fp32", "int8"):
        assert read.count(f"engines/onnxruntime-{precision}/engine.json") == 1


def test_pictures_without_labels_give_latency_alone(bundle: Bundle, red_pictures: Path) -> None:
    said: list[str] = []
    measured = benchmark(bundle, red_pictures, QUICK, notify=said.append)
    assert said == [f"{red_pictures} has no good and anomalous test pictures: only latency is measured"]
    assert set(measured.report.latency) == {FP32, INT8}
    assert (measured.report.accuracy, measured.sheets) == ({}, {})
    assert headline(measured.report).startswith("Verdicts are not compared with the imported model")


def test_without_pictures_the_golden_frames_are_timed(bundle: Bundle) -> None:
    said: list[str] = []
    report = benchmark(bundle, options=QUICK, notify=said.append).report
    assert (report.data, report.data_digest, report.accuracy, said) == (None, None, {}, [])
    assert set(report.latency) == {FP32, INT8}


def test_pictures_without_masks_have_no_pixel_metrics(bundle: Bundle, dataset: Dataset) -> None:
    shutil.rmtree(Path(dataset.name) / "ground_truth")
    report = benchmark(bundle, dataset.name, QUICK).report
    assert report.accuracy[FP32].pixel_auroc is None
    assert report.accuracy[FP32].auroc > 0.9
    assert any(note.startswith("No pixel metrics: ") for note in report.notes)


def test_engines_that_cannot_run_are_named_once_for_each_reason(
    bundle: Bundle, red_record: Callable[[Precision, bytes], EngineRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with bundle.edit() as draft:
        draft.write("model.int8.onnx", b"exported again")
        for precision in ("fp32", "int8"):
            plan = f"engines/tensorrt-{precision}/engine.plan"
            graph = "imported.onnx"
            record = red_record(precision, b"plan").model_copy(
                update={
                    "target": "tensorrt",
                    "plan": plan,
                    "graph": graph,
                    "graph_sha256": bundle.manifest.files[graph].sha256,
                }
            )
            draft.write(plan, b"plan")
            draft.write(f"engines/tensorrt-{precision}/engine.json", record.model_dump_json())
    changed = Bundle.open(bundle.path)
    report = benchmark(changed, options=QUICK).report
    assert set(report.latency) == {FP32}
    absent = [note for note in report.notes if note.startswith("Not measured: ")]
    assert len(absent) == 2
    assert absent[0].startswith(f"Not measured: {INT8}: the {INT8} engine of {bundle.path} is stale")
    assert absent[1].startswith("Not measured: tensorrt/fp32, tensorrt/int8: ")

    with pytest.raises(EngineError, match="no engine to measure here: Not measured: tensorrt/fp32, tensorrt/int8: "):
        benchmark(changed, options=BenchmarkOptions(target="tensorrt"))


@pytest.mark.parametrize(
    ("options", "target"),
    [(BenchmarkOptions(precisions=("fp16",)), "onnxruntime"), (BenchmarkOptions(target="tensorrt"), "tensorrt")],
)
def test_a_bundle_without_such_engines_says_how_to_build_one(
    bundle: Bundle, options: BenchmarkOptions, target: str
) -> None:
    with pytest.raises(EngineError, match=f"no engine to measure here: run 'adedge build-engine .* --target {target}'"):
        benchmark(bundle, options=options)


def test_random_features_are_told_of(bundle: Bundle) -> None:
    source = bundle.manifest.provenance.model_copy(update={"options": {"weights": "none"}})
    with bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(provenance=source.model_dump())
    report = benchmark(Bundle.open(bundle.path), options=QUICK).report
    assert any("random features (--weights none)" in note for note in report.notes)


@pytest.mark.parametrize("instructions", [True, False])
def test_int8_that_is_slower_is_explained(instructions: bool) -> None:
    (remark,) = _latency_notes({FP32: 2.0, INT8: 3.0}, instructions)
    assert "INT8 takes 1.50 times as long as FP32 here" in remark
    assert ("although" in remark) == instructions
    assert _latency_notes({FP32: 3.0, INT8: 2.0}, instructions) == []


def test_that_a_processor_computes_fp16_in_fp32_is_said() -> None:
    (remark,) = _latency_notes({FP32: 2.0, "onnxruntime/fp16": 2.0}, True)
    assert "computes FP16 graphs in FP32" in remark
    assert _latency_notes({"tensorrt/fp16": 1.0, "tensorrt/int8": 9.0}, True) == []


def test_what_cannot_be_drawn_is_said_before_anything_is_measured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    steps: list[int] = []
    with pytest.raises(MissingDependency, match=r"needs the package 'matplotlib': .*pip install -e '\.\[report\]'"):
        benchmark(bundle, progress=lambda done, total, text: steps.append(done))
    assert steps == []


def test_test_pictures_that_were_trained_on_are_named_beside_the_figures(bundle: Bundle, dataset: Dataset) -> None:
    good = [sample for sample in dataset.test if sample.label == 0]
    with bundle.edit() as draft:
        draft.write_json("training.json", {"pictures": [sample.digest for sample in good[:2]], "history": []})
    notices: list[str] = []
    report = benchmark(Bundle.open(bundle.path), dataset.name, QUICK, notify=notices.append).report
    said = "The detector was trained on 2 of the 12 test pictures (good/0.png, good/1.png): accuracy on new pictures"
    assert report.trained_on == ("good/0.png", "good/1.png")
    assert [notice.startswith(said) for notice in notices] == [True]
    assert said in markdown(report)
    assert said in page(report, {})
    with Bundle.open(bundle.path).edit() as draft:
        draft.write_json("training.json", {"pictures": [sample.digest for sample in dataset.train], "history": []})
    clean = benchmark(Bundle.open(bundle.path), dataset.name, QUICK, notify=notices.append).report
    assert (clean.trained_on, len(notices)) == ((), 1)
    assert "trained on" not in markdown(clean) + page(clean, {})


def test_pictures_that_a_benchmark_leaves_out_are_said(bundle: Bundle, dataset: Dataset) -> None:
    (Path(dataset.name) / "test/good/IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    notices: list[str] = []
    benchmark(bundle, dataset.name, QUICK, notify=notices.append)
    assert len(notices) == 1
    assert "left out 1 file" in notices[0]
    assert "(1 .heic)" in notices[0]
