"""The rule that makes a score a verdict, and what an engine must take to be used with a bundle."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from adedge.errors import EngineError
from adedge.manifest import Normalisation
from adedge.runtime.inspector import Judge, check_shape
from adedge.runtime.sources import Frame
from adedge.specs import InputSpec

FRAME = Frame(7, time.monotonic_ns(), np.zeros((2, 2), np.uint8), "part.png")


@pytest.mark.parametrize(("score", "anomalous"), [(0.49, False), (0.5, False), (0.5000001, True)])
def test_a_frame_is_anomalous_above_the_threshold_and_not_at_it(score: float, anomalous: bool) -> None:
    verdict = Judge(threshold=0.5).verdict(FRAME, score, None, {"network": 1.0})
    assert (verdict.anomalous, verdict.frame_id, verdict.name, verdict.z) == (anomalous, 7, "part.png", None)
    assert verdict.timings_ms["network"] == 1.0
    assert verdict.timings_ms["verdict"] == (verdict.decided_at_ns - FRAME.captured_at_ns) / 1e6 > 0


def test_a_verdict_knows_what_its_score_ignored_of_the_map() -> None:
    judge = Judge(threshold=0.5, margin=3)
    assert judge.verdict(FRAME, 0.6, np.zeros((16, 16), np.float32), {}).margin == 3


def test_z_counts_standard_deviations_of_good_pictures() -> None:
    judge = Judge(threshold=0.5, normalisation=Normalisation(mean=3, std=2, pictures=9))
    assert [judge.verdict(FRAME, score, None, {}).z for score in (1.0, 3.0, 5.0)] == [-1, 0, 1]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_judged(score: float) -> None:
    with pytest.raises(EngineError, match=r"frame 7 \(part.png\) has the score .*: the engine or its weights"):
        Judge(threshold=0.5).verdict(FRAME, score, None, {})


def test_an_engine_of_another_size_is_refused_whatever_its_batch() -> None:
    spec = InputSpec(height=16, width=32, channels=3, color="bgr")
    check_shape((8, 3, 16, 32), spec)
    with pytest.raises(EngineError, match=r"takes frames of \(3, 32, 16\), the bundle says \(3, 16, 32\)"):
        check_shape((8, 3, 32, 16), spec)
