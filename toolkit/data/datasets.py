"""Data sets to train, calibrate and test a detector on: pictures on disk, or one class of a labelled set.

`load_dataset` turns the DATA argument of the commands into a `Dataset`. docs/data.md describes the supported layouts,
which `adedge.data.layouts` reads. Every picture is decoded once while loading, so that an unreadable one is reported
before hours of training.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adedge.data.labelled_sets import CLASSES, SETS, default_root, read_set
from adedge.data.layouts import Found, found_in
from adedge.data.samples import GOOD, Sample
from adedge.errors import DataError
from adedge.processors import available_processors

__all__ = ["Dataset", "Sample", "load_dataset", "trained_on"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures in three disjoint parts: a training set, held-out good pictures for calibration, and a test set.

    ``train`` and ``calibration`` are good (label 0); ``test`` is mixed, and empty if nothing is labelled. ``skipped``
    has a sentence for every unreadable picture, and one for what else was left out of the folders. ``sizes`` counts the
    pictures by (height, width). ``digest`` is the SHA-256 (hex) over the sorted digests of all samples: the same data
    has the same digest.
    """

    name: str
    train: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    test: tuple[Sample, ...]
    skipped: tuple[str, ...] = ()
    digest: str = ""
    sizes: Mapping[tuple[int, int], int] = field(default_factory=dict)


def load_dataset(
    data: str,
    *,
    strict: bool = False,
    holdout: float = 0.2,
    seed: int = 0,
    root: Path | None = None,
    download: bool = False,
) -> Dataset:
    """Load ``data``: a folder in one of `adedge.data.layouts`, a CSV manifest, or one class of a set, as "mnist:3".

    ``holdout`` is the fraction of the good training pictures to set aside for calibration, drawn with ``seed``; it is
    ignored if the data has calibration pictures of its own. An unreadable picture, or one of a kind that is not read,
    is skipped and listed in ``Dataset.skipped``; with ``strict`` it raises. The files of the one-class sets are read
    from ``root`` (default: $ADEDGE_DATA, else ~/.cache/adedge) and downloaded only with ``download``.

    >>> dataset = load_dataset("photos")
    >>> len(dataset.train), len(dataset.calibration), len(dataset.test)
    (32, 8, 8)

    Raises `DataError` if there are no pictures, a folder cannot be read, the layout is broken, a mask does not fit its
    picture, or a set is unknown, incomplete or cannot be downloaded.
    """
    if not 0 <= holdout < 1:
        raise DataError(f"the holdout is a fraction of the good pictures, at least 0 and below 1, not {holdout}")
    scheme, colon, class_number = data.partition(":")
    if colon and "/" not in scheme and not os.path.exists(data):  # noqa: PTH110 - unlike Path's, False for a name that is too long
        samples = _one_class(scheme, class_number, root or default_root(), download)
    else:
        samples = found_in(Path(data))
    return _dataset(data, samples, strict=strict, holdout=holdout, seed=seed)


def trained_on(samples: Iterable[Sample], digests: Collection[str]) -> list[str]:
    """The names of samples with the contents of training pictures; ``digests`` are those in training.json."""
    known = set(digests)
    return [sample.name for sample in samples if sample.digest in known]


def _dataset(name: str, samples: Found, *, strict: bool, holdout: float, seed: int) -> Dataset:
    """Leave out unreadable samples, and hold out calibration pictures if the layout has none."""
    if strict and samples.left_out.missed:
        raise DataError(f"{name}: left out {samples.left_out}")
    everything = [*samples.good, *(samples.calibration or ()), *samples.test]
    with ThreadPoolExecutor(available_processors()) as pool:
        results = dict(zip(everything, pool.map(_inspect, everything), strict=True))
    problems = {sample: result for sample, result in results.items() if isinstance(result, DataError)}
    for error in problems.values():
        if strict:
            raise error
    good = [sample for sample in samples.good if sample not in problems]
    if not good:
        first = next(iter(problems.values()))
        raise DataError(f"none of the {len(samples.good)} good picture(s) of {name} can be read; the first: {first}")
    if samples.calibration is None:
        train, calibration = _split(good, holdout, seed)
    else:
        train, calibration = good, [sample for sample in samples.calibration if sample not in problems]
    test = [sample for sample in samples.test if sample not in problems]
    digests = sorted(sample.digest for sample in (*train, *calibration, *test))
    return Dataset(
        name=name,
        train=tuple(train),
        calibration=tuple(calibration),
        test=tuple(test),
        skipped=(
            *(str(error) for error in problems.values()),
            *([f"{name}: left out {samples.left_out}"] if samples.left_out else []),
        ),
        digest=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        sizes=Counter(result for result in results.values() if not isinstance(result, DataError)),
    )


def _inspect(sample: Sample) -> tuple[int, int] | DataError:
    """Decode a sample and its mask once: its (height, width), or the error that excludes it.

    Raises `DataError` if the mask and the picture differ in size: then the data set is wrong, not just a file damaged.
    """
    try:
        height, width = sample.read().shape[:2]
        mask = sample.read_mask()
    except DataError as error:
        return error
    if mask is not None and mask.shape != (height, width):
        raise DataError(
            f"the mask {sample.mask_path} has {mask.shape[1]} × {mask.shape[0]} pixels and its picture {sample.path} "
            f"{width} × {height}: they must have the same size"
        )
    if mask is not None and not mask.any():
        return DataError(
            f"the mask {sample.mask_path} marks no pixel: defective pixels must not be black or transparent"
        )
    sample.digest  # noqa: B018 - a cached property, computed in the pool
    return height, width


def _split(good: Sequence[Sample], holdout: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Hold out a fraction ``holdout`` of the good samples, at least one if there are two; seeded."""
    count = min(max(round(holdout * len(good)), 1), len(good) - 1) if holdout > 0 else 0
    held_out = set(np.random.default_rng(seed).choice(len(good), count, replace=False).tolist())
    train = [sample for index, sample in enumerate(good) if index not in held_out]
    return train, [good[index] for index in sorted(held_out)]


def _one_class(name: str, class_number: str, root: Path, download: bool) -> Found:
    """Samples of a labelled set: training pictures of one class as good; in the test set all others are anomalous."""
    if name not in SETS:
        choices = ", ".join(f"{choice}:0 to {choice}:{CLASSES - 1}" for choice in SETS)
        raise DataError(
            f"'{name}:{class_number}' is neither a folder nor a known set: give a folder of pictures, or {choices}"
        )
    if not class_number.isdecimal() or int(class_number) >= CLASSES:
        raise DataError(f"{name} has no class '{class_number}': give one of {name}:0 to {name}:{CLASSES - 1}")
    train, test = read_set(name, root, download=download)
    good = int(class_number)

    def sample(image: NDArray[np.uint8], label: int) -> Sample:
        return Sample(path=None, label=int(label != good), kind=GOOD if label == good else str(label), array=image)

    return Found(
        good=[sample(image, good) for image in train.images[train.labels == good]],
        calibration=None,
        test=[sample(image, int(label)) for image, label in zip(test.images, test.labels, strict=True)],
    )
