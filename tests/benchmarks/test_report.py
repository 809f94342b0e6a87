"""The report of contenders whose behaviour is known: what it says, and which pictures it shows."""

from __future__ import annotations

import re
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from adedge.benchmarks.accuracy import Scored, accuracy, score_samples
from adedge.benchmarks.latency import Contender, measure_latency
from adedge.benchmarks.machine import machine_facts
from adedge.benchmarks.report import Report, headline, heat_maps, markdown, page, rows, telling_pictures
from adedge.data.datasets import Dataset
from adedge.specs import InputSpec, ReadyMap, ScoreSpec

SPEC = InputSpec(height=32, width=32, channels=1, color="gray")
SCORE = ScoreSpec(comparison=ReadyMap())


@pytest.fixture
def report(contender: Callable[..., Contender]) -> Callable[[int], Report]:
    """Makes the report of an engine that decides so many of four pictures otherwise."""

    def make(flips: int) -> Report:
        labels = np.array([0, 0, 1, 1])
        maps = [np.full((4, 4), value, np.float32) for value in (0.1, 0.2, 0.8, 0.9)]
        scores = np.array([0.1, 0.2, 0.8, 0.9])
        reference = Scored(maps=maps, scores=scores, verdicts=scores > 0.5)
        other = Scored(maps=maps, scores=scores, verdicts=np.arange(4) >= 2 - flips)
        images = [np.zeros((32, 32, 1), np.uint8)]
        return Report(
            bundle="<part>.adedge",
            command="adedge benchmark",
            created="2026-01-01",
            data="parts",
            data_digest="ab",
            threads=1,
            input=SPEC.shape,
            resident_mib=100,
            machine=machine_facts(),
            latency=measure_latency([contender("fake/fp32")], images, SPEC, SCORE, frames=20),
            accuracy={
                "pytorch/fp32": accuracy(reference, labels, None, reference),
                "fake/fp32": accuracy(other, labels, None, reference),
            },
            notes=("a | b",),
        )

    return make


def test_headline_says_whether_verdicts_are_the_same(report: Callable[[int], Report]) -> None:
    # No flip in 4 pictures leaves 1 - 0.05 ** (1 / 4).
    assert headline(report(0)) == (
        "Every engine decides as the PyTorch model did on all 4 pictures: with 95% confidence each differs on at most "
        "52.71% of such pictures."
    )
    assert "1 (fake/fp32)" in headline(report(1))


@pytest.mark.parametrize(("rates", "verdict"), [((0.0, 1.0), "accepts"), ((1.0, 0.0), "rejects")])
def test_headline_vouches_for_no_detector_that_gives_one_verdict(
    report: Callable[[int], Report], rates: tuple[float, float], verdict: str
) -> None:
    made = report(0)
    update = dict(zip(("false_alarms", "misses"), rates, strict=True))
    dead = {name: one.model_copy(update=update) for name, one in made.accuracy.items()}
    assert headline(made.model_copy(update={"accuracy": dead})) == (
        f"Every engine {verdict} all 4 pictures, good and anomalous, as the PyTorch model does: this proves nothing."
    )


def test_page_escapes_and_needs_nothing_beside_it(report: Callable[[int], Report]) -> None:
    text = page(report(1), {})
    assert "&lt;part&gt;.adedge" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<script" not in text
    table = markdown(report(1))
    assert "1 of 4" in table
    widths = {len(row) for row in rows(report(1))}
    assert len(widths) == 1
    head = next(line for line in table.splitlines() if line.startswith("| engine"))
    assert head.count("|") == widths.pop() + 1


def test_the_pictures_shown_are_those_decided_differently_and_the_worst(
    dataset: Dataset, contender: Callable[..., Contender], report: Callable[[int], Report]
) -> None:
    scored = score_samples(contender("fake/fp32"), dataset.test, SPEC, SCORE)
    labels = np.array([sample.label for sample in dataset.test])
    other = scored.verdicts.copy()
    flipped = int(np.flatnonzero(labels == 1)[3])
    other[flipped] = ~other[flipped]
    shown = telling_pictures(dataset.test, scored, [scored.verdicts, other])
    assert shown[0] == flipped
    assert len(set(shown)) == len(shown)
    worst_good = max(np.flatnonzero(labels == 0), key=lambda number: scored.scores[number])
    worst_bad = min(np.flatnonzero(labels == 1), key=lambda number: scored.scores[number])
    assert {worst_good, worst_bad} <= set(shown)
    sheet = cv2.imdecode(np.frombuffer(heat_maps(dataset.test, scored, shown, 0.5), np.uint8), cv2.IMREAD_COLOR)
    assert sheet is not None
    hot = Scored(maps=[np.full((32, 32), 9, np.float32)] * len(dataset.test), scores=scored.scores, verdicts=None)
    drawn = [heat_maps(dataset.test, hot, shown[:1], 0.5, margin=margin) for margin in (0, 15)]
    coloured = [np.ptp(cv2.imdecode(np.frombuffer(sheet, np.uint8), cv2.IMREAD_COLOR), axis=2) > 60 for sheet in drawn]
    assert coloured[1].sum() < 0.1 * coloured[0].sum(), "the margin is not drawn as a defect"
    assert 'alt="heat maps of a"' in page(report(1), {"a": heat_maps(dataset.test, scored, shown, None)})
