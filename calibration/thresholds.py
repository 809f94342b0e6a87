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


def conformal_threshold(scores: NDArray[np.floating[Any]], false_alarm_rate: float) -> float:
    """The threshold for raw scores (n,) of held-out good pictures.

    A further good picture scores ``> threshold`` with probability at most ``false_alarm_rate``. Raises `DataError` if
    there are fewer pictures than `pictures_needed` or a score is not finite, `UsageError` if the rate is not between 0
    and 1.
    """
    rate = _rate(false_alarm_rate)
    count = len(scores)
    if not np.isfinite(scores).all():
        raise DataError(f"calibration picture {int(np.argmin(np.isfinite(scores))) + 1} has a score that is not finite")
    require_pictures(count, false_alarm_rate)
    rank = math.ceil((count + 1) * (1 - rate))
    return float(np.sort(scores)[rank - 1])


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
