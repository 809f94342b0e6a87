"""Bootstrap intervals against a plain loop over resamples, and against theory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

from adedge.errors import DataError
from adedge.intervals import auroc_interval, pixel_intervals, rate_bound
from adedge.metrics import aupro


def drawn_by_hand(anomalous: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of one resample: as many good and as many anomalous pictures as there are."""
    groups = [np.flatnonzero(anomalous == value) for value in (False, True)]
    return np.concatenate([rng.choice(group, len(group)) for group in groups if len(group)])


@pytest.mark.parametrize("levels", [8, 1000], ids=["ties", "hardly a tie"])
def test_auroc_interval_equals_a_loop_over_resamples(levels: int) -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [60, 40])
    scores = np.round(rng.normal(labels, 1.0) * levels) / levels
    areas = []
    for _ in range(2000):
        chosen = drawn_by_hand(labels == 1, rng)
        areas.append(roc_auc_score(labels[chosen], scores[chosen]))
    found = auroc_interval(labels, scores, resamples=2000)
    assert (found.low, found.high) == pytest.approx(np.percentile(areas, [2.5, 97.5]), abs=0.01)
    assert found == auroc_interval(labels, scores, resamples=2000)
    assert found != auroc_interval(labels, scores, resamples=2000, seed=1)


def test_auroc_interval_has_the_width_of_theory() -> None:
    """Hanley and McNeil 1982: the standard error of an AUROC of exponential scores."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [500, 400])
    scores = rng.exponential(np.where(labels == 1, 3.0, 1.0))
    area = roc_auc_score(labels, scores)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = np.sqrt((area * (1 - area) + 399 * (q1 - area**2) + 499 * (q2 - area**2)) / (500 * 400))
    found = auroc_interval(labels, scores)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.low < area < found.high


def test_pixel_intervals_equal_a_loop_over_resamples() -> None:
    rng = np.random.default_rng(2)
    masks = np.zeros((20, 24, 24), bool)
    for number, mask in enumerate(masks[:12]):
        mask[3:9, 3 + number : 8 + number] = True
        mask[15:17, 2:5] = number % 2 == 0
    maps = (rng.normal(0, 1, masks.shape) + masks * rng.uniform(0.2, 2.5, (20, 1, 1))).astype(np.float32)
    by_pixels, by_regions = [], []
    for _ in range(300):
        chosen = drawn_by_hand(masks.any(axis=(1, 2)), rng)
        by_pixels.append(roc_auc_score(masks[chosen].ravel(), maps[chosen].ravel()))
        by_regions.append(aupro(masks[chosen], maps[chosen]))
    found = pixel_intervals(masks, maps)
    for interval, drawn in ((found.auroc, by_pixels), (found.aupro, by_regions)):
        spread = np.std(drawn)
        assert interval.low == pytest.approx(np.percentile(drawn, 2.5), abs=0.4 * spread)
        assert interval.high == pytest.approx(np.percentile(drawn, 97.5), abs=0.4 * spread)


def test_pixel_intervals_of_pictures_that_are_all_alike_have_no_width() -> None:
    """Every resample of equal pictures is the same, so both ends are the metrics themselves, as far as levels tell."""
    rng = np.random.default_rng(3)
    mask = np.zeros((40, 40), bool)
    mask[5:15, 5:20] = mask[25:28, 30:33] = True
    values = rng.normal(0, 1, mask.shape) + mask
    masks, maps = np.repeat(mask[None], 4, 0), np.repeat(values[None], 4, 0)
    found = pixel_intervals(masks, maps, resamples=20)
    assert found.auroc.low == pytest.approx(found.auroc.high)
    assert found.auroc.low == pytest.approx(roc_auc_score(mask.ravel(), values.ravel()), abs=1e-3)
    assert found.aupro.low == pytest.approx(aupro(masks, maps), abs=1e-3)


@pytest.mark.parametrize(("events", "trials"), [(0, 1), (0, 240), (1, 240), (7, 32), (31, 32), (32, 32), (3, 20_000)])
def test_rate_bound_is_the_quantile_of_a_beta_distribution(events: int, trials: int) -> None:
    expected = 1.0 if events == trials else beta.ppf(0.95, events + 1, trials - events)
    assert rate_bound(events, trials) == pytest.approx(expected, abs=1e-8)


def test_what_has_no_interval_is_one_sentence() -> None:
    with pytest.raises(DataError, match="2 events in 1 trials"):
        rate_bound(2, 1)
    with pytest.raises(DataError, match="no anomalous"):
        auroc_interval([0, 0], [1.0, 2.0])
    with pytest.raises(DataError, match="one size"):
        pixel_intervals(np.ones((1, 4, 4)), np.zeros((1, 4, 5)))
