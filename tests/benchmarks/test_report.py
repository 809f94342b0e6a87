"""Latency, accuracy and the report of contenders whose behaviour is known: fakes that wait, and maps made by hand."""

from __future__ import annotations

import re
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from adedge.benchmarks.accuracy import Scored, accuracy, masks_at_map_size, score_samples
from adedge.benchmarks.latency import Contender, measure_latency, percentiles
from adedge.benchmarks.machine import machine_facts
from adedge.benchmarks.report import Report, headline, heat_maps, markdown, page, rows, telling_pictures
from adedge.data.datasets import Dataset, load_dataset
from adedge.errors import EngineError
from adedge.runtime.backends import FakeBackend
from adedge.specs import InputSpec, ReadyMap, ScoreSpec

SPEC = InputSpec(height=32, width=32, channels=1, color="gray")
SCORE = ScoreSpec(comparison=ReadyMap())


def brightness(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """A detector that calls bright pixels anomalous."""
    return [x[:, 0].copy()]


def contender(name: str, threshold: float | None = 0.5, work=brightness) -> Contender:  # type: ignore[no-untyped-def]
    return Contender(name=name, backend=FakeBackend(work, SPEC.shape, batch=1), threshold=threshold)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six dark good pictures and six with a bright square, one of them too dim for the threshold 0.5."""
    for folder in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
        (tmp_path / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(6):
        plain = rng.integers(0, 60, (32, 32), np.uint8)
        spotted, mask = plain.copy(), np.zeros((32, 32), np.uint8)
        spotted[8:16, 8:16] = 100 if index == 0 else 200
        mask[8:16, 8:16] = 255
        cv2.imwrite(str(tmp_path / f"train/good/{index}.png"), plain + 1)
        cv2.imwrite(str(tmp_path / f"test/good/{index}.png"), plain)
        cv2.imwrite(str(tmp_path / f"test/spot/{index}.png"), spotted)
        cv2.imwrite(str(tmp_path / f"ground_truth/spot/{index}_mask.png"), mask)
    return load_dataset(str(tmp_path))


def report(flips: int) -> Report:
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


def test_headline_says_whether_verdicts_are_the_same() -> None:
    # No flip in 4 pictures leaves 1 - 0.05 ** (1 / 4).
    assert headline(report(0)) == (
        "Every engine decides as the PyTorch model did on all 4 pictures: with 95% confidence each differs on at most "
        "52.71% of such pictures."
    )
    assert "1 (fake/fp32)" in headline(report(1))


def test_page_escapes_and_needs_nothing_beside_it() -> None:
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


def test_the_pictures_shown_are_those_decided_differently_and_the_worst(dataset: Dataset) -> None:
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
    assert 'alt="heat maps of a"' in page(report(1), {"a": heat_maps(dataset.test, scored, shown, None)})
