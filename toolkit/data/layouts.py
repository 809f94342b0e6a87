"""Layouts of data sets on disk: which pictures are for training, calibration and testing. See docs/data.md.

    folders    train/good, test/<kind>, ground_truth/<kind>: MVTec AD, and with other names and masks BTAD, MVTec LOCO
               AD, and VisA as converted by its authors' script
    VisA       <class>/Data/Images, described by split_csv/1cls.csv beside the class
    manifest   a CSV file with a row for each picture
    pictures   a folder of good pictures and nothing else

A broken layout is refused, and the message says what to move where: a misplaced folder would put defects into the
training set.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adedge.data.pictures import PICTURE_SUFFIXES, list_pictures
from adedge.data.samples import GOOD, Sample
from adedge.errors import DataError

# Folder names: MVTec AD's first, then BTAD's ("ok") and MVTec LOCO AD's ("validation").
_GOOD_FOLDERS = (GOOD, "ok")
_CALIBRATION_FOLDERS = ("calibration", "validation")

_REQUIRED = ("path", "split", "label")
_OPTIONAL = ("mask", "kind")
_LABELS = {"good": 0, "normal": 0, "0": 0, "anomalous": 1, "anomaly": 1, "1": 1}
_SPLITS = ("train", "calibration", "test")
_VISA_COLUMNS = ("object", "split", "label", "image", "mask")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The samples of a layout; ``calibration`` is None if it has none, so that some must be held out."""

    good: list[Sample] = field(default_factory=list)
    calibration: list[Sample] | None = None
    test: list[Sample] = field(default_factory=list)


def found_in(data: Path) -> Found:
    """The samples of a CSV manifest, or of a folder in one of the layouts. Raises `DataError` if it is broken."""
    if data.suffix.lower() == ".csv":
        return _manifest(data)
    if (data / "train").is_dir():
        return _folders(data)
    if (data / "Data" / "Images").is_dir():
        return _visa(data)
    if data.is_dir():
        _refuse_broken_layout(data)
    return Found(good=[Sample(path=path, label=0, kind=GOOD) for path in list_pictures(data)])


def classes_in(folder: Path) -> list[Path]:
    """The sub-folders that are data sets themselves, such as the classes of MVTec AD, sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and ((path / "train").is_dir() or (path / "Data" / "Images").is_dir())
    )


def _refuse_broken_layout(folder: Path) -> None:
    """Raise `DataError` for a folder without train/ that is not a folder of good pictures either."""
    names = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if misplaced := names & {"test", "ground_truth", *_CALIBRATION_FOLDERS}:
        raise DataError(f"{folder} has {min(misplaced)}/ but no train/: put the good pictures into train/good")
    if good := names.intersection(_GOOD_FOLDERS):
        name = min(good)
        if len(names) > 1:
            other = min(names - {name})
            raise DataError(
                f"{folder} has {name}/ beside {other}/, and training takes good pictures only: give {folder / name}, "
                f"or make it train/good and test/{other}"
            )
    if classes := [path.name for path in classes_in(folder)]:
        listing = ", ".join(classes[:3]) + (" and more" if len(classes) > 3 else "")
        raise DataError(
            f"{folder} holds {len(classes)} data set(s), {listing}: give one of them, such as {folder / classes[0]}"
        )


def _folders(folder: Path) -> Found:
    """train/good, test/<kind> and ground_truth/<kind> (Bergmann et al., CVPR 2019), optionally calibration/good."""
    held_out = [folder / name for name in _CALIBRATION_FOLDERS if (folder / name).is_dir()]
    if len(held_out) > 1:
        raise DataError(f"{folder} has calibration/ and validation/, which mean the same: merge them into calibration/")
    good, *calibration = (_only_good(part) for part in (folder / "train", *held_out))
    kinds = _kinds(folder / "test")
    if (folder / "test").is_dir() and not kinds:
        raise DataError(
            f"{folder / 'test'} has no folders: sort its pictures into good/ and one folder for each defect"
        )
    masks = folder / "ground_truth"
    if unknown := [kind for kind in _kinds(masks) if kind not in kinds]:
        raise DataError(
            f"{masks / unknown[0]} has masks but no pictures: {folder / 'test' / unknown[0]} does not exist"
        )
    return Found(
        good=good,
        calibration=calibration[0] if calibration else None,
        test=[sample for kind in kinds for sample in _of_kind(folder / "test" / kind, masks / kind)],
    )


def _only_good(part: Path) -> list[Sample]:
    """The samples of train/ or calibration/, each of which holds one folder of good pictures and no other."""
    kinds = _kinds(part)
    good = [kind for kind in kinds if kind in _GOOD_FOLDERS]
    if not good:
        raise DataError(f"{part} has no good/ folder: put the good pictures into {part / GOOD}")
    if others := [kind for kind in kinds if kind != good[0]]:
        raise DataError(
            f"{part} has {others[0]}/ beside {good[0]}/, and training takes good pictures only: "
            f"move it to {part.with_name('test') / others[0]}"
        )
    return _of_kind(part / good[0], None)


def _kinds(folder: Path) -> list[str]:
    """The names of a folder's sub-folders, sorted. Raises `DataError` if pictures lie beside them."""
    if not folder.is_dir():
        return []
    loose = [path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES]
    if loose:
        raise DataError(
            f"{min(loose)} lies outside of a kind's folder: move it to {folder / GOOD}, or to the folder of its defect"
        )
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _of_kind(folder: Path, masks: Path | None) -> list[Sample]:
    """The samples of the kind named by the folder; ``masks`` holds a mask for each, or does not exist."""
    if folder.name in _GOOD_FOLDERS:
        return [Sample(path=path, label=0, kind=GOOD) for path in list_pictures(folder)]
    samples = []
    for path in list_pictures(folder):
        mask = None if masks is None or not masks.is_dir() else _mask_of(path, masks / path.relative_to(folder))
        samples.append(Sample(path=path, label=1, kind=folder.name, mask_path=mask))
    return samples


def _mask_of(path: Path, beside: Path) -> Path:
    """The mask of a picture; ``beside`` is the picture's own path moved to the masks' folder.

    MVTec AD adds "_mask" to the picture's name, VisA and BTAD keep it, MVTec LOCO AD has a folder of that name. Raises
    `DataError` if there is none.
    """
    expected = beside.with_name(f"{beside.stem}_mask.png")
    same_name = [beside.with_suffix(suffix) for suffix in (".png", *sorted(PICTURE_SUFFIXES))]
    for candidate in (expected, *same_name):
        if candidate.is_file():
            return candidate
    if beside.with_suffix("").is_dir():
        return beside.with_suffix("")
    raise DataError(f"{path} has no mask: {expected} is missing, although {beside.parent} exists")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of a table of pictures. Paths are relative to the table's root; "" if not given."""

    line: int
    path: str
    split: str
    label: str
    mask: str
    kind: str


def _manifest(path: Path) -> Found:
    """A CSV file with the columns path, split and label, optionally mask and kind; paths are relative to its folder."""
    rows = [
        _Row(line=line, **{name: cells.get(name, "") for name in (*_REQUIRED, *_OPTIONAL)})
        for line, cells in _lines(path, _REQUIRED, _OPTIONAL)
    ]
    return _samples_from_rows(path, path.parent, rows)


def _visa(folder: Path) -> Found:
    """A class of VisA as published (Zou et al., ECCV 2022), split as split_csv/1cls.csv beside it says."""
    table = folder.parent / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise DataError(
            f"{folder} is a class of VisA and {table}, which names its training and test pictures, is missing: "
            "copy it from VisA's archive"
        )
    rows = [
        _Row(
            line=line,
            path=cells["image"],
            split=cells["split"],
            label=cells["label"],
            mask=cells["mask"],
            kind="",
        )
        for line, cells in _lines(table, _VISA_COLUMNS, ())
        if cells["object"] == folder.name
    ]
    if not rows:
        raise DataError(f"{table} has no row whose object is {folder.name}: keep VisA's own folder names")
    return _samples_from_rows(table, folder.parent, rows)


def _lines(path: Path, required: tuple[str, ...], optional: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and cells by column of a CSV file. Raises `DataError` for missing or unknown columns."""
    try:
        # utf-8-sig: spreadsheets write a byte-order mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            allowed = ", ".join(required) + (f", and optionally {', '.join(optional)}" if optional else "")
            if missing := [name for name in required if name not in columns]:
                raise DataError(f"{path} has no column '{missing[0]}': its first line must name {allowed}")
            if unknown := [name for name in columns if name not in (*required, *optional)]:
                raise DataError(f"{path} has a column '{unknown[0]}' that is not known: use {allowed}")
            for cells in reader:
                if None in cells or None in cells.values():
                    raise DataError(f"{path}, line {reader.line_num}: give one value for each of {', '.join(columns)}")
                yield reader.line_num, {name: value.strip() for name, value in cells.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _samples_from_rows(table: Path, root: Path, rows: list[_Row]) -> Found:
    parts: dict[str, list[Sample]] = {split: [] for split in _SPLITS}
    lines: dict[Path, int] = {}
    for row in rows:
        place = f"{table}, line {row.line}"
        if row.split not in parts:
            raise DataError(f"{place}: split '{row.split}' is not known: give one of {', '.join(_SPLITS)}")
        label = _LABELS.get(row.label.lower())
        if label is None:
            raise DataError(f"{place}: label '{row.label}' is not known: give good or anomalous")
        if label and row.split != "test":
            raise DataError(f"{place}: an anomalous picture is in {row.split}, which takes good ones: move it to test")
        path = _resolve(root, row.path, f"{place}: the picture")
        if path in lines:
            raise DataError(f"{place}: {row.path} is already in line {lines[path]}: remove one of the two")
        lines[path] = row.line
        mask = _resolve(root, row.mask, f"{place}: the mask") if row.mask and label else None
        kind = (row.kind or "anomaly") if label else GOOD
        parts[row.split].append(Sample(path=path, label=label, kind=kind, mask_path=mask))
    if not parts["train"]:
        raise DataError(f"{table} has no row whose split is train: training requires good pictures")
    return Found(good=parts["train"], calibration=parts["calibration"] or None, test=parts["test"])


def _resolve(root: Path, text: str, what: str) -> Path:
    """The path ``text`` below ``root``. Raises `DataError` if it is not a file."""
    path = root / text
    if not path.is_file():
        raise DataError(f"{what} '{text}' does not exist: paths are relative to {root}")
    return path
