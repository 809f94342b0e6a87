"""The promise of a threshold, checked by simulation, and what it costs in pictures."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adedge.calibration.thresholds import conformal_threshold, pictures_needed, saturation
from adedge.errors import DataError, UsageError


@pytest.mark.parametrize(("rate", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.03, 33), (0.001, 999)])
def test_pictures_needed(rate: float, needed: int) -> None:
    assert pictures_needed(rate) == needed
    scores = np.arange(needed, dtype=np.float32)
    # Just above the largest of just enough: no score lies above it to be midway to.
    assert needed - 1 < conformal_threshold(scores, rate) <= needed - 0.5
    with pytest.raises(DataError, match=f"needs at least {needed} good pictures .* there are {needed - 1}"):
        conformal_threshold(scores[:-1], rate)


def test_rank_is_exact_where_floating_point_is_not() -> None:
    # (99 + 1) (1 - 0.07) is 93 exactly: between the 93rd smallest score and the next.
    assert conformal_threshold(np.arange(1, 100, dtype=np.float32), 0.07) == 93.5


@pytest.mark.parametrize("rate", [0.1, 0.05])
def test_false_alarms_stay_at_the_promised_rate(rate: float) -> None:
    # With k = ceil((n + 1) (1 - rate)) of n continuous scores, a further one exceeds the k-th with probability
    # 1 - k / (n + 1), and the next larger, which the threshold does not reach, with 1 / (n + 1) less.
    rng = np.random.default_rng(0)
    count, trials = 59, 20_000
    expected = 1 - np.ceil((count + 1) * (1 - rate)) / (count + 1)
    scores = rng.gamma(2.0, size=(trials, count + 1)).astype(np.float32)
    alarms = sum(float(row[-1]) > conformal_threshold(row[:-1], rate) for row in scores)
    deviation = np.sqrt(expected * (1 - expected) / trials)
    assert expected - 1 / (count + 1) - 4 * deviation < alarms / trials < expected + 4 * deviation
    assert expected <= rate + 1e-12


@pytest.mark.parametrize("count", [19, 40, 59])
def test_ties_only_lower_the_rate(count: int) -> None:
    """Scores from six values, exactly: over all places that the further score may take among count + 1 exchangeable
    ones.
    """
    rng = np.random.default_rng(count)
    for _ in range(50):
        # Times 3, since several scores of exactly 1 at the top are refused.
        scores = 3 * rng.choice(6, count + 1, p=[0.3, 0.3, 0.2, 0.1, 0.06, 0.04]).astype(np.float32)
        alarms = [scores[i] > conformal_threshold(np.delete(scores, i), 0.05) for i in range(count + 1)]
        assert np.mean(alarms) <= 0.05


def test_a_threshold_from_too_few_is_refused_with_the_rate_that_is_possible() -> None:
    with pytest.raises(DataError, match=r"--false-alarm-rate 0\.05"):
        conformal_threshold(np.zeros(19, np.float32), 0.01)


def test_bad_calls() -> None:
    with pytest.raises(DataError, match="picture 3 has a score that is not finite"):
        conformal_threshold(np.array([0, 1, np.nan, 2], np.float32), 0.5)
    for rate in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            pictures_needed(rate)


# --- thresholds lie between scores -----------------------------------------------------------------------------------

FLOATS = st.floats(-1e6, 1e6, width=32)
RATES = st.sampled_from([0.5, 0.2, 0.1, 0.07, 0.05])


@settings(deadline=None)
@given(scores=st.lists(FLOATS, min_size=20, max_size=45), rate=RATES)
def test_the_bound_holds_for_any_exchangeable_scores_and_no_score_is_the_threshold(
    scores: list[float], rate: float
) -> None:
    """Exchangeable scores: each of the n + 1 is the further one with the same probability 1 / (n + 1)."""
    alarms = 0
    for index, further in enumerate(scores):
        held_out = np.array([*scores[:index], *scores[index + 1 :]], np.float32)
        try:
            threshold = conformal_threshold(held_out, rate)
        except DataError:  # all are equal, or several are 1: there is no threshold, and so no alarm
            continue
        assert threshold not in held_out.astype(np.float64)
        # By definition: as many scores at or below the threshold as leave at most the rate above, of n + 1.
        below = sum(score <= threshold for score in held_out.tolist())
        assert Fraction(len(scores) - below, len(scores)) <= Fraction(str(rate))
        alarms += further > threshold
    assert Fraction(alarms, len(scores)) <= Fraction(str(rate))


def test_the_threshold_is_midway_to_the_next_larger_score() -> None:
    # Of 19 scores at a rate of 0.2, the ceil(20 * 0.8) = 16th, 15, and the next, 16.
    scores = np.arange(19, dtype=np.float32)
    assert conformal_threshold(scores, 0.2) == 15.5
    scores[16] = 15  # a tie: the next larger is 17
    assert conformal_threshold(scores, 0.2) == 16
    scores[16] = 15.00001  # and so is one up to rounding
    assert conformal_threshold(scores, 0.2) == pytest.approx(16, abs=1e-4)


def test_above_the_largest_score_the_distance_is_that_of_the_next_smaller() -> None:
    scores = np.linspace(0, 18, 19, dtype=np.float32)
    assert conformal_threshold(scores, 0.05) == 18.5
    scores[17] = 18  # a tie does not make it smaller
    assert conformal_threshold(scores, 0.05) == 19


def test_an_outlier_among_the_pictures_does_not_draw_the_threshold_far_up() -> None:
    # Of 39 scores at a rate of 0.05 the 38th, 37. The 39th is that of a defective part.
    scores = np.arange(39, dtype=np.float32)
    scores[-1] = 1e6
    assert 37 < conformal_threshold(scores, 0.05) <= 37 * 1.1


@pytest.mark.fault("scores changed by the rounding of FP16")
@pytest.mark.parametrize("rate", [0.1, 0.05, 0.01])
@pytest.mark.parametrize("seed", range(20))
def test_rounding_to_fp16_flips_no_verdict_on_scores_apart_from_the_threshold(rate: float, seed: int) -> None:
    """The reference, and engines whose scores are off by up to FP16's rounding, each at its own threshold."""
    rng = np.random.default_rng(seed)
    scores = rng.gamma(4.0, 0.1, 240).astype(np.float32)
    error = float(np.finfo(np.float16).eps) / 2 * scores.max()
    threshold = conformal_threshold(scores, rate)
    # The engine's own threshold moves by up to the error too.
    clear = np.abs(scores - threshold) > 2 * error
    for engine in (scores.astype(np.float16), scores + rng.uniform(-error, error, scores.shape)):
        own = conformal_threshold(engine.astype(np.float32), rate)
        flips = (scores > threshold) != (engine.astype(np.float64) > own)
        assert not flips[clear].any()
    equal = scores * np.float32(1 + 2e-7)
    assert not ((scores > threshold) != (equal > conformal_threshold(equal, rate))).any()


# --- scores that no threshold separates ------------------------------------------------------------------------------


@pytest.mark.fault("a detector that clips its scores, or tells nothing apart")
def test_scores_that_pile_up_at_one_are_refused_with_the_rate_that_lies_below() -> None:
    # 27 scores below 1, and 13 clipped to it.
    scores = np.minimum(np.linspace(0.2, 1.4, 40, dtype=np.float32), 1)
    piled = int(np.sum(scores == 1))
    with pytest.raises(DataError, match=rf"{piled} of 40 held-out scores are the highest value 1: .*export the raw"):
        conformal_threshold(scores, 0.05)
    with pytest.raises(DataError) as caught:
        conformal_threshold(scores, 0.05)
    rate = float(str(caught.value).rsplit(maxsplit=1)[1])
    assert conformal_threshold(scores, rate) < 1
    assert conformal_threshold(scores * 2, 0.05) > 2  # 2 need not be the highest possible value


def test_scores_that_may_be_clipped_are_told_of() -> None:
    spread = np.linspace(0, 5, 40, dtype=np.float32)
    assert saturation(spread, conformal_threshold(spread, 0.05)) is None
    clipped = np.minimum(spread, 3)
    warning = saturation(clipped, conformal_threshold(clipped, 0.05))
    assert warning is not None
    assert warning.startswith(f"{np.sum(spread >= 3)} of 40 held-out scores are the highest value 3: ")
    assert saturation(clipped, conformal_threshold(clipped, 0.5)) is None  # the threshold lies below 3
    one = np.append(spread[:-1] / 10, np.float32(1))
    warning = saturation(one, conformal_threshold(one, 0.01 + 1 / 41))
    assert warning is not None
    assert warning.startswith("1 of 40 held-out scores is the highest value 1: ")


@pytest.mark.fault("a detector that clips its scores, or tells nothing apart")
def test_a_detector_that_tells_nothing_apart_is_refused() -> None:
    with pytest.raises(DataError, match=r"all 40 held-out good pictures have the score 0\.25: the detector does not"):
        conformal_threshold(np.full(40, 0.25, np.float32), 0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    scores = np.arange(40, dtype=np.float32)
    scores[7] = value
    with pytest.raises(DataError, match="picture 8 has a score that is not finite"):
        conformal_threshold(scores, 0.05)
