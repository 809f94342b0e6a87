"""The pictures that a training draws its batches from, cached in memory up to a limit."""

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

CACHE_BYTES = 2 << 30  # limit of decoded pictures kept in memory; the rest are decoded each time


class Pictures:
    """The training pictures, decoded and in the network's colours; those that fit into ``cache_bytes`` are cached.

    Raises `DataError` if there are none, or if one is smaller than a tile to be cut from it.
    """

    def __init__(self, samples: Sequence[Sample], spec: InputSpec, *, cache_bytes: int = CACHE_BYTES) -> None:
        if not samples:
            raise DataError("there are no pictures to train on: put good pictures into the folder or its train/good")
        self.spec = spec
        self._samples = samples
        self._cached: list[NDArray[np.uint8]] = []
        remaining = cache_bytes
        for sample in samples:
            frame = self._read(sample)
            remaining -= frame.nbytes
            if remaining < 0:
                break
            self._cached.append(frame)

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, rng: np.random.Generator, size: int, crop: int | None) -> NDArray[np.uint8]:
        """Random crops with side ``crop`` of ``size`` pictures, (size, side, side, C) uint8.

        Pictures repeat only if there are fewer than ``size``. Without ``crop`` the side is the input's: whole pictures,
        or random tiles of pictures that are not resized.
        """
        side = crop or self.spec.height
        indices = rng.choice(len(self), size=size, replace=size > len(self))
        return np.stack([_crop(self._frame(int(index)), side, rng) for index in indices])

    def each(self, rng: np.random.Generator, size: int, crop: int | None) -> Iterator[NDArray[np.uint8]]:
        """Every picture once, in order, in batches of at most ``size``; cropped as in `batch`."""
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
    """The sets of pictures that stages name: "training", "validation" (split off with ``seed``) and the plan's others.

    Raises `DataError` if there are too few pictures.
    """
    if plan.validation == 0:
        sets = {"training": Pictures(samples, plan.input)}
    else:
        count = max(1, round(plan.validation * len(samples)))
        if count >= len(samples):
            raise DataError(
                f"{len(samples)} good picture(s) are too few, as at least one is kept for validation: add good pictures"
            )
        order = np.random.default_rng(seed).permutation(len(samples))
        validation, training = ([samples[index] for index in sorted(part)] for part in (order[:count], order[count:]))
        samples = training
        sets = {"validation": Pictures(validation, plan.input), "training": Pictures(training, plan.input)}
    for name, other in plan.others.items():
        other_samples = samples if other.folder is None else load_dataset(str(other.folder), holdout=0).train
        sets[name] = Pictures(other_samples, other.input)
    return sets
