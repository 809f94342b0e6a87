"""What the papers report: complete, and beside the right data sets only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adedge.benchmarks.evaluation.cells import METRICS
from adedge.benchmarks.evaluation.published import MVTEC_AD_PICTURES, PUBLISHED, class_of, published_mean
from adedge.benchmarks.evaluation.tasks import SYSTEMS
from adedge.data.datasets import Dataset, Sample


def test_published_values_are_complete_and_agree_with_their_means() -> None:
    for row in PUBLISHED:
        assert row.system in SYSTEMS
        assert row.metric in METRICS
        if row.classes:
            assert len(row.classes) == (15 if row.collection == "mvtec-ad" else 10)
            # [2] prints 0.900 for p = 33, where its column's mean is 0.905.
            allowed = 0.006 if row.system == "students/p33" else 0.001
            assert np.mean(row.classes) == pytest.approx(row.mean, abs=allowed)
    # MVTec AD holds 3629 pictures to train on and 1725 to test with.
    assert tuple(np.sum(list(MVTEC_AD_PICTURES.values()), axis=0)) == (3629, 1725)
    whole = [("mvtec-ad", name) for name in MVTEC_AD_PICTURES]
    assert published_mean("students/p33", "aupro", whole) == (0.9, "[2] table 3")
    assert published_mean("mkd/vgg16", "image_auroc", [("mnist", "0")]) is None  # only the mean of ten is known
    assert published_mean("mkd/vgg16", "image_auroc", [*whole, None]) is None


def test_mvtec_ad_is_recognised_by_its_numbers_of_pictures() -> None:
    def dataset(train: int, test: int) -> Dataset:
        sample = Sample(path=Path("x.png"), label=0, kind="good")
        return Dataset(name="d/toothbrush", train=(sample,) * train, calibration=(), test=(sample,) * test)

    assert class_of(dataset(60, 42), "toothbrush") == ("mvtec-ad", "toothbrush")
    assert class_of(dataset(59, 42), "toothbrush") is None
    assert class_of(dataset(60, 42), "brush") is None
