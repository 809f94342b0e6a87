"""How well a contender separates good from anomalous pictures, and how often it disagrees with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.benchmarks.latency import Contender
from adedge.data.datasets import Sample
from adedge.intervals import auroc_interval, pixel_intervals
from adedge.metrics import auroc, best_f1, count_flips, pixel_auroc, pro_curve, roc_curve
from adedge.progress import Progress
from adedge.runtime.inspection import judge_samples
from adedge.specs import InputSpec, Record, ScoreSpec

CURVE_POINTS = 200  # of a stored curve, at most


class Accuracy(Record):
    """Metrics of one contender, computed on raw scores and maps.

    ``auroc_low`` and ``auroc_high``, and the intervals (low, high) of ``pixel_auroc`` and ``aupro``, are 95% confidence
    bounds from a stratified bootstrap over pictures. ``false_alarms`` and ``misses`` are rates at the contender's own
    threshold; ``flips`` counts the pictures whose verdict differs from the reference's. Metrics are None if they lack a
    threshold, masks or the reference. ``roc`` and ``pro`` are points (x, y).
    """

    pictures: int
    auroc: float
    auroc_low: float
    auroc_high: float
    pixel_auroc: float | None = None
    pixel_auroc_interval: tuple[float, float] | None = None
    aupro: float | None = None
    aupro_interval: tuple[float, float] | None = None
    best_f1: float
    false_alarms: float | None = None
    misses: float | None = None
    flips: int | None = None
    roc: tuple[tuple[float, float], ...]
    pro: tuple[tuple[float, float], ...] = ()

    @property
    def one_verdict(self) -> str | None:
        """Returns "accepts" or "rejects" if the contender does so with all pictures, good and anomalous."""
        if (self.false_alarms, self.misses) == (0, 1):
            return "accepts"
        return "rejects" if (self.false_alarms, self.misses) == (1, 0) else None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A contender's results for the labelled pictures.

    ``maps`` are (H, W) each, ``scores`` raw (N,); ``verdicts`` (N,), True for anomalous, are None without a threshold.
    """

    maps: list[NDArray[np.float32]]
    scores: NDArray[np.floating[Any]]
    verdicts: NDArray[np.bool_] | None


def score_samples(
    contender: Contender, samples: Sequence[Sample], spec: InputSpec, score: ScoreSpec, progress: Progress | None = None
) -> Scored:
    """Judge pictures as `adedge run` does, on the GPU if the engine runs there."""
    judged = judge_samples(contender.backend, spec, score, samples, name=contender.name, maps=True, progress=progress)
    verdicts = None if contender.threshold is None else judged.scores > contender.threshold
    return Scored(maps=list(judged.maps), scores=judged.scores, verdicts=verdicts)


def accuracy(
    scored: Scored, labels: NDArray[np.int64], masks: NDArray[np.bool_] | None, reference: Scored | None
) -> Accuracy:
    """Compute a contender's metrics from labels (N,), masks (N, H, W) at map size, and the reference's verdicts."""
    interval = auroc_interval(labels, scored.scores)
    fpr, tpr, _ = roc_curve(labels, scored.scores)
    optional: dict[str, object] = {}
    if masks is not None:
        maps = np.stack(scored.maps)
        rates, overlaps = pro_curve(masks, maps)
        area = float(np.sum(np.diff(rates) * (overlaps[1:] + overlaps[:-1]) / 2) / rates[-1])
        intervals = pixel_intervals(masks, maps)
        optional = {
            "pixel_auroc": pixel_auroc(masks, maps),
            "pixel_auroc_interval": (intervals.auroc.low, intervals.auroc.high),
            "aupro": area,
            "aupro_interval": (intervals.aupro.low, intervals.aupro.high),
            "pro": _points(rates, overlaps),
        }
    verdicts = scored.verdicts
    if verdicts is not None:
        optional["false_alarms"] = float(verdicts[labels == 0].mean())
        optional["misses"] = float((~verdicts[labels == 1]).mean())
        if reference is not None and reference.verdicts is not None:
            optional["flips"] = count_flips(reference.verdicts, verdicts)
    return Accuracy.model_validate(
        {
            "pictures": len(labels),
            "auroc": auroc(labels, scored.scores),
            "auroc_low": interval.low,
            "auroc_high": interval.high,
            "best_f1": best_f1(labels, scored.scores).f1,
            "roc": _points(fpr, tpr),
            **optional,
        }
    )


def masks_at_map_size(samples: Sequence[Sample], maps: Sequence[NDArray[np.float32]]) -> NDArray[np.bool_] | None:
    """Ground-truth masks (N, H, W), resized to the maps by nearest neighbour.

    None if the maps differ in size or an anomalous picture has no mask.
    """
    import cv2

    if len({one.shape for one in maps}) != 1:
        return None
    height, width = maps[0].shape
    masks = []
    for sample in samples:
        mask = np.zeros((height, width), bool) if sample.label == 0 else sample.read_mask()
        if mask is None:
            return None
        if mask.shape != (height, width):
            mask = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        masks.append(mask)
    return np.stack(masks)


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """At most `CURVE_POINTS` evenly spaced points of a curve, both ends included: enough to draw it."""
    indices = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).round().astype(int))
    return tuple((round(float(x[i]), 6), round(float(y[i]), 6)) for i in indices)
