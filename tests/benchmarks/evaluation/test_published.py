"""What the papers report: complete, and beside the right data sets only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adedge.benchmarks.evaluation.cells import METRICS
from adedge.benchmarks.evaluation.published import (
    MVTEC_AD_PICTURES,
    PUBLISHED,
    class_of,
    published_mean,
    published_value,
)
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


@pytest.mark.parametrize(
    ("system", "metric", "known", "expected"),
    [
        # The first, one in the middle and the last of a row, read off the papers' tables.
        ("hfr/resnet18", "image_auroc", ("mvtec-ad", "carpet"), (1.0, "[4] table 1")),
        ("hfr/resnet18", "image_auroc", ("mvtec-ad", "toothbrush"), (0.997, "[4] table 1")),
        ("hfr/resnet18", "image_auroc", ("mvtec-ad", "zipper"), (0.96, "[4] table 1")),
        ("mkd/vgg16", "pixel_auroc", ("mvtec-ad", "pill"), (0.8963, "[3] table 4")),  # printed in percent
        ("oesdn/oe-sdn", "image_auroc", ("mnist", "8"), (0.921, "[1] table 1")),
        ("mkd/vgg16", "image_auroc", ("mnist", "8"), None),  # a mean alone
        ("mkd/vgg16", "aupro", ("mvtec-ad", "pill"), None),
        ("pca/2", "image_auroc", ("mnist", "8"), None),
        ("hfr/resnet18", "image_auroc", None, None),
    ],
)
def test_a_class_has_the_value_of_its_column(
    system: str, metric: str, known: tuple[str, str] | None, expected: tuple[float, str] | None
) -> None:
    assert published_value(system, metric, known) == expected


def test_the_mean_over_some_classes_is_theirs() -> None:
    some = [("mvtec-ad", name) for name in ("grid", "tile")]
    found = published_mean("hfr/resnet18", "image_auroc", some)
    assert found == (pytest.approx((0.976 + 0.979) / 2), "[4] table 1")


def test_all_digits_have_the_mean_that_the_paper_prints() -> None:
    digits = [("mnist", str(digit)) for digit in range(10)]
    assert published_mean("mkd/vgg16", "image_auroc", digits) == (0.987, "[3] table 2")
    assert published_mean("mkd/vgg16", "image_auroc", digits[::-1]) == (0.987, "[3] table 2")


@pytest.mark.parametrize(
    "known",
    [[], [None], [("mnist", "0"), ("cifar10", "0")], [("svhn", "0")]],
    ids=["nothing", "own data", "two collections", "another set"],
)
def test_there_is_no_mean_over_what_no_paper_has(known: list[tuple[str, str] | None]) -> None:
    assert published_mean("oesdn/ae", "image_auroc", known) is None


def test_rows_are_told_apart_and_are_fractions() -> None:
    keys = [(row.system, row.collection, row.metric) for row in PUBLISHED]
    assert len(set(keys)) == len(keys)
    for row in PUBLISHED:
        assert all(0 <= value <= 1 for value in (row.mean, *row.classes))


def dataset(name: str, *, files: bool, train: int = 1, calibration: int = 0, test: int = 1) -> Dataset:
    one = (
        Sample(path=Path("x.png"), label=0, kind="good")
        if files
        else Sample(path=None, label=0, kind="good", array=np.zeros((28, 28, 1), np.uint8))
    )
    return Dataset(name=name, train=(one,) * train, calibration=(one,) * calibration, test=(one,) * test)


def test_one_class_of_a_set_is_recognised_and_a_folder_of_that_name_is_not() -> None:
    assert class_of(dataset("mnist:3", files=False), "mnist:3") == ("mnist", "3")
    assert class_of(dataset("mnist:3", files=True), "mnist:3") is None


def test_pictures_that_were_held_out_count_as_the_papers_training_pictures() -> None:
    held_out = dataset("d/toothbrush", files=True, train=48, calibration=12, test=42)
    assert class_of(held_out, "toothbrush") == ("mvtec-ad", "toothbrush")
