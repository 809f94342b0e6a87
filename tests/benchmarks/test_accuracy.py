"""Accuracy of contenders against scikit-learn, and rates that can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_auc_score

from adedge.benchmarks.accuracy import CURVE_POINTS, Scored, accuracy, masks_at_map_size, score_samples
from adedge.benchmarks.latency import Contender
from adedge.data.datasets import Dataset, Sample
from adedge.metrics import aupro
from adedge.specs import InputSpec, ReadyMap, ScoreSpec

SPEC = InputSpec(height=32, width=32, channels=1, color="gray")
SCORE = ScoreSpec(comparison=ReadyMap())


def test_accuracy_counts_misses_false_alarms_and_flips(dataset: Dataset, contender: Callable[..., Contender]) -> None:
    samples = dataset.test
    labels = np.array([sample.label for sample in samples])
    reference = score_samples(contender("pytorch/fp32"), samples, SPEC, SCORE)
    laxer = score_samples(contender("fake/fp32", threshold=0.3), samples, SPEC, SCORE)
    masks = masks_at_map_size(samples, reference.maps)
    assert masks is not None
    found = accuracy(laxer, labels, masks, reference)
    assert found.auroc == roc_auc_score(labels, laxer.scores)
    assert found.pixel_auroc == pytest.approx(roc_auc_score(masks.ravel(), np.stack(laxer.maps).ravel()))
    assert (found.misses, found.false_alarms) == (0, 0)
    assert accuracy(reference, labels, masks, reference).misses == pytest.approx(1 / 6)
    assert found.flips == 1  # the dim spot, which 0.5 lets pass and 0.3 does not
    assert found.auroc_low <= found.auroc <= found.auroc_high


def test_a_threshold_of_zero_is_a_threshold(dataset: Dataset, contender: Callable[..., Contender]) -> None:
    scored = score_samples(contender("fake/fp32", threshold=0.0), dataset.test, SPEC, SCORE)
    assert scored.verdicts is not None
    assert scored.verdicts.all()


def test_maps_of_several_sizes_have_no_pixel_metrics(dataset: Dataset) -> None:
    maps = [np.zeros((32, 32), np.float32), np.zeros((16, 32), np.float32)]
    assert masks_at_map_size(dataset.test[:2], maps) is None


def scored(scores: np.ndarray, threshold: float | None = None) -> Scored:
    maps = [np.full((4, 4), score, np.float32) for score in scores]
    return Scored(maps=maps, scores=scores, verdicts=None if threshold is None else scores > threshold)


def test_without_thresholds_masks_or_a_reference_there_are_no_rates() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.9])
    bare = accuracy(scored(scores), labels, None, scored(scores, 0.5))
    assert (bare.false_alarms, bare.misses, bare.flips) == (None, None, None)
    assert (bare.pixel_auroc, bare.aupro, bare.pro) == (None, None, ())
    alone = accuracy(scored(scores, 0.35), labels, None, None)
    assert (alone.false_alarms, alone.misses, alone.flips) == (0.5, 0.5, None)
    unsure = accuracy(scored(scores, 0.35), labels, None, scored(scores))
    assert unsure.flips is None


def test_f1_and_overlap_are_those_of_their_definitions(dataset: Dataset, contender: Callable[..., Contender]) -> None:
    samples = dataset.test
    labels = np.array([sample.label for sample in samples])
    found = score_samples(contender("fake/fp32", work=lambda x: [1 - x[:, 0]]), samples, SPEC, SCORE)
    masks = masks_at_map_size(samples, found.maps)
    measured = accuracy(found, labels, masks, None)
    precision, recall, _ = precision_recall_curve(labels, found.scores)
    assert measured.best_f1 == pytest.approx(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9)))
    assert masks is not None
    assert measured.aupro == pytest.approx(aupro(masks, np.stack(found.maps)))
    for interval, value in (
        (measured.pixel_auroc_interval, measured.pixel_auroc),
        (measured.aupro_interval, measured.aupro),
    ):
        assert interval is not None
        assert interval[0] <= value <= interval[1]


def test_curves_keep_their_ends_and_few_points_between() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 2
    found = accuracy(scored(rng.normal(labels.astype(float))), labels, None, None)
    assert found.roc[0] == (0, 0)
    assert found.roc[-1] == (1, 1)
    assert len(found.roc) == CURVE_POINTS
    assert list(found.roc) == sorted(found.roc)


def test_masks_are_brought_to_the_maps_size_or_left_out_where_one_is_unknown(dataset: Dataset) -> None:
    samples = [sample for sample in dataset.test if sample.label == 1][:2]
    masks = masks_at_map_size(samples, [np.zeros((16, 8), np.float32)] * 2)
    assert masks is not None
    expected = np.zeros((16, 8), bool)
    expected[4:8, 2:4] = True  # 8:16 of 32 rows and of 32 columns
    assert [np.array_equal(mask, expected) for mask in masks] == [True, True]
    unmasked = Sample(path=samples[0].path, label=1, kind="spot")
    assert masks_at_map_size([samples[0], unmasked], [np.zeros((32, 32), np.float32)] * 2) is None
    good = Sample(path=samples[0].path, label=0, kind="good")  # has no mask, and needs none
    masks = masks_at_map_size([good], [np.zeros((32, 32), np.float32)])
    assert masks is not None
    assert not masks.any()
