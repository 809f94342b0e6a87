"""Calibrating: what is stored, what is refused with the bundle as it was, and which pictures serve for what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from adedge.bundle import Bundle
from adedge.data.datasets import Dataset, Sample, load_dataset
from adedge.errors import BundleError, DataError, EngineError
from adedge.export.calibrate import PROBE_PICTURES, RANGE_PICTURES, calibrate, fit_thresholds, split_pictures
from adedge.export.graphs import export_graphs
from adedge.export.proof import pictures_with_scores, prove
from adedge.golden import GoldenFrames, golden_file
from adedge.runtime.engines import EngineRecord
from adedge.specs import Precision, Tiling


def test_calibrate_stores_graphs_and_thresholds_and_export_repeats_them(bundle: Bundle, data: Path) -> None:
    bundle, _ = export_graphs(bundle)
    result = calibrate(bundle, load_dataset(str(data)), false_alarm_rate=0.05)
    manifest = result.bundle.manifest
    assert len(result.parts.thresholds) == 24
    assert result.parts.trained_on == 12
    assert set(manifest.graphs) == {"model.fp32", "model.fp16", "model.int8", "model.int8-fp16"}
    assert set(manifest.thresholds) == {"pytorch/fp32", *(f"onnxruntime/{p}" for p in ("fp32", "fp16", "int8"))}
    assert result.bundle.verify() == []
    again, notes = export_graphs(result.bundle)
    assert notes == ()
    assert again.manifest.files == manifest.files
    assert again.manifest.thresholds == manifest.thresholds


def test_too_few_pictures_leave_the_bundle_as_it_was(bundle: Bundle, data: Path) -> None:
    with pytest.raises(DataError, match="needs at least 99 good pictures .* there are 24"):
        calibrate(bundle, load_dataset(str(data)))
    assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_interrupted_calibration_leaves_the_bundle_as_it_was(bundle: Bundle, data: Path) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        if text.startswith("onnxruntime"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(bundle, load_dataset(str(data)), false_alarm_rate=0.05, progress=interrupt)
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    assert Bundle.open(bundle.path).verify() == []


def test_trained_pictures_fit_no_threshold(bundle: Bundle, data: Path) -> None:
    dataset = load_dataset(str(data))
    parts = split_pictures(bundle, dataset, 0.05)
    trained = {sample.digest for sample in dataset.train}
    assert not trained & {sample.digest for sample in parts.thresholds}
    assert {sample.digest for sample in parts.int8} == trained


def flat(level: int) -> Sample:
    return Sample(path=None, label=0, kind="good", array=np.full((8, 8, 3), level, np.uint8))


def dataset_of(seen: int, unseen: int) -> tuple[Dataset, list[str]]:
    """So many pictures that the networks were trained on, and others; the digests of the former."""
    samples = tuple(flat(level) for level in range(seen + unseen))
    made = Dataset(name="d", train=samples[:seen], calibration=samples[seen:], test=())
    return made, [sample.digest for sample in samples[:seen]]


def trained_on(bundle: Bundle, digests: list[str]) -> Bundle:
    with bundle.edit() as draft:
        draft.write_json("training.json", {"pictures": digests})
    return Bundle.open(bundle.path)


@pytest.mark.parametrize(
    ("seen", "unseen", "int8", "thresholds"),
    [
        (PROBE_PICTURES, 30, PROBE_PICTURES, 30),  # enough were trained on
        (100, 30, RANGE_PICTURES, 30),  # and more than 64 move no range
        (0, 39, 15, 24),  # 9 are needed for a rate of 0.1: half of the spare 30 for INT8
        (7, 39, 15, 24),  # 7 of those trained on are too few, and are left out altogether
        (0, 19, 8, 11),  # at least 8, however few are spare
    ],
)
def test_pictures_are_split_by_what_they_were_used_for(
    red_bundle: Bundle, seen: int, unseen: int, int8: int, thresholds: int
) -> None:
    dataset, digests = dataset_of(seen, unseen)
    bundle = trained_on(red_bundle, digests)
    parts = split_pictures(bundle, dataset, 0.1)
    assert (len(parts.int8), len(parts.thresholds), parts.trained_on) == (int8, thresholds, seen)
    ours, theirs = ({sample.digest for sample in part} for part in (parts.int8, parts.thresholds))
    assert not ours & theirs
    assert not theirs & set(digests)
    again = split_pictures(bundle, dataset, 0.1)
    assert ([s.digest for s in again.int8], [s.digest for s in again.thresholds]) == (
        [s.digest for s in parts.int8],
        [s.digest for s in parts.thresholds],
    )


def test_one_picture_given_twice_counts_once(red_bundle: Bundle) -> None:
    """The promise of a threshold is about different pictures."""
    dataset, digests = dataset_of(0, 20)
    twice = Dataset(name="d", train=dataset.calibration, calibration=dataset.calibration, test=())
    parts = split_pictures(trained_on(red_bundle, digests), twice, 0.1)
    assert len(parts.int8) + len(parts.thresholds) == 20


def golden_of(bundle: Bundle, levels: Sequence[int]) -> Bundle:
    """The bundle with flat grey golden frames of these levels."""
    frames = np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])
    maps = frames[..., 0].astype(np.float32) / 255
    golden = GoldenFrames(frames=frames, labels=np.zeros(len(levels), np.int8), masks=None)
    with bundle.edit() as draft:
        draft.write("golden.npz", golden_file(golden, maps, maps.max((1, 2))))
    return Bundle.open(bundle.path)


@pytest.mark.parametrize("seen", [0, PROBE_PICTURES], ids=["held-out pictures for INT8", "training pictures for INT8"])
def test_golden_frames_fit_no_threshold_from_whatever_file_they_come(
    red_bundle: Bundle, tmp_path: Path, seen: int
) -> None:
    dataset, digests = dataset_of(seen, 40)
    bundle = golden_of(trained_on(red_bundle, digests), (seen, seen + 3, 200))
    # The same pixels in another file, whose digest differs.
    cv2.imwrite(str(tmp_path / "again.png"), np.full((8, 8, 3), seen + 3, np.uint8))
    copy = Sample(path=tmp_path / "again.png", label=0, kind="good")
    parts = split_pictures(bundle, replace(dataset, calibration=(*dataset.calibration, copy)), 0.1)
    golden = {flat(seen).digest, flat(seen + 3).digest, copy.digest}
    assert parts.golden == golden
    assert not golden & {sample.digest for sample in parts.thresholds}
    assert len(parts.thresholds) == (38 if seen else 38 - (38 - 9) // 2)
    assert golden.isdisjoint(sample.digest for sample in parts.int8) == bool(seen)


def test_golden_frames_missing_from_the_thresholds_are_told_of(red_bundle: Bundle) -> None:
    dataset, digests = dataset_of(PROBE_PICTURES, 10)
    bundle = golden_of(trained_on(red_bundle, digests), (PROBE_PICTURES, PROBE_PICTURES + 1))
    with pytest.raises(DataError, match=r"there are 8: .* \(2 more are golden frames, which fit no threshold\)"):
        split_pictures(bundle, dataset, 0.1)
    with pytest.raises(DataError, match=r"there are 8: .* \(2 more are golden frames, which fit no threshold\)"):
        fit_thresholds(bundle, dataset, false_alarm_rate=0.1)


def test_a_picture_smaller_than_a_tile_is_named_before_any_work(red_bundle: Bundle, red_pictures: Path) -> None:
    spec = red_bundle.manifest.input.model_copy(update={"resize": "tile", "tiling": Tiling(tile=8, stride=4)})
    with red_bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(input=spec.model_dump())
    bundle = Bundle.open(red_bundle.path)
    cv2.imwrite(str(red_pictures / "small.png"), np.zeros((7, 20, 3), np.uint8))
    dataset = load_dataset(str(red_pictures))
    steps: list[str] = []
    sentence = r"small\.png of 20 × 7 pixels is smaller than a tile of 8 × 8: leave it out, or"
    for call in (calibrate, fit_thresholds):
        with pytest.raises(DataError, match=sentence):
            call(bundle, dataset, false_alarm_rate=0.1, progress=lambda done, total, text: steps.append(text))
    assert steps == []
    assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_too_few_pictures_for_thresholds_are_refused(red_bundle: Bundle) -> None:
    dataset, digests = dataset_of(12, 8)
    with pytest.raises(DataError, match="needs at least 9 good pictures .* there are 8"):
        split_pictures(trained_on(red_bundle, digests), dataset, 0.1)


# --- thresholds of engines alone, as on a device ---------------------------------------------------------------------


def test_thresholds_of_engines_are_fitted_alone(
    red_bundle: Bundle, red_pictures: Path, red_samples: tuple[Sample, ...]
) -> None:
    dataset = load_dataset(str(red_pictures))
    fitted = fit_thresholds(red_bundle, dataset)
    # The rate is the reference's, 0.1: of 25 scores the ceil(26 * 0.9) = 24th, level 235, midway to the next, 245.
    thresholds = fitted.bundle.manifest.thresholds
    assert thresholds["onnxruntime/fp32"].value == pytest.approx(240 / 255, abs=1e-6)
    assert thresholds["onnxruntime/int8"].value == pytest.approx(0.92 * 240 / 255, abs=1e-6)
    assert thresholds["onnxruntime/int8"].pictures == 25
    assert any("other pictures" in note for note in fitted.notes)
    found, known = pictures_with_scores(fitted.bundle, red_samples)
    assert [one.flips for one in prove(known, found)] == [0, 0]
    with pytest.raises(DataError, match="99"):
        fit_thresholds(fitted.bundle, dataset, false_alarm_rate=0.01)


@pytest.mark.fault("scores changed by the rounding of FP16")
def test_golden_scores_that_rounding_moves_flip_no_verdict(red_bundle: Bundle, red_pictures: Path) -> None:
    """The 24th of 25 pictures, level 235, is also a golden frame, whose score another library rounded to 2e-7 more."""
    levels = (10, 60, 235, 250)
    frames = np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])
    maps = (frames[..., 0] / 255 * (1 + 2e-7)).astype(np.float32)
    golden = GoldenFrames(frames=frames, labels=np.array([0, 0, 1, 1], np.int8), masks=None)
    with red_bundle.edit() as draft:
        draft.write("golden.npz", golden_file(golden, maps, maps.max((1, 2))))
    fitted = fit_thresholds(Bundle.open(red_bundle.path), load_dataset(str(red_pictures)), false_alarm_rate=0.1)
    assert maps[2].max() > np.float32(235 / 255)  # rounded up indeed
    assert [proof.flips for proof in prove(fitted.bundle, precision="fp32")] == [0]


def test_thresholds_alone_leave_graphs_and_engines_as_they_are(red_bundle: Bundle, red_pictures: Path) -> None:
    fitted = fit_thresholds(red_bundle, load_dataset(str(red_pictures)), false_alarm_rate=0.2).bundle
    assert fitted.manifest.files == red_bundle.manifest.files
    assert fitted.verify() == []
    assert fitted.manifest.normalisation is None


def test_without_a_threshold_of_the_model_the_rate_has_to_be_given(red_bundle: Bundle, red_pictures: Path) -> None:
    with red_bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={})
    bundle, dataset = Bundle.open(red_bundle.path), load_dataset(str(red_pictures))
    with pytest.raises(BundleError, match="no threshold yet to take the rate from: give --false-alarm-rate"):
        fit_thresholds(bundle, dataset)
    assert fit_thresholds(bundle, dataset, false_alarm_rate=0.5).bundle.manifest.thresholds.keys() == {
        "onnxruntime/fp32",
        "onnxruntime/int8",
    }


def test_a_stale_engine_keeps_its_threshold_and_is_told_of(red_bundle: Bundle, red_pictures: Path) -> None:
    with red_bundle.edit() as draft:
        draft.write("model.int8.onnx", b"exported again")
    fitted = fit_thresholds(Bundle.open(red_bundle.path), load_dataset(str(red_pictures)))
    before, after = red_bundle.manifest.thresholds, fitted.bundle.manifest.thresholds
    assert after["onnxruntime/fp32"].pictures == 25
    assert after["onnxruntime/int8"] == before["onnxruntime/int8"]
    (note,) = (note for note in fitted.notes if "no new threshold" in note)
    assert note.startswith("no new threshold for the onnxruntime/int8 engine: ")
    assert "is stale: model.int8.onnx changed since" in note


def test_without_an_engine_that_runs_nothing_is_fitted(red_bundle: Bundle, red_pictures: Path) -> None:
    with red_bundle.edit() as draft:
        draft.remove("engines")
    bundle = Bundle.open(red_bundle.path)
    with pytest.raises(EngineError, match=r"has no engine that runs here .*: run 'adedge build-engine' first"):
        fit_thresholds(bundle, load_dataset(str(red_pictures)))
    assert Bundle.open(bundle.path).manifest == bundle.manifest


# --- scores that no threshold separates ------------------------------------------------------------------------------


def clipped(graph: bytes, highest: float) -> bytes:
    """The graph with its map cut off at ``highest``."""
    model = onnx.load_from_string(graph)
    model.graph.node[0].output[0] = "raw"
    model.graph.node.append(onnx.helper.make_node("Clip", ["raw", "", "highest"], ["map"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(highest), "highest"))
    return model.SerializeToString()


Graphs = Callable[[float], bytes]
Records = Callable[[Precision, bytes], EngineRecord]


def engine_from(bundle: Bundle, graph: bytes, red_record: Records) -> Bundle:
    """The bundle with this FP32 engine, which is its only one, and this imported graph."""
    record = red_record("fp32", graph)
    with bundle.edit() as draft:
        draft.remove("engines")
        draft.write("imported.onnx", graph)
        draft.write(record.graph, graph)
        draft.write(record.plan, graph)
        draft.write("engines/onnxruntime-fp32/engine.json", record.model_dump_json())
    return Bundle.open(bundle.path)


@pytest.mark.fault("a detector that clips its scores, or tells nothing apart")
def test_a_detector_that_clips_its_score_at_one_is_refused(
    red_bundle: Bundle, red_pictures: Path, graph_that_shows_red: Graphs, red_record: Records
) -> None:
    """Three times the level / 255: of the 25 levels 5, 15, ... those from 85 on are clipped, 17 of them."""
    bundle = engine_from(red_bundle, clipped(graph_that_shows_red(3.0), 1.0), red_record)
    dataset = load_dataset(str(red_pictures))
    for call in (calibrate, fit_thresholds):
        with pytest.raises(DataError, match=r"onnxruntime/fp32: \d+ of \d+ held-out scores are the highest value 1: "):
            call(bundle, dataset, false_alarm_rate=0.1)
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    with pytest.raises(DataError, match="17 of 25 held-out scores"):
        fit_thresholds(bundle, dataset, false_alarm_rate=0.1)


def test_a_detector_that_may_clip_its_score_is_told_of(
    red_bundle: Bundle, red_pictures: Path, graph_that_shows_red: Graphs, red_record: Records
) -> None:
    """Nine times the level / 255, cut off at 3: as for 1, from level 85 on."""
    bundle = engine_from(red_bundle, clipped(graph_that_shows_red(9.0), 3.0), red_record)
    fitted = fit_thresholds(bundle, load_dataset(str(red_pictures)), false_alarm_rate=0.1)
    assert any(
        note.startswith("onnxruntime/fp32: 17 of 25 held-out scores are the highest value 3: ") for note in fitted.notes
    )
    assert fitted.bundle.manifest.thresholds["onnxruntime/fp32"].value > 3


@pytest.mark.fault("a detector that clips its scores, or tells nothing apart")
def test_a_detector_with_one_score_for_all_is_refused(
    red_bundle: Bundle, red_pictures: Path, graph_that_shows_red: Graphs, red_record: Records
) -> None:
    bundle = engine_from(red_bundle, graph_that_shows_red(0.0), red_record)
    for call in (calibrate, fit_thresholds):
        with pytest.raises(DataError, match=r"onnxruntime/fp32: all \d+ held-out good pictures have the score 0: "):
            call(bundle, load_dataset(str(red_pictures)), false_alarm_rate=0.1)
    assert Bundle.open(bundle.path).manifest == bundle.manifest


@pytest.mark.fault("a detector that clips its scores, or tells nothing apart")
@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_a_detector_whose_scores_are_not_finite_is_refused(
    red_bundle: Bundle, red_pictures: Path, graph_that_shows_red: Graphs, red_record: Records, weight: float
) -> None:
    bundle = engine_from(red_bundle, graph_that_shows_red(weight), red_record)
    for call in (calibrate, fit_thresholds):
        with pytest.raises(EngineError, match=r"has the score (nan|inf)"):
            call(bundle, load_dataset(str(red_pictures)), false_alarm_rate=0.1)
    assert Bundle.open(bundle.path).manifest == bundle.manifest
