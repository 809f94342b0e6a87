"""The pictures that a training draws its batches from, decoded once as far as memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adedge.data.datasets import Sample, load_dataset
from adedge.data.pictures import conform
from adedge.errors import DataError
from adedge.golden import require_size
from adedge.methods.protocol import TrainingPlan
from adedge.specs import InputSpec

CACHE_BYTES = 2 << 30  # decoded training pictures kept in memory; those beyond are decoded each time


class Pictures:
    """The training pictures, decoded and in the network's colours; those that fit into `CACHE_BYTES` only once.

    Raises `DataError` where there is none, or one is smaller than a tile that is to be cut from it.
    """

    def __init__(self, samples: Sequence[Sample], spec: InputSpec, *, cache_bytes: int = CACHE_BYTES) -> None:
        if not samples:
            raise DataError("there are no pictures to train on: put good pictures into the folder, or train/good of it")
        self.spec = spec
        self._samples = samples
        self._cached: list[NDArray[np.uint8]] = []
        free = cache_bytes
        for sample in samples:
            frame = self._read(sample)
            free -= frame.nbytes
            if free < 0:
                break
            self._cached.append(frame)

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, rng: np.random.Generator, size: int, crop: int | None) -> NDArray[np.uint8]:
        """``size`` different pictures as far as there are, (size, side, side, C): random crops of side ``crop``.

        Without ``crop`` the side is the input's: whole pictures, or random tiles of pictures that are not resized.
        """
        side = crop or self.spec.height
        chosen = rng.choice(len(self), size=size, replace=size > len(self))
        return np.stack([_crop(self._frame(int(index)), side, rng) for index in chosen])

    def each(self, rng: np.random.Generator, size: int, crop: int | None) -> Iterator[NDArray[np.uint8]]:
        """Every picture once, in order, in batches of at most ``size``; crops as `batch` takes them."""
        side = crop or self.spec.height
        for start in range(0, len(self), size):
            indices = range(start, min(start + size, len(self)))
            yield np.stack([_crop(self._frame(index), side, rng) for index in indices])

    def _frame(self, index: int) -> NDArray[np.uint8]:
        return self._cached[index] if index < len(self._cached) else self._read(self._samples[index])

    def _read(self, sample: Sample) -> NDArray[np.uint8]:
        frame = conform(sample.read(), self.spec)
        require_size(frame, self.spec, sample)
        return frame


def _crop(frame: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    top, left = (int(rng.integers(0, length - side + 1)) for length in frame.shape[:2])
    crop: NDArray[np.uint8] = frame[top : top + side, left : left + side]
    return crop


def pictures_of(samples: Sequence[Sample], plan: TrainingPlan, seed: int) -> Mapping[str, Pictures]:
    """The pictures of each kind of stage, drawn apart by ``seed``. Raises `DataError` where there are too few."""
    if plan.validation == 0:
        sets = {"training": Pictures(samples, plan.input)}
    else:
        kept = max(1, round(plan.validation * len(samples)))
        if kept >= len(samples):
            raise DataError(f"{len(samples)} good picture(s) are too few: one at least must be kept to validate with")
        order = np.random.default_rng(seed).permutation(len(samples))
        validation, training = ([samples[index] for index in sorted(part)] for part in (order[:kept], order[kept:]))
        samples = training
        sets = {"validation": Pictures(validation, plan.input), "training": Pictures(training, plan.input)}
    for name, other in plan.others.items():
        found = samples if other.folder is None else load_dataset(str(other.folder), holdout=0).train
        sets[name] = Pictures(found, other.input)
    return sets
