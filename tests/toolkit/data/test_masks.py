"""Masks of every kind, and how they find their pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adedge.data.datasets import load_dataset
from adedge.data.pictures import read_mask
from adedge.errors import DataError

Y, X = np.mgrid[:96, :96]
DISC = (X - 50) ** 2 / 300 + (Y - 40) ** 2 / 80 < 1
BLOCKS = np.zeros((96, 96), bool)
BLOCKS[10:30, 10:30] = BLOCKS[50:80, 50:80] = True
NUMBERED = BLOCKS * np.where(Y < 40, 1, 2)  # two defects, numbered


def written(path: Path, pixels: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("m.png", NUMBERED.astype(np.uint8)),
        ("m.png", NUMBERED.astype(np.uint16)),  # / 257 is 0
        ("m.tif", (NUMBERED * 300).astype(np.uint16)),
        ("m.tif", NUMBERED.astype(np.float32) / 1000),
        ("m.tif", NUMBERED.astype(np.float64)),
        ("m.tif", (NUMBERED * 70_000).astype(np.int32)),
        ("m.bmp", NUMBERED.astype(np.uint8)),
        ("m.png", np.dstack([NUMBERED * 0, NUMBERED, NUMBERED * 0]).astype(np.uint8)),  # green
        ("m.jp2", (BLOCKS * 255).astype(np.uint8)),
    ],
)
def test_every_value_but_0_marks_a_defect(tmp_path: Path, name: str, pixels: NDArray[np.generic]) -> None:
    mask = read_mask(written(tmp_path / name, pixels))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, BLOCKS)


def test_a_one_bit_and_a_palette_mask(tmp_path: Path) -> None:
    Image.fromarray(BLOCKS).save(tmp_path / "bits.png")
    indices = Image.fromarray(NUMBERED.astype(np.uint8), "L").convert("P")
    indices.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    indices.save(tmp_path / "palette.png")
    for name in ("bits.png", "palette.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), BLOCKS)


def test_transparent_pixels_of_a_mask_are_good(tmp_path: Path) -> None:
    white = np.full((96, 96, 3), 255, np.uint8)
    mask = written(tmp_path / "m.png", np.dstack([white, BLOCKS.astype(np.uint8)]))  # barely opaque
    np.testing.assert_array_equal(read_mask(mask), BLOCKS)
    opaque = written(
        tmp_path / "o.png", np.dstack([np.repeat(BLOCKS[:, :, None], 3, 2), ~BLOCKS | BLOCKS]) * np.uint8(255)
    )
    np.testing.assert_array_equal(read_mask(opaque), BLOCKS)


@pytest.mark.parametrize("value", [255, 60])
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_lossy_mask_is_split_at_half_of_its_maximum(tmp_path: Path, suffix: str, value: int) -> None:
    path = tmp_path / f"m{suffix}"
    Image.fromarray(DISC.astype(np.uint8) * np.uint8(value)).save(path, quality=75)
    wrong = read_mask(path) != DISC
    edge = cv2.morphologyEx(DISC.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    assert wrong.sum() <= 0.03 * DISC.sum()
    assert not (wrong & ~edge).any()


def test_a_mask_is_turned_as_its_picture_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(BLOCKS[:, :60]).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), np.rot90(BLOCKS[:, :60], -1))


def test_a_mask_with_values_that_are_no_numbers_is_refused(tmp_path: Path) -> None:
    values = NUMBERED.astype(np.float32)
    values[0, 0] = np.nan
    with pytest.raises(DataError, match="m.tif has values that are not finite"):
        read_mask(written(tmp_path / "m.tif", values))


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """One good picture, and test/crack/000.png without a mask."""
    written(tmp_path / "train/good/0.png", np.zeros((96, 96), np.uint8))
    written(tmp_path / "test/crack/000.png", np.ones((96, 96), np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["000_mask.png", "000_mask.PNG", "000_MASK.png", "000.png", "000.BMP", "000.tiff", "000_gt.png", "000_GT.bmp",
     "000-mask.png", "000_gt.jpg", "000/0.png", "000/anything.PNG"],
)  # fmt: skip
def test_a_mask_is_found_under_its_common_names(layout: Path, name: str) -> None:
    folder = layout / "ground_truth/crack" / Path(name).parent
    folder.mkdir(parents=True)
    Image.fromarray(BLOCKS.astype(np.uint8) * np.uint8(255)).save(layout / "ground_truth/crack" / name)
    (sample,) = load_dataset(str(layout), strict=True).test
    mask = sample.read_mask()
    assert mask is not None
    assert (mask != BLOCKS).sum() <= 0.03 * BLOCKS.sum()


@pytest.mark.fault("masks that are orphaned, double, missing or of another size")
@pytest.mark.parametrize("orphan", ["001.png", "001_mask.png", "sub/000.png", "001/0.png"])
def test_a_mask_without_a_picture_is_refused_by_name(layout: Path, orphan: str) -> None:
    written(layout / "ground_truth/crack/000.png", BLOCKS.astype(np.uint8))
    written(layout / "ground_truth/crack" / orphan, BLOCKS.astype(np.uint8))
    with pytest.raises(DataError, match=f"the mask .*ground_truth/crack/{orphan} has no picture: .*test/crack holds"):
        load_dataset(str(layout))


@pytest.mark.fault("masks that are orphaned, double, missing or of another size")
def test_two_masks_of_one_picture_are_refused(layout: Path) -> None:
    written(layout / "ground_truth/crack/000.png", BLOCKS.astype(np.uint8))
    written(layout / "ground_truth/crack/000_mask.png", BLOCKS.astype(np.uint8))
    with pytest.raises(DataError, match=r"000\.png has two masks, .*000\.png and .*000_mask\.png: remove one"):
        load_dataset(str(layout))


@pytest.mark.fault("masks that are orphaned, double, missing or of another size")
def test_a_picture_without_a_mask_is_refused_if_others_have_one(layout: Path) -> None:
    written(layout / "test/crack/001.png", np.full((96, 96), 2, np.uint8))
    written(layout / "ground_truth/crack/000.png", BLOCKS.astype(np.uint8))
    with pytest.raises(DataError, match=r"001\.png has no mask: .*ground_truth/crack/001_mask\.png is missing"):
        load_dataset(str(layout))


@pytest.mark.fault("masks that are orphaned, double, missing or of another size")
def test_a_mask_of_another_size_is_refused(layout: Path) -> None:
    written(layout / "ground_truth/crack/000.png", BLOCKS[:90].astype(np.uint8))
    with pytest.raises(DataError, match=r"ground_truth/crack/000\.png has 96 × 90 pixels and its picture .* 96 × 96"):
        load_dataset(str(layout))


@pytest.mark.parametrize("transparent", [False, True])
def test_a_mask_that_marks_nothing_is_named(layout: Path, transparent: bool) -> None:
    pixels = np.zeros((96, 96, 4), np.uint8)
    pixels[:, :, :3] = 255 if transparent else 0
    pixels[:, :, 3] = 0 if transparent else 255
    written(layout / "ground_truth/crack/000.png", pixels)
    assert "000.png marks no pixel" in load_dataset(str(layout)).skipped[0]
