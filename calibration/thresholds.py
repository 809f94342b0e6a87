"""Decision thresholds from good pictures alone, with a finite-sample guarantee.

Split-conformal prediction (Vovk, Gammerman, Shafer 2005, "Algorithmic Learning in a Random World"; Lei et al. 2018,
"Distribution-Free Predictive Inference for Regression", section 2.2): given the scores of n held-out good pictures, a
further good picture scores above the k-th smallest of them, k = ceil((n + 1) (1 - rate)), with probability at most
``rate``, whatever the scores' distribution, if all these pictures are exchangeable.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError, UsageError

# Scores closer than this fraction of their size count as equal: on another device they may come in either order.
ROUNDING = 1e-5
# A threshold is at most this share of the range of the scores below it from the next of them, so that one outlier among
# the pictures (a defective part taken for good) cannot draw it far up.
LARGEST_MARGIN = 0.1


def conformal_threshold(scores: NDArray[np.floating[Any]], false_alarm_rate: float) -> float:
    """The threshold for raw scores (n,) of held-out good pictures.

    A further good picture scores ``> threshold`` with probability at most ``false_alarm_rate``. The threshold lies
    between scores, so that rounding changes no verdict: midway from the k-th smallest (or the largest that equals it,
    up to `ROUNDING`) to the next larger score, or if there is none, above the largest by half its distance from the
    next smaller one; in both cases by at most `LARGEST_MARGIN`.

    Raises `DataError` if there are fewer pictures than `pictures_needed`, if a score is not finite, if all are equal,
    or if the threshold would lie above scores that pile up at 1, their highest possible value; `UsageError` if the rate
    is not between 0 and 1.
    """
    rate = _rate(false_alarm_rate)
    count = len(scores)
    if not np.isfinite(scores).all():
        raise DataError(f"calibration picture {int(np.argmin(np.isfinite(scores))) + 1} has a score that is not finite")
    require_pictures(count, false_alarm_rate)
    ranked = np.sort(scores.astype(np.float64))
    if count > 1 and ranked[0] == ranked[-1]:
        raise DataError(
            f"all {count} held-out good pictures have the score {ranked[0]:g}: the detector does not tell pictures "
            "apart; check its preprocessing, export its raw score, or train it again"
        )
    rank = math.ceil((count + 1) * (1 - rate))
    threshold = _above(ranked, rank - 1)
    piled = int(np.sum(ranked == 1))
    if piled > 1 and threshold > ranked[-1] == 1 and ranked[0] >= 0:
        raise DataError(
            f"{piled} of {count} held-out scores are the highest value 1: the graph clips or normalises its score, and "
            "nothing could exceed the threshold; export the raw score, or ask for --false-alarm-rate "
            f"{math.ceil(1e4 * (piled + 1) / (count + 1)) / 1e4:g}"
        )
    return threshold


def saturation(scores: NDArray[np.floating[Any]], threshold: float) -> str | None:
    """A warning if ``threshold`` lies above scores (n,) that may be the highest possible value; None if not.

    These are scores that tie, which raw scores of different pictures hardly do, or a score of exactly 1.
    """
    highest = scores.max()
    piled = int(np.sum(scores == highest))
    if threshold <= highest or (piled == 1 and highest != 1):
        return None
    return (
        f"{piled} of {len(scores)} held-out scores {'is' if piled == 1 else 'are'} the highest value {highest:g}: if "
        "the graph clips or normalises its score, nothing can exceed the threshold; export the raw score"
    )


def clipping(scores: NDArray[np.floating[Any]]) -> str | None:
    """A warning if scores (n,) of different pictures, good and anomalous, are all equal or pile up at 0 or 1."""
    count = len(scores)
    if count > 1 and (scores == scores[0]).all():
        return f"all {count} pictures have the score {scores[0]:g}: check the preprocessing and which output is which"
    piles = {end: int(np.sum(scores == end)) for end in (0, 1)}
    piled = " and ".join(f"{number} exactly {end}" for end, number in piles.items() if number > 1)
    if not piled:
        return None
    return (
        f"of {count} scores {piled}: if the graph clips or normalises its score, pictures beyond that range cannot be "
        "told apart, and a threshold at its end is never exceeded; export the raw score"
    )


def _above(ranked: NDArray[np.float64], index: int) -> float:
    """A value above the score at ``index`` of ascending scores, and apart from every score."""
    rounding = np.maximum(ROUNDING * np.abs(ranked), np.finfo(np.float32).tiny)
    apart = np.diff(ranked) > rounding[1:]
    while index < len(apart) and not apart[index]:
        index += 1
    if index < len(apart):
        gap = ranked[index + 1] - ranked[index]
    else:
        smaller = np.flatnonzero(apart)
        gap = ranked[-1] - ranked[smaller[-1]] if len(smaller) else 2 * rounding[-1]
    limit = LARGEST_MARGIN * (ranked[index] - ranked[0])
    return float(ranked[index] + (min(gap / 2, limit) if limit > rounding[index] else gap / 2))


def require_pictures(count: int, false_alarm_rate: float) -> None:
    """Raise `DataError` if ``count`` pictures are too few for a rate, with the number needed and the rate possible."""
    needed = pictures_needed(false_alarm_rate)
    if count < needed:
        possible = f", or ask for --false-alarm-rate {math.ceil(1e4 / (count + 1)) / 1e4:g}" if count else ""
        raise DataError(
            f"a false-alarm rate of {false_alarm_rate:g} needs at least {needed} good pictures that the detector was "
            f"not trained on, but there are {count}: add pictures{possible}"
        )


def pictures_needed(false_alarm_rate: float) -> int:
    """The smallest number of pictures that a threshold for this false-alarm rate requires: ceil(1 / rate) - 1."""
    return math.ceil(1 / _rate(false_alarm_rate)) - 1


def _rate(false_alarm_rate: float) -> Fraction:
    """The rate as the decimal number that the user typed: 0.1 is 1/10, not the nearest binary fraction."""
    if not 0 < false_alarm_rate < 1:
        raise UsageError(f"--false-alarm-rate {false_alarm_rate:g}: give a number between 0 and 1, such as 0.01")
    return Fraction(repr(float(false_alarm_rate)))
