"""How well scores and maps separate good from anomalous: AUROC, PRO, F1 (confidence intervals: `adedge.intervals`).

All functions take raw scores and maps. Curves are exact: every distinct value is a threshold. A picture or pixel counts
as anomalous if its value is at or above the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from adedge.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BestF1:
    """The highest F1 of any threshold, and that threshold: an upper bound, since it is fitted to the labels."""

    f1: float
    threshold: float
    precision: float
    recall: float


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that an anomalous picture scores above a good one, ties counted half.

    ``labels`` (N,) are 0 or 1, ``scores`` (N,) raw. Raises `DataError` if there is only one class or a score is NaN.
    """
    positive, values = validate_scores(labels, scores)
    return _auroc(positive, values)


def pixel_auroc(masks: ArrayLike, maps: ArrayLike) -> float:
    """AUROC over all pixels of all maps; ``masks`` and ``maps`` (N, H, W)."""
    positive, values = validate_maps(masks, maps)
    return _auroc(positive.ravel(), values.ravel())


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """(False-positive rates, true-positive rates, thresholds) by descending threshold, from (0, 0) to (1, 1)."""
    positive, values = validate_scores(labels, scores)
    thresholds, true, false = _counts(positive, values)
    return (
        np.concatenate([[0.0], false / false[-1]]),
        np.concatenate([[0.0], true / true[-1]]),
        np.concatenate([[np.inf], thresholds]),
    )


def best_f1(labels: ArrayLike, scores: ArrayLike) -> BestF1:
    """The threshold with the largest F1 = 2 TP / (2 TP + FP + FN)."""
    positive, values = validate_scores(labels, scores)
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
    ``max_fpr``, where the last point is interpolated. Raises `DataError` if no pixel is defective, or none is good.

    Sorting replaces a loop over thresholds. The overlap grows only when the threshold reaches a defective pixel's
    value, by 1 / (size of the pixel's region * number of regions); between two such values only good pixels pass. The
    curve's corners therefore lie just above and at the defective pixels' values, and good pixels are merely counted.
    """
    if not 0 < max_fpr <= 1:
        raise DataError(f"max_fpr must be in (0, 1], not {max_fpr}")
    defects, values = validate_maps(masks, maps)
    good = np.sort(values[~defects])
    defective = values[defects]
    order = np.argsort(defective)[::-1]
    ranked = defective[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal values pass the threshold together
    overlap = np.cumsum(region_weights(defects)[order])[last]
    above, at = (1 - np.searchsorted(good, ranked[last], side=side) / len(good) for side in ("right", "left"))
    before = np.append(0.0, overlap[:-1])
    rates = np.concatenate([[0.0], np.column_stack([above, at]).ravel(), [1.0]])
    overlaps = np.concatenate([[0.0], np.column_stack([before, overlap]).ravel(), [1.0]])
    inside = int(np.searchsorted(rates, max_fpr, side="right"))
    end = overlaps[inside - 1]
    if inside < len(rates):
        share = (max_fpr - rates[inside - 1]) / (rates[inside] - rates[inside - 1])
        end += share * (overlaps[inside] - end)
    return np.append(rates[:inside], max_fpr), np.append(overlaps[:inside], end)


def count_flips(reference: ArrayLike, verdicts: ArrayLike) -> int:
    """Number of pictures whose verdict differs from the reference's: both (N,) bool, True for anomalous.

    Raises `DataError` if there are not as many of one as of the other.
    """
    first, second = np.asarray(reference, bool), np.asarray(verdicts, bool)
    if first.shape != second.shape:
        raise DataError(f"{first.size} verdicts of the reference cannot be compared with {second.size}")
    return int(np.sum(first != second))


def region_weights(defects: NDArray[np.bool_]) -> Floats:
    """The weight of each defective pixel of masks (N, H, W) in the mean overlap: (pixels,), in the masks' order, sum 1.

    1 / (size of its region * number of regions); a region is a connected component, diagonal neighbours included.
    """
    parts, regions = [], 0
    for mask in defects:
        if mask.any():
            count, labelled = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            numbers = labelled[mask]
            parts.append(1 / np.bincount(numbers, minlength=count)[numbers])
            regions += count - 1
    weights: Floats = np.concatenate(parts) / regions
    return weights


def aupro(masks: ArrayLike, maps: ArrayLike, max_fpr: float = 0.3) -> float:
    """Area under `pro_curve` up to ``max_fpr``, divided by ``max_fpr``: 1 is perfect."""
    rates, overlaps = pro_curve(masks, maps, max_fpr)
    return float(np.sum(np.diff(rates) * (overlaps[1:] + overlaps[:-1]) / 2) / max_fpr)


def _auroc(positive: NDArray[np.bool_], values: NDArray[Any]) -> float:
    """Mann-Whitney: the share of (good, anomalous) pairs in the right order, ties counted half."""
    good = np.sort(values[~positive])
    bad = np.sort(values[positive])  # sorted queries walk through `good` once, in cache
    below = np.searchsorted(good, bad, side="left").sum(dtype=np.float64)
    up_to = np.searchsorted(good, bad, side="right").sum(dtype=np.float64)
    return float((below + up_to) / (2.0 * len(good) * len(bad)))


def _counts(positive: NDArray[np.bool_], values: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Distinct values in descending order, and how many anomalous and good ones are at or above each."""
    order = np.argsort(values, kind="stable")[::-1]
    ranked = values[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    true = np.cumsum(positive[order])[last].astype(np.float64)
    return ranked[last].astype(np.float64), true, last + 1 - true


def validate_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Labels (N,) as bool, and scores (N,). Raises `DataError` like `auroc`."""
    truth, values = np.asarray(labels), np.asarray(scores)
    if truth.shape != values.shape or truth.ndim != 1:
        raise DataError(f"labels {truth.shape} and scores {values.shape} must be one-dimensional, of one length")
    return _two_classes(truth, values, "pictures")


def validate_maps(masks: ArrayLike, maps: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Masks as bool, and maps, both (N, H, W). Raises `DataError` like `pixel_auroc`."""
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
        raise DataError(f"the {what} include {have} anomalous ones: the metric requires both good and anomalous {what}")
    return positive, values
