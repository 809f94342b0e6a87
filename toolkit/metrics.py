"""How well scores and maps separate good from anomalous: AUROC, PRO, F1, and how certain these figures are.

Everything here takes raw scores and maps. Curves are exact: every distinct value is a threshold. A picture or pixel is
called anomalous when its value is at or above the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from adedge.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BestF1:
    """The largest F1 that any threshold reaches, and that threshold: an upper bound, fitted to the labels."""

    f1: float
    threshold: float
    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that an anomalous picture scores above a good one, ties counted half.

    ``labels`` (N,) are 0 or 1, ``scores`` (N,) raw. Raises `DataError` for one class only, or a score that is NaN.
    """
    positive, values = _checked(labels, scores)
    return _auroc(positive, values)


def pixel_auroc(masks: ArrayLike, maps: ArrayLike) -> float:
    """AUROC over all pixels of all maps; ``masks`` and ``maps`` (N, H, W)."""
    positive, values = _checked_maps(masks, maps)
    return _auroc(positive.ravel(), values.ravel())


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """(False-positive rates, true-positive rates, thresholds) by falling threshold, from (0, 0) to (1, 1)."""
    positive, values = _checked(labels, scores)
    thresholds, true, false = _counts(positive, values)
    return (
        np.concatenate([[0.0], false / false[-1]]),
        np.concatenate([[0.0], true / true[-1]]),
        np.concatenate([[np.inf], thresholds]),
    )


def best_f1(labels: ArrayLike, scores: ArrayLike) -> BestF1:
    """The threshold with the largest F1 = 2 TP / (2 TP + FP + FN)."""
    positive, values = _checked(labels, scores)
    thresholds, true, false = _counts(positive, values)
    f1 = 2 * true / (true + false + true[-1])
    best = int(np.argmax(f1))
    return BestF1(
        f1=float(f1[best]),
        threshold=float(thresholds[best]),
        precision=float(true[best] / (true[best] + false[best])),
        recall=float(true[best] / true[-1]),
    )


def pro_curve(masks: ArrayLike, maps: ArrayLike, max_fpr: float = 0.3) -> tuple[Floats, Floats]:
    """Per-region overlap against the false-positive rate of pixels (Bergmann et al., MVTec AD).

    The overlap of a region (a connected component of a mask, diagonal neighbours included) with the thresholded map,
    averaged over all regions of all ``masks`` (N, H, W). Returns (rates, overlaps) from (0, 0) up to exactly
    ``max_fpr``, where the last point is interpolated. Raises `DataError` where no mask holds a defect, or no pixel is
    good.

    One sort replaces a loop over thresholds: lowering the threshold past a pixel adds 1 / (its region's size * number
    of regions) to the mean overlap where the pixel is in a region, and one false positive where it is not.
    """
    if not 0 < max_fpr <= 1:
        raise DataError(f"max_fpr must be in (0, 1], not {max_fpr}")
    defects, values = _checked_maps(masks, maps)
    gain = np.zeros(values.shape)
    regions = 0
    for mask, weight in zip(defects, gain, strict=True):
        if not mask.any():
            continue
        count, labelled = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        sizes = np.bincount(labelled.ravel(), minlength=count).astype(np.float64)
        sizes[0] = np.inf  # the background gains nothing
        weight += (1 / sizes)[labelled]
        regions += count - 1
    good = int(defects.size - defects.sum())
    order = np.argsort(values, axis=None)[::-1]
    ranked = values.ravel()[order]
    overlap = np.cumsum(gain.ravel()[order]) / regions
    rate = np.cumsum(~defects.ravel()[order]) / good
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal values pass the threshold together
    rates, overlaps = np.append(0.0, rate[last]), np.append(0.0, overlap[last])
    inside = int(np.searchsorted(rates, max_fpr, side="right"))
    end = np.interp(max_fpr, rates, overlaps) if inside < len(rates) else overlaps[-1]
    return np.append(rates[:inside], max_fpr), np.append(overlaps[:inside], end)


def aupro(masks: ArrayLike, maps: ArrayLike, max_fpr: float = 0.3) -> float:
    """Area under `pro_curve` up to ``max_fpr``, divided by ``max_fpr``: 1 is perfect."""
    rates, overlaps = pro_curve(masks, maps, max_fpr)
    return float(np.sum(np.diff(rates) * (overlaps[1:] + overlaps[:-1]) / 2) / max_fpr)


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    stratify: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of ``statistic(*arrays)``, whose arrays are resampled together along axis 0.

    With ``stratify`` (N,), usually the labels, each stratum keeps its size: no resample lacks a class. Raises
    `DataError` for arrays of different lengths.
    """
    columns = [np.asarray(array) for array in arrays]
    count = len(columns[0])
    strata = np.zeros(count, int) if stratify is None else np.asarray(stratify)
    if any(len(column) != count for column in (*columns, strata)):
        raise DataError(f"arrays to resample differ in length: {[len(column) for column in (*columns, strata)]}")
    groups = [np.flatnonzero(strata == value) for value in np.unique(strata)]
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for index in range(resamples):
        chosen = np.concatenate([group[rng.integers(len(group), size=len(group))] for group in groups])
        drawn[index] = statistic(*(column[chosen] for column in columns))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(low=float(low), high=float(high))


def _auroc(positive: NDArray[np.bool_], values: NDArray[Any]) -> float:
    """Mann-Whitney: of all pairs, those in the right order, and half of those that tie."""
    good = np.sort(values[~positive])
    bad = np.sort(values[positive])  # sorted queries walk through `good` once, in cache
    below = np.searchsorted(good, bad, side="left").sum(dtype=np.float64)
    up_to = np.searchsorted(good, bad, side="right").sum(dtype=np.float64)
    return float((below + up_to) / (2.0 * len(good) * len(bad)))


def _counts(positive: NDArray[np.bool_], values: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Distinct values, falling, and how many anomalous and good ones are at or above each."""
    order = np.argsort(values, kind="stable")[::-1]
    ranked = values[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    true = np.cumsum(positive[order])[last].astype(np.float64)
    return ranked[last].astype(np.float64), true, last + 1 - true


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    truth, values = np.asarray(labels), np.asarray(scores)
    if truth.shape != values.shape or truth.ndim != 1:
        raise DataError(f"labels {truth.shape} and scores {values.shape} must be two lists of one length")
    return _two_classes(truth, values, "pictures")


def _checked_maps(masks: ArrayLike, maps: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    truth, values = np.asarray(masks), np.asarray(maps)
    if truth.shape != values.shape or truth.ndim != 3:
        raise DataError(f"masks {truth.shape} and maps {values.shape} must both be (N, H, W), of one size")
    return _two_classes(truth, values, "pixels")


def _two_classes(truth: NDArray[Any], values: NDArray[Any], what: str) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    if np.isnan(values).any():
        raise DataError(f"{int(np.isnan(values).sum())} of {values.size} {what} have no score (NaN)")
    positive = truth != 0
    anomalous = int(positive.sum())
    if anomalous in (0, positive.size):
        have = "no" if anomalous == 0 else "only"
        raise DataError(
            f"the {what} hold {have} anomalous ones: good and anomalous {what} are needed to tell them apart"
        )
    return positive, values
