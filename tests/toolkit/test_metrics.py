"""Metrics against scikit-learn, SciPy, closed forms and brute force."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn import metrics as reference

from adedge.errors import DataError
from adedge.metrics import aupro, auroc, best_f1, count_flips, pixel_auroc, pro_curve, roc_curve

Scored = tuple[NDArray[np.int64], NDArray[np.float64]]


@st.composite
def scored(draw: st.DrawFn) -> Scored:
    """Labels of both classes and scores from few distinct values, so that ties are common."""
    size = draw(st.integers(2, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size).filter(lambda x: 0 < sum(x) < len(x)))
    scores = draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size))
    return np.array(labels), np.array(scores) / 4


@given(scored())
def test_auroc_and_curve_equal_scikit_learn(case: Scored) -> None:
    labels, scores = case
    assert auroc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-12)
    fpr, tpr, thresholds = roc_curve(labels, scores)
    expected = reference.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected[0])
    np.testing.assert_allclose(tpr, expected[1])
    np.testing.assert_allclose(thresholds, expected[2])


@given(scored())
def test_auroc_is_the_share_of_pairs_in_the_right_order(case: Scored) -> None:
    labels, scores = case
    pairs = [(b > g) + 0.5 * (b == g) for b in scores[labels == 1] for g in scores[labels == 0]]
    assert auroc(labels, scores) == pytest.approx(np.mean(pairs))


@given(scored())
def test_auroc_knows_order_only(case: Scored) -> None:
    labels, scores = case
    assert auroc(labels, np.exp(3 * scores)) == pytest.approx(auroc(labels, scores))
    assert auroc(labels, -scores) == pytest.approx(1 - auroc(labels, scores))


@settings(max_examples=30, deadline=None)
@given(scored())
def test_best_f1_equals_scikit_learn(case: Scored) -> None:
    labels, scores = case
    best = best_f1(labels, scores)
    expected = max(reference.f1_score(labels, scores >= t) for t in np.unique(scores))
    assert best.f1 == pytest.approx(expected)
    called = scores >= best.threshold
    assert reference.f1_score(labels, called) == pytest.approx(expected)
    assert best.precision == pytest.approx(reference.precision_score(labels, called))
    assert best.recall == pytest.approx(reference.recall_score(labels, called))


def blobs(seed: int, count: int = 6, size: int = 40) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Masks with several regions, some touching at a corner only, one without any; maps that see them dimly."""
    rng = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(rng.standard_normal((count, size, size)), (0, 3, 3)) > 0.12
    masks[0] = False
    masks[1, :4, :4] = np.eye(4, dtype=bool)
    maps = masks + rng.normal(0, 0.7, masks.shape)
    return masks, np.round(maps, 1).astype(np.float32)


def brute_force_pro(masks: NDArray[np.bool_], maps: NDArray[np.float32], max_fpr: float) -> float:
    """Every threshold in turn, regions labelled by SciPy, the area by its trapezoids: slow and plain."""
    points = [(0.0, 0.0)]
    regions = []
    for mask in masks:
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions.append([labelled == i + 1 for i in range(count)])
    for threshold in np.unique(maps)[::-1]:
        called = maps >= threshold
        overlaps = [called[i][region].mean() for i, found in enumerate(regions) for region in found]
        points.append((float(called[~masks].mean()), float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= max_fpr:
            break
        right = min(x1, max_fpr)
        y_right = y1 if x1 <= max_fpr else y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)
        area += (right - x0) * (y0 + y_right) / 2
    return area / max_fpr


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_aupro_equals_brute_force(seed: int, max_fpr: float) -> None:
    masks, maps = blobs(seed)
    assert aupro(masks, maps, max_fpr) == pytest.approx(brute_force_pro(masks, maps, max_fpr), abs=1e-9)


def test_pro_curve_ends_at_the_limit_and_never_falls() -> None:
    masks, maps = blobs(5)
    rates, overlaps = pro_curve(masks, maps, 0.3)
    assert (rates[0], overlaps[0]) == (0, 0)
    assert rates[-1] == 0.3
    assert (np.diff(rates) >= 0).all()
    assert (np.diff(overlaps) >= -1e-12).all()


def test_perfect_and_blind_maps_have_the_areas_that_theory_gives() -> None:
    masks, _ = blobs(7)
    assert aupro(masks, masks.astype(float)) == pytest.approx(1)
    # One value everywhere: a straight line to (1, 1), whose area up to 0.3 is 0.3 / 2 of the square.
    assert aupro(masks, np.zeros(masks.shape)) == pytest.approx(0.15)


def test_small_regions_count_as_much_as_large_ones() -> None:
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :10, :10] = True
    masks[0, 15, 15] = True
    maps = np.zeros(masks.shape)
    maps[0, :10, :10] = 1  # the large region is found, the single pixel is not
    assert aupro(masks, maps, 0.3) == pytest.approx(0.5 + 0.5 * 0.15)


def test_regions_are_joined_at_corners_not_across_borders_or_pictures() -> None:
    """Two pixels that touch at a corner are one region of two; those at opposite borders, or at the same place of
    two pictures, are regions of their own. Of four regions the lone pixels are found, and half of the pair.
    """
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 3, 3] = masks[0, 4, 4] = True
    masks[0, 0, 6] = masks[0, 7, 6] = masks[1, 0, 6] = True
    maps = np.zeros(masks.shape)
    maps[0, 3, 3] = maps[0, 0, 6] = maps[0, 7, 6] = maps[1, 0, 6] = 1
    # At rate 0 the overlap is (0.5 + 3) / 4; from there a line to 1 at rate 1.
    rates, overlaps = pro_curve(masks, maps, 0.3)
    assert overlaps[rates == 0].max() == pytest.approx(3.5 / 4)
    assert aupro(masks, maps, 0.3) == pytest.approx(3.5 / 4 + 0.5 / 4 * 0.15)


def test_a_ring_is_one_region_and_a_picture_without_any_gives_good_pixels_only() -> None:
    masks = np.zeros((3, 9, 9), bool)
    masks[1, 2:7, 2:7] = True
    masks[1, 3:6, 3:6] = False
    masks[1, 4, 4] = True  # inside the ring, apart from it
    maps = np.where(masks, 0.5, 0.0)
    maps[0, 0, :3] = 1.0  # three of 226 good pixels of all pictures come first
    rates, overlaps = pro_curve(masks, maps, 0.3)
    good = 3 * 81 - 17
    assert rates[overlaps == 0].max() == pytest.approx(3 / good)
    assert aupro(masks, maps, 0.3) == pytest.approx(1 - 3 / good / 0.3)


def test_pixel_auroc_equals_scikit_learn() -> None:
    masks, maps = blobs(3)
    assert pixel_auroc(masks, maps) == pytest.approx(reference.roc_auc_score(masks.ravel(), maps.ravel()))


@pytest.mark.parametrize(
    ("reference", "verdicts", "flips"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 0),
        ([0, 0, 1, 1], [1, 0, 1, 0], 2),  # either way counts
        ([0, 1], [1, 0], 2),
        ([], [], 0),
    ],
)
def test_flips_are_pictures_decided_otherwise(reference: list[int], verdicts: list[int], flips: int) -> None:
    assert count_flips(np.array(reference, bool), np.array(verdicts, bool)) == flips


def test_verdicts_of_other_pictures_are_no_flips() -> None:
    with pytest.raises(DataError, match="4 verdicts of the reference cannot be compared with 1"):
        count_flips([True] * 4, [True])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auroc([0, 0], [1.0, 2.0]), "no anomalous"),
        (lambda: auroc([1, 1], [1.0, 2.0]), "only anomalous"),
        (lambda: auroc([0, 1], [1.0, np.nan]), "1 of 2 pictures have no score"),
        (lambda: auroc([0, 1], [1.0]), "one length"),
        (lambda: aupro(np.zeros((1, 4, 4)), np.zeros((1, 4, 4))), "no anomalous"),
        (lambda: aupro(np.ones((1, 4, 4)), np.zeros((1, 4, 5))), r"\(N, H, W\)"),
        (lambda: aupro(np.eye(4)[None], np.zeros((1, 4, 4)), 0), "max_fpr"),
    ],
    ids=["one class", "other class", "nan", "lengths", "no defect", "shapes", "limit"],
)
def test_what_cannot_be_measured_is_one_sentence(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=message):
        call()
