"""The pictures that batches are drawn from: cropped, not resized, and the same whether kept in memory or read again."""

from __future__ import annotations

import numpy as np
import pytest

from adedge.data.datasets import Dataset, Sample
from adedge.errors import DataError
from adedge.methods.oesdn.method import OeSdn
from adedge.methods.training_pictures import Pictures
from adedge.specs import InputSpec


def noise(count: int) -> tuple[Sample, ...]:
    """Grey pictures of 16 x 16 pixels."""
    arrays = np.random.default_rng(1).integers(0, 256, (count, 16, 16, 1), dtype=np.uint8)
    return tuple(Sample(path=None, label=0, kind="good", array=array) for array in arrays)


def test_crops_are_cut_everywhere_and_nothing_is_resized() -> None:
    ramp = (np.arange(20)[:, None] * 12 + np.arange(20)).astype(np.uint8)[..., None]
    spec = OeSdn(size=16, fit="crop", channels=1).plan().input
    pictures = Pictures([Sample(path=None, label=0, kind="good", mask_path=None, array=ramp)], spec)
    origins = set()
    for seed in range(200):
        (crop,) = pictures.batch(np.random.default_rng(seed), 1, None)
        top, left = divmod(int(crop[0, 0, 0]), 12)
        assert np.array_equal(crop, ramp[top : top + 16, left : left + 16])
        origins.add((top, left))
    assert origins == {(top, left) for top in range(5) for left in range(5)}


def test_pictures_beyond_the_cache_are_read_again_and_the_same() -> None:
    samples = noise(6)
    spec = InputSpec(height=16, width=16, channels=1, color="gray")
    cached, uncached = Pictures(samples, spec), Pictures(samples, spec, cache_bytes=600)
    for seed in range(5):
        batches = [p.batch(np.random.default_rng(seed), 4, 8) for p in (cached, uncached)]
        assert np.array_equal(*batches)


def test_a_batch_holds_different_pictures() -> None:
    samples = noise(6)
    pictures = Pictures(samples, InputSpec(height=16, width=16, channels=1, color="gray"))
    batch = pictures.batch(np.random.default_rng(0), 6, None)
    assert {frame.tobytes() for frame in batch} == {sample.read().tobytes() for sample in samples}


def test_pictures_smaller_than_a_crop_are_refused() -> None:
    spec = OeSdn(size=32, fit="crop", channels=1).plan().input
    with pytest.raises(DataError, match="16 × 16 pixels.*--size"):
        Pictures(noise(1), spec)


def test_no_pictures_is_one_sentence() -> None:
    empty = Dataset(name="empty", train=(), calibration=(), test=(), skipped=(), digest="")
    with pytest.raises(DataError, match="no pictures to train on"):
        Pictures((), InputSpec(height=16, width=16, channels=1, color="gray"))
    with pytest.raises(DataError, match="no pictures to train on"):
        OeSdn.for_dataset(empty)
