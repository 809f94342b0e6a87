"""What a detector is trained, calibrated and tested on: a folder, an MVTec-AD layout, or one class of a known set.

`load_dataset` turns the DATA argument of the commands into a `Dataset`; which file layouts it knows is described in
docs/data.md. Every picture is decoded once while loading, so that an unreadable one is named before hours of training.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError
from adedge.labelled_sets import CLASSES, SETS, default_root, read_set
from adedge.pictures import PICTURE_SUFFIXES, list_pictures, read_picture

GOOD = "good"


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One picture and what is known about it.

    ``label`` is 0 for good, 1 for anomalous, -1 for unknown; ``kind`` is "good" or the name of the defect. Exactly one
    of ``path`` (a picture file) and ``array`` (uint8, (H, W, C), C = 1 grey or 3 BGR) is given; ``mask_path`` is the
    picture of the defect's pixels, where there is one.
    """

    path: Path | None
    label: int
    kind: str
    mask_path: Path | None = None
    array: NDArray[np.uint8] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.array is None):
            raise DataError("a sample has either a path or an array")

    def read(self) -> NDArray[np.uint8]:
        """The picture: uint8, (H, W, 3) in BGR order or (H, W, 1). Raises `DataError` where it cannot be read."""
        if self.array is not None:
            return self.array
        assert self.path is not None
        return read_picture(self.path)

    def read_mask(self) -> NDArray[np.bool_] | None:
        """Which pixels are defective: bool, (H, W); None where no mask is known, as for every good picture."""
        if self.mask_path is None:
            return None
        mask: NDArray[np.bool_] = np.any(read_picture(self.mask_path), axis=2)
        return mask

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the sha256 of the file, or of the array's bytes."""
        if self.array is not None:
            return hashlib.sha256(self.array.tobytes()).hexdigest()[:16]
        assert self.path is not None
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures in three parts that share none: to train on, held-out good ones, and the test set.

    ``train`` and ``calibration`` are good (label 0); ``test`` is mixed, and empty where nothing is labelled.
    ``skipped`` has a sentence for every picture that cannot be read. ``sizes`` counts the pictures by (height, width).
    ``digest`` is the sha256 (hex) over the sorted digests of all samples: equal data, equal digest.
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
    """Load ``data``: a folder of good pictures, a folder in MVTec-AD layout, or one class of a set, as "mnist:3".

    ``holdout`` is the fraction of the good training pictures that is set aside for calibration, drawn by ``seed``,
    unless the folder names its own (calibration/good). An unreadable picture is skipped and named in
    ``Dataset.skipped``, or refused with ``strict``. The files of the one-class sets are looked for under ``root``
    (default: $ADEDGE_DATA, else ~/.cache/adedge) and fetched only with ``download``.

    Raises `DataError` where there are no pictures, the layout is broken, a mask does not fit its picture, or a set is
    unknown or incomplete; `MissingDependency` where a download needs torchvision and it is absent.
    """
    if not 0 <= holdout < 1:
        raise DataError(f"the holdout is a fraction of the good pictures, at least 0 and below 1, not {holdout}")
    scheme, colon, chosen = data.partition(":")
    if colon and "/" not in scheme and not Path(data).exists():
        found = _one_class(scheme, chosen, root or default_root(), download)
    elif (Path(data) / "train").is_dir():
        found = _mvtec_layout(Path(data))
    else:
        found = _good_pictures(Path(data))
    return _dataset(data, found, strict=strict, holdout=holdout, seed=seed)


@dataclass(frozen=True)
class _Found:
    """Samples as a layout gives them; ``calibration`` is None where it has no folder of its own."""

    good: list[Sample]
    calibration: list[Sample] | None
    test: list[Sample]


def _dataset(name: str, found: _Found, *, strict: bool, holdout: float, seed: int) -> Dataset:
    """Leave out what cannot be read, and split off calibration pictures where the layout has none."""
    samples = [*found.good, *(found.calibration or ()), *found.test]
    with ThreadPoolExecutor() as pool:
        inspected = dict(zip(samples, pool.map(_inspect, samples), strict=True))
    problems = {sample: result for sample, result in inspected.items() if isinstance(result, DataError)}
    for error in problems.values():
        if strict:
            raise error
    good = [sample for sample in found.good if sample not in problems]
    if not good:
        first = next(iter(problems.values()))
        raise DataError(f"none of the {len(found.good)} good picture(s) of {name} can be read; the first: {first}")
    if found.calibration is None:
        train, calibration = _split(good, holdout, seed)
    else:
        train, calibration = good, [sample for sample in found.calibration if sample not in problems]
    test = [sample for sample in found.test if sample not in problems]
    digests = sorted(sample.digest for sample in (*train, *calibration, *test))
    return Dataset(
        name=name,
        train=tuple(train),
        calibration=tuple(calibration),
        test=tuple(test),
        skipped=tuple(str(error) for error in problems.values()),
        digest=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        sizes=Counter(result for result in inspected.values() if not isinstance(result, DataError)),
    )


def _inspect(sample: Sample) -> tuple[int, int] | DataError:
    """Decode a sample and its mask once: its (height, width), or why it has to be left out.

    Raises `DataError` where the mask has another size than the picture: that is no damaged file but a wrong data set.
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
        return DataError(f"the mask {sample.mask_path} marks no pixel: defective pixels must not be 0 in 8 bits")
    sample.digest  # noqa: B018 - computed here, in the pool, and kept
    return height, width


def _split(good: Sequence[Sample], holdout: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Set ``holdout`` of the good samples aside, at least one of two; the same ones for the same seed and count."""
    count = min(max(round(holdout * len(good)), 1), len(good) - 1) if holdout > 0 else 0
    held_out = set(np.random.default_rng(seed).choice(len(good), count, replace=False).tolist())
    train = [sample for index, sample in enumerate(good) if index not in held_out]
    return train, [good[index] for index in sorted(held_out)]


def _good_pictures(folder: Path) -> _Found:
    """A folder of good pictures, sub-folders included, unless these look as if they were not all good."""
    if folder.is_dir():
        _refuse_broken_layout(folder)
    return _Found([Sample(path=path, label=0, kind=GOOD) for path in list_pictures(folder)], None, [])


def _refuse_broken_layout(folder: Path) -> None:
    """Say what is wrong with a folder that has no train/ and still is no folder of good pictures."""
    names = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if found := names & {"test", "ground_truth", "calibration"}:
        raise DataError(f"{folder} has {sorted(found)[0]}/ but no train/: put the good pictures into train/good")
    if GOOD in names and len(names) > 1:
        other = min(names - {GOOD})
        raise DataError(
            f"{folder} has good/ beside {other}/, and training takes good pictures only: give {folder / GOOD}, "
            f"or make it train/good and test/{other}"
        )
    if several := sorted(name for name in names if (folder / name / "train").is_dir()):
        raise DataError(
            f"{folder} holds {len(several)} data set(s), {', '.join(several[:3])} and so on: "
            f"give one of them, as {folder / several[0]}"
        )


def _mvtec_layout(folder: Path) -> _Found:
    """The layout of MVTec AD (Bergmann et al., CVPR 2019), with an optional calibration/good."""
    for part in ("train", "calibration"):
        kinds = _kinds(folder / part)
        if (folder / part).is_dir() and GOOD not in kinds:
            raise DataError(f"{folder / part} has no good/ folder: put the good pictures into {folder / part / GOOD}")
        if others := [kind for kind in kinds if kind != GOOD]:
            raise DataError(
                f"{folder / part} has {others[0]}/ beside good/, and training takes good pictures only: "
                f"move it to {folder / 'test' / others[0]}"
            )
    kinds = _kinds(folder / "test")
    if (folder / "test").is_dir() and not kinds:
        raise DataError(
            f"{folder / 'test'} has no folders: sort its pictures into good/ and one folder for each defect"
        )
    if unknown := [kind for kind in _kinds(folder / "ground_truth") if kind not in kinds]:
        raise DataError(
            f"{folder / 'ground_truth' / unknown[0]} has no pictures to go with it: {folder / 'test' / unknown[0]} "
            "does not exist"
        )
    has_calibration = (folder / "calibration").is_dir()
    return _Found(
        good=_of_kind(folder / "train" / GOOD, None),
        calibration=_of_kind(folder / "calibration" / GOOD, None) if has_calibration else None,
        test=[
            sample
            for kind in kinds
            for sample in _of_kind(folder / "test" / kind, None if kind == GOOD else folder / "ground_truth" / kind)
        ],
    )


def _kinds(folder: Path) -> list[str]:
    """The names of a folder's sub-folders, sorted. Raises `DataError` where pictures lie beside them."""
    if not folder.is_dir():
        return []
    loose = [path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES]
    if loose:
        raise DataError(
            f"{min(loose)} lies outside of a kind's folder: move it to {folder / GOOD}, or a defect's folder"
        )
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _of_kind(folder: Path, masks: Path | None) -> list[Sample]:
    """The samples of one kind, named as its folder; ``masks`` holds a mask for each, or does not exist at all."""
    label = 0 if folder.name == GOOD else 1
    with_masks = masks is not None and masks.is_dir()
    samples = []
    for path in list_pictures(folder):
        mask = None
        if masks is not None and with_masks:
            mask = masks / path.relative_to(folder).with_name(f"{path.stem}_mask.png")
            if not mask.is_file():
                raise DataError(f"{path} has no mask: {mask} is missing, while {masks} exists")
        samples.append(Sample(path=path, label=label, kind=folder.name, mask_path=mask))
    return samples


def _one_class(name: str, chosen: str, root: Path, download: bool) -> _Found:
    """One class of a labelled set is good and learned; in the test set all other classes are anomalous."""
    known = ", ".join(f"{known}:0 to {known}:{CLASSES - 1}" for known in SETS)
    if name not in SETS:
        raise DataError(f"'{name}:{chosen}' is neither a folder nor a known set: give a folder of pictures, or {known}")
    if not chosen.isdecimal() or int(chosen) >= CLASSES:
        raise DataError(f"{name} has no class '{chosen}': give one of {name}:0 to {name}:{CLASSES - 1}")
    train, test = read_set(name, root, download=download)
    good = int(chosen)

    def sample(image: NDArray[np.uint8], label: int) -> Sample:
        return Sample(path=None, label=int(label != good), kind=GOOD if label == good else str(label), array=image)

    return _Found(
        good=[sample(image, good) for image in train.images[train.labels == good]],
        calibration=None,
        test=[sample(image, int(label)) for image, label in zip(test.images, test.labels, strict=True)],
    )
