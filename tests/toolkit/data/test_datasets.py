"""The DATA argument: folders, MVTec layouts and one-class sets, whole and broken."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adedge.data.datasets import Sample, load_dataset
from adedge.errors import DataError


def picture(path: Path, value: int = 7, size: tuple[int, int] = (12, 10)) -> Path:
    """A grey picture of (height, width) = ``size`` whose pixels differ by ``value`` from other pictures'."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def good_folder(root: Path, count: int) -> Path:
    for index in range(count):
        picture(root / f"{index:03}.png", index)
    return root


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """5 good for training; in the test 2 good, 2 with a crack (masked), 1 with a stain (not masked)."""
    root = tmp_path / "bottle"
    good_folder(root / "train/good", 5)
    for name, value in (("good/000", 20), ("good/001", 21), ("crack/000", 22), ("crack/001", 23), ("stain/000", 24)):
        picture(root / f"test/{name}.png", value)
    for name in ("000", "001"):
        mask = np.zeros((12, 10), np.uint8)
        mask[2:5, 3:9] = 255
        path = root / f"ground_truth/crack/{name}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return root


def names(samples: tuple[Sample, ...]) -> list[str]:
    return [f"{sample.path.parent.name}/{sample.path.name}" for sample in samples if sample.path is not None]


def test_a_folder_of_good_pictures_is_split(tmp_path: Path) -> None:
    dataset = load_dataset(str(good_folder(tmp_path, 20)), holdout=0.25)
    assert (len(dataset.train), len(dataset.calibration), dataset.test) == (15, 5, ())
    assert sorted(names(dataset.train + dataset.calibration)) == [f"{tmp_path.name}/{i:03}.png" for i in range(20)]
    assert {(sample.label, sample.kind) for sample in dataset.train} == {(0, "good")}


def test_the_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    good_folder(tmp_path, 20)
    first, again, other = (names(load_dataset(str(tmp_path), seed=seed).calibration) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("pictures", "holdout", "held_out"), [(5, 0.0, 0), (1, 0.2, 0), (2, 0.2, 1), (3, 0.99, 2), (10, 0.2, 2)]
)
def test_a_holdout_leaves_something_on_both_sides(tmp_path: Path, pictures: int, holdout: float, held_out: int) -> None:
    dataset = load_dataset(str(good_folder(tmp_path, pictures)), holdout=holdout)
    assert (len(dataset.train), len(dataset.calibration)) == (pictures - held_out, held_out)


@pytest.mark.parametrize("holdout", [-0.1, 1.0])
def test_a_holdout_is_a_fraction(tmp_path: Path, holdout: float) -> None:
    with pytest.raises(DataError, match="the holdout is a fraction"):
        load_dataset(str(tmp_path), holdout=holdout)


def test_an_mvtec_layout_has_labels_kinds_and_masks(mvtec: Path) -> None:
    dataset = load_dataset(str(mvtec))
    assert (len(dataset.train), len(dataset.calibration)) == (4, 1)
    assert names(dataset.test) == ["crack/000.png", "crack/001.png", "good/000.png", "good/001.png", "stain/000.png"]
    assert [sample.label for sample in dataset.test] == [1, 1, 0, 0, 1]
    assert [sample.kind for sample in dataset.test] == ["crack", "crack", "good", "good", "stain"]
    masks = [sample.read_mask() for sample in dataset.test]
    assert [mask is None for mask in masks] == [False, False, True, True, True]
    crack = masks[0]
    assert crack is not None
    assert crack.dtype == bool
    assert (crack.shape, crack.sum(), crack[2, 3], crack[5, 3]) == ((12, 10), 18, True, False)


def test_calibration_pictures_of_their_own_replace_the_split(mvtec: Path) -> None:
    picture(mvtec / "calibration/good/a.png", 50)
    dataset = load_dataset(str(mvtec))
    assert (len(dataset.train), names(dataset.calibration)) == (5, ["good/a.png"])


def test_a_layout_without_a_test_set_is_enough_to_train(tmp_path: Path) -> None:
    good_folder(tmp_path / "train/good", 2)
    assert load_dataset(str(tmp_path)).test == ()


def test_sizes_may_differ_and_are_counted(tmp_path: Path) -> None:
    for index, size in enumerate([(12, 10), (12, 10), (20, 30)]):
        picture(tmp_path / f"{index}.png", index, size)
    assert load_dataset(str(tmp_path)).sizes == {(12, 10): 2, (20, 30): 1}


def test_unreadable_pictures_are_skipped_and_named_or_refused(mvtec: Path) -> None:
    whole = (mvtec / "train/good/000.png").read_bytes()
    (mvtec / "train/good/cut.png").write_bytes(whole[: len(whole) // 2])
    (mvtec / "test/good/empty.png").touch()
    dataset = load_dataset(str(mvtec))
    assert len(dataset.train) + len(dataset.calibration) == 5
    assert len(dataset.test) == 5
    assert [sentence.split(" is ")[0].rsplit("/", 1)[1] for sentence in dataset.skipped] == ["cut.png", "empty.png"]
    with pytest.raises(DataError, match="cut.png is truncated"):
        load_dataset(str(mvtec), strict=True)


def test_a_folder_without_one_readable_picture_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"text")
    with pytest.raises(DataError, match=r"none of the 2 good picture\(s\) .* can be read; the first: .*a.png"):
        load_dataset(str(tmp_path))


def test_a_mask_of_another_size_is_refused_with_both_names(mvtec: Path) -> None:
    picture(mvtec / "ground_truth/crack/001_mask.png", 255, (10, 12))
    with pytest.raises(DataError, match=r"001_mask.png has 12 × 10 pixels and its picture .*crack/001.png 10 × 12"):
        load_dataset(str(mvtec))


def test_a_mask_that_marks_nothing_is_named(mvtec: Path) -> None:
    picture(mvtec / "ground_truth/crack/001_mask.png", 0)
    assert "001_mask.png marks no pixel" in load_dataset(str(mvtec)).skipped[0]


def test_a_missing_mask_is_named(mvtec: Path) -> None:
    (mvtec / "ground_truth/crack/001_mask.png").unlink()
    with pytest.raises(DataError, match=r"crack/001.png has no mask: .*001_mask.png is missing"):
        load_dataset(str(mvtec))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "it is empty"),
        (["train/a.png"], "a.png lies outside of a kind's folder"),
        (["train/crack/a.png"], "train has no good/ folder"),
        (["train/good/a.png", "train/crack/a.png"], "train has crack/ beside good/"),
        (["train/good/a.png", "calibration/crack/a.png"], "calibration has no good/ folder"),
        (["train/good/a.png", "test/a.png"], "a.png lies outside of a kind's folder"),
        (["train/good/a.png", "test/good/notes.txt"], "test/good holds no pictures"),
        (["train/good/a.png", "test/notes.txt"], "test has no folders"),
        (["train/good/a.png", "test/good/b.png", "ground_truth/crack/b_mask.png"], "test/crack does not exist"),
        (["test/good/a.png"], "has test/ but no train/"),
        (["good/a.png", "bad/a.png"], "has good/ beside bad/"),
        (["bottle/train/good/a.png", "cable/train/good/a.png"], r"holds 2 data set\(s\), bottle, cable"),
    ],
    ids=lambda case: case[:24] if isinstance(case, str) else None,
)
def test_broken_layouts_are_refused(tmp_path: Path, files: list[str], sentence: str) -> None:
    for name in files:
        if name.endswith(".png"):
            picture(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    with pytest.raises(DataError, match=sentence):
        load_dataset(str(tmp_path))


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    good_folder(tmp_path, 3)
    dataset = load_dataset(str(tmp_path))
    expected = sorted(hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in tmp_path.iterdir())
    assert sorted(sample.digest for sample in dataset.train + dataset.calibration) == expected
    assert dataset.digest == hashlib.sha256("\n".join(expected).encode()).hexdigest()


def test_the_digest_knows_pictures_not_names(tmp_path: Path) -> None:
    first = load_dataset(str(good_folder(tmp_path / "a", 3))).digest
    for index in range(3):
        picture(tmp_path / f"b/renamed{index}.png", index)
    assert load_dataset(str(tmp_path / "b")).digest == first
    picture(tmp_path / "b/renamed0.png", 99)
    assert load_dataset(str(tmp_path / "b")).digest != first


def test_reading_data_needs_no_torch() -> None:
    code = "import sys, adedge.data.datasets; sys.exit(any(name in sys.modules for name in ('torch', 'torchvision')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
