"""The demo's pictures: regions apart, masks exact, all repeatable, and no defect that a plain statistic finds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from adedge.data.datasets import load_dataset
from adedge.data.synthesis import (
    DEFECT_KINDS,
    SIZE,
    TEXTURES,
    DefectKind,
    add_defect,
    crops,
    moving_frames,
    photograph,
    regions,
    write_demo_dataset,
)
from adedge.errors import DataError, UsageError
from adedge.metrics import auroc


def test_no_pixel_of_the_photograph_is_in_two_regions() -> None:
    places = np.arange(512 * 512, dtype=np.uint32).reshape(512, 512)
    parts = regions(places)  # type: ignore[arg-type]  # numbered pixels instead of grey values
    seen = [
        set(np.concatenate([part.ravel() for part in group]).tolist())
        for group in (parts.train, parts.calibration, parts.test)
    ]
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert all(len(one) >= 512 * 512 / 8 for one in seen)


def test_what_is_tested_lies_between_what_calibrates() -> None:
    rows = np.repeat(np.arange(512, dtype=np.uint16)[:, None], 512, axis=1)
    parts = regions(rows)  # type: ignore[arg-type]  # numbered rows instead of grey values
    (above, below), (strip,) = parts.calibration, parts.test
    assert above.max() + 1 == strip.min()
    assert strip.max() + 1 == below.min()


@pytest.mark.parametrize("kind", DEFECT_KINDS)
@pytest.mark.parametrize("texture", TEXTURES)
def test_mask_is_exactly_what_changed(kind: DefectKind, texture: str) -> None:
    rng = np.random.default_rng(3)
    picture = crops(regions(photograph(texture)).test, 1, rng)[0]
    before = picture.copy()
    changed, mask = add_defect(picture, kind, rng, texture)
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(changed != picture, mask)
    assert 8 <= mask.sum() < 0.2 * mask.size
    assert changed.dtype == np.uint8


def test_same_seed_same_defect() -> None:
    picture = photograph("gravel")[:SIZE, :SIZE]
    first = add_defect(picture, "stain", np.random.default_rng(1))
    again = add_defect(picture, "stain", np.random.default_rng(1))
    other = add_defect(picture, "stain", np.random.default_rng(2))
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any()


def test_brightness_and_contrast_of_a_picture_do_not_find_the_defects() -> None:
    rng = np.random.default_rng(0)
    parts = regions(photograph("brick")).test
    good = crops(parts, 100, rng)
    bad = [add_defect(crop, DEFECT_KINDS[i % 4], rng, "brick")[0] for i, crop in enumerate(crops(parts, 100, rng))]
    labels = np.repeat([0, 1], 100)
    for statistic in (np.mean, np.std, np.max, np.min):
        found = auroc(labels, np.array([float(statistic(picture)) for picture in good + bad]))
        assert max(found, 1 - found) < 0.8, statistic.__name__


def test_dataset_is_laid_out_as_mvtec_and_loads(tmp_path: Path) -> None:
    write_demo_dataset(tmp_path / "data", texture="brick", seed=1, train=6, calibration=4, test=8)
    dataset = load_dataset(str(tmp_path / "data"))
    assert (len(dataset.train), len(dataset.calibration), len(dataset.test)) == (6, 4, 16)
    bad = [sample for sample in dataset.test if sample.label == 1]
    assert {sample.kind for sample in bad} == set(DEFECT_KINDS)
    for sample in bad:
        mask = sample.read_mask()
        assert mask is not None
        assert mask.shape == (SIZE, SIZE)
        assert mask.any()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_unfinished_dataset_is_written_again(tmp_path: Path) -> None:
    (tmp_path / ".data.unfinished" / "train").mkdir(parents=True)
    write_demo_dataset(tmp_path / "data", texture="brick", seed=1, train=2, calibration=2, test=4)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_belt_moves_by_its_speed_and_carries_defects() -> None:
    frames = list(moving_frames("brick", seed=2, frames=200, speed=2))
    assert len(frames) == 200
    np.testing.assert_array_equal(frames[0][0][:, 2:], frames[1][0][:, :-2])
    with_defect = np.mean([mask.any() for _, mask in frames])
    assert 0.1 < with_defect < 0.9
    assert not any(mask.any() for _, mask in frames[73:146]), "every other strip is good"


def test_what_cannot_be_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="choose from brick"):
        photograph("wood")
    with pytest.raises(DataError, match="at least 32 x 32"):
        add_defect(np.zeros((16, 16), np.uint8), "stain", np.random.default_rng(0))


def test_defects_survive_a_written_file(tmp_path: Path) -> None:
    picture, _ = add_defect(photograph("grass")[:SIZE, :SIZE], "foreign", np.random.default_rng(0), "grass")
    assert cv2.imwrite(str(tmp_path / "a.png"), picture)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_GRAYSCALE), picture)
