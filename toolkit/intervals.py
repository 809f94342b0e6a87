"""How certain metrics are: confidence intervals by bootstrap over pictures, and an exact bound for a rate.

A resample draws as many good and as many anomalous pictures as there are, with replacement; what varies is how often
each picture counts. So values are sorted once, and the metric of a resample is a weighted sum over the sorted values.
Pictures are what is drawn, never pixels: the pixels of one picture are alike and say less than as many of others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adedge.errors import DataError
from adedge.metrics import checked, checked_maps, region_weights

CONFIDENCE = 0.95
RESAMPLES = 1000
LEVELS = 1024  # map values are told apart at so many quantiles of all pixels and at as many of the defective ones
_BLOCK = 50  # resamples at once: bounds the memory

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A percentile bootstrap interval of `CONFIDENCE`."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PixelIntervals:
    """How certain the AUROC of pixels and the AUPRO are."""

    auroc: Interval
    aupro: Interval


def auroc_interval(labels: ArrayLike, scores: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The interval of `adedge.metrics.auroc` of ``labels`` (N,) and ``scores`` (N,). Raises `DataError` as it does."""
    positive, values = checked(labels, scores)
    order = np.argsort(values, kind="stable")
    first = np.append(0, np.flatnonzero(np.diff(values[order])) + 1)  # of each run of equal scores
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

    Values between two of the `LEVELS` count as equal, which moves either metric by less than 0.001. Raises `DataError`
    as they do.
    """
    defects, values = checked_maps(masks, maps)
    levels = _levels(values, defects)
    good, bad, gain = np.zeros((3, len(values), len(levels) + 1))  # (pictures, bins), rising values
    weights = np.split(region_weights(defects), np.cumsum(defects.sum(axis=(1, 2)))[:-1])  # by picture
    for number, (mask, pixels, own) in enumerate(zip(defects, values, weights, strict=True)):
        bins = np.searchsorted(levels, pixels, side="right")
        good[number] = np.bincount(bins[~mask], minlength=len(levels) + 1)
        bad[number] = np.bincount(bins[mask], minlength=len(levels) + 1)
        gain[number] = np.bincount(bins[mask], own, minlength=len(levels) + 1)
    aurocs, aupros = [], []
    anomalous = np.array([mask.any() for mask in defects])
    for counts in _counts(anomalous, resamples, seed):
        passing = counts @ good
        aurocs.append(_areas(passing, counts @ bad, 1.0))
        # A picture drawn twice brings its regions twice; their mean overlap is what `_areas` makes of the sum.
        aupros.append(_areas(passing, counts @ gain, max_fpr))
    return PixelIntervals(auroc=_interval(np.concatenate(aurocs)), aupro=_interval(np.concatenate(aupros)))


def _levels(values: NDArray[Any], defects: NDArray[np.bool_]) -> NDArray[Any]:
    """Values that split the pixels, and the defective ones, into parts of about one size: sorted, all different."""
    parts = []
    for pixels in (values.ravel(), values[defects]):
        ranked = np.sort(pixels)
        parts.append(ranked[np.linspace(0, len(ranked) - 1, LEVELS).round().astype(int)])
    return np.unique(np.concatenate(parts))


def rate_bound(events: int, trials: int) -> float:
    """The highest rate that `CONFIDENCE` leaves for what happened ``events`` times in ``trials`` independent cases.

    Exact and one-sided: at this rate so few events have a probability of 1 - `CONFIDENCE` (Clopper and Pearson,
    Biometrika 26, 1934). With none it is 1 - (1 - `CONFIDENCE`)^(1/trials), about 3/trials. Raises `DataError` where
    there are no trials, or fewer than events.
    """
    if not 0 <= events <= trials or trials == 0:
        raise DataError(f"{events} events in {trials} trials have no rate")
    if events == trials:
        return 1.0
    ways = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(events + 1)]
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        rate = (low + high) / 2
        hit, miss = math.log(rate), math.log1p(-rate)
        at_most = math.fsum(math.exp(way + k * hit + (trials - k) * miss) for k, way in enumerate(ways))
        low, high = (rate, high) if at_most > 1 - CONFIDENCE else (low, rate)
    return high


def _counts(anomalous: NDArray[np.bool_], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each picture counts, (up to `_BLOCK`, N) at once; good and anomalous ones keep their numbers."""
    rng = np.random.default_rng(seed)
    groups = [group for group in (np.flatnonzero(~anomalous), np.flatnonzero(anomalous)) if len(group)]
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        counts = np.zeros((rows, len(anomalous)))
        for group in groups:
            counts[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=rows)
        yield counts


def _areas(good: Floats, gain: Floats, limit: float) -> Floats:
    """Area under (share of ``good`` passed, share of ``gain`` passed) by falling value, up to ``limit``, divided by it.

    good, gain (resamples, bins) by rising value -> (resamples,). Up to 1 this is the AUROC, equal values counted half.
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


def _interval(drawn: Floats) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(low=float(low), high=float(high))
