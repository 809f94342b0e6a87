"""The promise of a threshold, checked by simulation, and what it costs in pictures."""

from __future__ import annotations

import numpy as np
import pytest

from adedge.calibration.thresholds import conformal_threshold, pictures_needed
from adedge.errors import DataError, UsageError


@pytest.mark.parametrize(("rate", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.03, 33), (0.001, 999)])
def test_pictures_needed(rate: float, needed: int) -> None:
    assert pictures_needed(rate) == needed
    scores = np.arange(needed, dtype=np.float32)
    assert conformal_threshold(scores, rate) == needed - 1  # the largest of just enough
    with pytest.raises(DataError, match=f"needs at least {needed} good pictures .* there are {needed - 1}"):
        conformal_threshold(scores[:-1], rate)


def test_rank_is_exact_where_floating_point_is_not() -> None:
    # (99 + 1) (1 - 0.07) is 93 exactly: the 93rd smallest score.
    assert conformal_threshold(np.arange(1, 100, dtype=np.float32), 0.07) == 93


@pytest.mark.parametrize("rate", [0.1, 0.05])
def test_false_alarms_stay_at_the_promised_rate(rate: float) -> None:
    # With k = ceil((n + 1) (1 - rate)) of n continuous scores, a further one exceeds it with probability 1 - k/(n + 1).
    rng = np.random.default_rng(0)
    count, trials = 59, 20_000
    expected = 1 - np.ceil((count + 1) * (1 - rate)) / (count + 1)
    scores = rng.gamma(2.0, size=(trials, count + 1)).astype(np.float32)
    alarms = sum(float(row[-1]) > conformal_threshold(row[:-1], rate) for row in scores)
    deviation = np.sqrt(expected * (1 - expected) / trials)
    assert abs(alarms / trials - expected) < 4 * deviation
    assert expected <= rate + 1e-12


@pytest.mark.parametrize("count", [19, 40, 59])
def test_ties_only_lower_the_rate(count: int) -> None:
    """Scores from six values, exactly: over all places that the further score may take among count + 1 exchangeable
    ones. A score equal to the threshold is no alarm.
    """
    rng = np.random.default_rng(count)
    for _ in range(50):
        scores = rng.choice(6, count + 1, p=[0.3, 0.3, 0.2, 0.1, 0.06, 0.04]).astype(np.float32)
        alarms = [scores[i] > conformal_threshold(np.delete(scores, i), 0.05) for i in range(count + 1)]
        assert np.mean(alarms) <= 0.05
    assert conformal_threshold(np.ones(count, np.float32), 0.05) == 1


def test_a_threshold_from_too_few_is_refused_with_the_rate_that_is_possible() -> None:
    with pytest.raises(DataError, match=r"--false-alarm-rate 0\.05"):
        conformal_threshold(np.zeros(19, np.float32), 0.01)


def test_bad_calls() -> None:
    with pytest.raises(DataError, match="picture 3 has a score that is not finite"):
        conformal_threshold(np.array([0, 1, np.nan, 2], np.float32), 0.5)
    for rate in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            pictures_needed(rate)
