"""Uncertainty of metrics: bootstrap confidence intervals, and an exact bound on a rate.

The bootstrap is stratified: each resample draws as many good and as many anomalous pictures as there are, with
replacement. Only how often each picture counts varies, so values are sorted once, and each resample's metric is a
weighted sum over the sorted values. Pictures are resampled, never pixels: pixels of one picture are correlated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adedge.errors import DataError
from adedge.metrics import region_weights, validate_maps, validate_scores

CONFIDENCE = 0.95
RESAMPLES = 1000
LEVELS = 1024  # map values are binned at this many quantiles of all pixels, and as many of the defective ones
_BLOCK = 50  # resamples per block; bounds the memory

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A percentile bootstrap interval at level `CONFIDENCE`."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PixelIntervals:
    """The intervals of the pixel AUROC and the AUPRO."""

    auroc: Interval
    aupro: Interval


def auroc_interval(labels: ArrayLike, scores: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The interval of `adedge.metrics.auroc` for ``labels`` (N,) and ``scores`` (N,). Raises `DataError` like it."""
    positive, values = validate_scores(labels, scores)
    order = np.argsort(values, kind="stable")
    first = np.append(0, np.flatnonzero(np.diff(values[order])) + 1)  # start of each run of equal scores
    areas = []
    for counts in _counts(positive, resamples, seed):
        ranked = counts[:, order]
        good, bad = (np.add.reduceat(ranked * side, first, axis=1) for side in (~positive[order], positive[order]))
        areas.append(_areas(good, bad, 1.0))
    return _interval(np.concatenate(areas))


def pixel_intervals(
    masks: ArrayLike, maps: ArrayLike, max_fpr: float = 0.3, *, resamples: int = RESAMPLES, seed: int = 0
) -> PixelIntervals:
    """The intervals of `adedge.metrics.pixel_auroc` and `aupro`: ``masks`` and ``maps`` (N, H, W).

    Values between two neighbouring `LEVELS` count as equal, which moves either metric by less than 0.001. Raises
    `DataError` like them.
    """
    defects, values = validate_maps(masks, maps)
    levels = _levels(values, defects)
    good, bad, gain = np.zeros((3, len(values), len(levels) + 1))  # (pictures, bins), ascending values
    weights = np.split(region_weights(defects), np.cumsum(defects.sum(axis=(1, 2)))[:-1])  # by picture
    for number, (mask, pixels, pixel_weights) in enumerate(zip(defects, values, weights, strict=True)):
        bins = np.searchsorted(levels, pixels, side="right")
        good[number] = np.bincount(bins[~mask], minlength=len(levels) + 1)
        bad[number] = np.bincount(bins[mask], minlength=len(levels) + 1)
        gain[number] = np.bincount(bins[mask], pixel_weights, minlength=len(levels) + 1)
    aurocs, aupros = [], []
    anomalous = np.array([mask.any() for mask in defects])
    for counts in _counts(anomalous, resamples, seed):
        resampled_good = counts @ good
        aurocs.append(_areas(resampled_good, counts @ bad, 1.0))
        # A picture drawn twice contributes its regions twice; `_areas` normalises the sum to their mean overlap.
        aupros.append(_areas(resampled_good, counts @ gain, max_fpr))
    return PixelIntervals(auroc=_interval(np.concatenate(aurocs)), aupro=_interval(np.concatenate(aupros)))


def _levels(values: NDArray[Any], defects: NDArray[np.bool_]) -> NDArray[Any]:
    """Quantiles of all pixels and of the defective ones: sorted and distinct."""
    parts = []
    for pixels in (values.ravel(), values[defects]):
        ranked = np.sort(pixels)
        parts.append(ranked[np.linspace(0, len(ranked) - 1, LEVELS).round().astype(int)])
    return np.unique(np.concatenate(parts))


def rate_bound(events: int, trials: int) -> float:
    """Upper bound, at level `CONFIDENCE`, on the rate of an event seen ``events`` times in ``trials`` trials.

    Exact and one-sided, for independent trials: at this rate, so few events have a probability of 1 - `CONFIDENCE`
    (Clopper and Pearson, Biometrika 26, 1934). Without events it is 1 - (1 - `CONFIDENCE`)^(1/trials), about 3/trials.
    Raises `DataError` if there are no trials, or fewer trials than events.
    """
    if not 0 <= events <= trials or trials == 0:
        raise DataError(
            f"{events} events in {trials} trials have no rate: give at least one trial, and no more events than trials"
        )
    if events == trials:
        return 1.0
    log_ways = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(events + 1)]
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        rate = (low + high) / 2
        hit, miss = math.log(rate), math.log1p(-rate)
        at_most = math.fsum(math.exp(way + k * hit + (trials - k) * miss) for k, way in enumerate(log_ways))
        low, high = (rate, high) if at_most > 1 - CONFIDENCE else (low, rate)
    return high


def _counts(anomalous: NDArray[np.bool_], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each picture is drawn, in blocks (up to `_BLOCK`, N); the totals of both classes stay fixed."""
    rng = np.random.default_rng(seed)
    groups = [group for group in (np.flatnonzero(~anomalous), np.flatnonzero(anomalous)) if len(group)]
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        counts = np.zeros((rows, len(anomalous)))
        for group in groups:
            counts[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=rows)
        yield counts


def _areas(good: Floats, gain: Floats, limit: float) -> Floats:
    """Area under the curve of the shares of ``good`` (x) and ``gain`` (y) above a falling threshold, x <= ``limit``.

    Divided by ``limit``; good, gain (resamples, bins) by ascending value -> (resamples,). With a limit of 1 it is the
    AUROC, ties counted half.
    """
    x, y = (
        np.pad(np.cumsum(part[:, ::-1], axis=1) / part.sum(axis=1, keepdims=True), ((0, 0), (1, 0)))
        for part in (good, gain)
    )
    left, low = x[:, :-1], y[:, :-1]
    width = np.diff(x, axis=1)
    inside = np.clip(limit - left, 0, width)
    with np.errstate(invalid="ignore"):
        rise = np.where(width > 0, inside / width, 0) * np.diff(y, axis=1)
    areas: Floats = (inside * (low + rise / 2)).sum(axis=1) / limit
    return areas


def _interval(samples: Floats) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return Interval(low=float(low), high=float(high))
