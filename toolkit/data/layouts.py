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

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adedge.data.folders import (
    LeftOut,
    Listing,
    find_pictures,
    first_few,
    folders_in,
    is_folder,
    list_folder,
    loose_pictures,
)
from adedge.data.samples import GOOD, Sample
from adedge.errors import DataError
from adedge.limits import TABLE_BYTES, read_file

# Folder names: MVTec AD's first, then BTAD's ("ok") and MVTec LOCO AD's ("validation").
_GOOD_FOLDERS = (GOOD, "ok")
_CALIBRATION_FOLDERS = ("calibration", "validation")

_REQUIRED = ("path", "split", "label")
_OPTIONAL = ("mask", "kind")
_LABELS = {"good": 0, "normal": 0, "0": 0, "anomalous": 1, "anomaly": 1, "1": 1}
_SPLITS = ("train", "calibration", "test")
_VISA_COLUMNS = ("object", "split", "label", "image", "mask")
_DELIMITERS = ",;\t|"  # a comma is a decimal point in half of Europe, so that its spreadsheets write semicolons

_MASK_TAG = re.compile(r"[_-](mask|gt)$", re.IGNORECASE)  # what a mask's name adds to its picture's


@dataclass(frozen=True, kw_only=True)
class Found:
    """The samples of a layout, and what its folders hold besides.

    ``calibration`` is None if the layout has none, so that some must be held out.
    """

    good: list[Sample] = field(default_factory=list)
    calibration: list[Sample] | None = None
    test: list[Sample] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


def found_in(data: Path) -> Found:
    """The samples of a CSV manifest, or of a folder in one of the layouts. Raises `DataError` if it is broken."""
    if data.suffix.lower() == ".csv":
        return _manifest(data)
    if is_folder(data / "train"):
        return _folders(data)
    if is_folder(data / "Data" / "Images"):
        return _visa(data)
    if is_folder(data):
        _refuse_broken_layout(data)
    listing = _readable(find_pictures(data))
    return Found(good=[Sample(path=path, label=0, kind=GOOD) for path in listing.pictures], left_out=listing.left_out)


def classes_in(folder: Path) -> list[Path]:
    """The sub-folders that are data sets themselves, such as the classes of MVTec AD, sorted."""
    return [path for path in folders_in(folder) if is_folder(path / "train") or is_folder(path / "Data" / "Images")]


def _readable(listing: Listing) -> Listing:
    """Return the listing, or raise `DataError` if a folder in it cannot be read: its pictures would be missing."""
    if unreadable := listing.left_out.unreadable:
        raise DataError(
            f"cannot read {first_few(unreadable)}: mount the folder, change its permissions, or move it away"
        )
    return listing


def _refuse_broken_layout(folder: Path) -> None:
    """Raise `DataError` for a folder without train/ that is not a folder of good pictures either."""
    names = {path.name for path in folders_in(folder)}
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
    good, *calibration = (_of_kind(_only_good(part)) for part in (folder / "train", *held_out))
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
    test = [_of_kind(folder / "test" / kind, masks / kind) for kind in kinds]
    return Found(
        good=good.samples,
        calibration=calibration[0].samples if calibration else None,
        test=[sample for kind in test for sample in kind.samples],
        left_out=sum((kind.left_out for kind in (good, *calibration, *test)), LeftOut()),
    )


def _only_good(part: Path) -> Path:
    """The folder of good pictures in train/ or calibration/, which hold no other."""
    kinds = _kinds(part)
    good = [kind for kind in kinds if kind in _GOOD_FOLDERS]
    if not good:
        raise DataError(f"{part} has no good/ folder: put the good pictures into {part / GOOD}")
    if others := [kind for kind in kinds if kind != good[0]]:
        raise DataError(
            f"{part} has {others[0]}/ beside {good[0]}/, and training takes good pictures only: "
            f"move it to {part.with_name('test') / others[0]}"
        )
    return part / good[0]


def _kinds(folder: Path) -> list[str]:
    """The names of a folder's sub-folders, sorted. Raises `DataError` if pictures lie beside them."""
    if not folder.is_dir():
        return []
    if loose := loose_pictures(folder):
        raise DataError(
            f"{loose[0]} lies outside of a kind's folder: move it to {folder / GOOD}, or to the folder of its defect"
        )
    return [path.name for path in folders_in(folder)]


@dataclass(frozen=True)
class _OfKind:
    samples: list[Sample]
    left_out: LeftOut


def _of_kind(folder: Path, masks: Path | None = None) -> _OfKind:
    """The samples of the kind named by the folder; ``masks`` holds a mask for each, or does not exist."""
    listing = _readable(find_pictures(folder))
    if folder.name in _GOOD_FOLDERS:
        samples = [Sample(path=path, label=0, kind=GOOD) for path in listing.pictures]
        return _OfKind(samples, listing.left_out)
    mask_of, left_out = dict[Path, Path](), listing.left_out
    if masks is not None and masks.is_dir():
        mask_files = _readable(list_folder(masks))
        left_out += mask_files.left_out
        mask_of = _match_masks(listing.pictures, folder, mask_files.pictures, masks)
    samples = [Sample(path=path, label=1, kind=folder.name, mask_path=mask_of.get(path)) for path in listing.pictures]
    return _OfKind(samples, left_out)


def _match_masks(pictures: Sequence[Path], folder: Path, files: Sequence[Path], masks: Path) -> dict[Path, Path]:
    """The mask of every picture: a file, or a folder of files.

    MVTec AD adds "_mask" to the picture's name, VisA and BTAD keep it, others add "_gt"; MVTec LOCO AD has a folder of
    that name. Raises `DataError` if a picture has no mask or two, or a mask no picture.
    """
    by_name: dict[Path, list[Path]] = {}
    for file in files:
        inside = file.relative_to(masks)
        for stem in {inside.stem, _MASK_TAG.sub("", inside.stem)}:
            by_name.setdefault(inside.with_name(stem), []).append(file)
    mask_of: dict[Path, Path] = {}
    for path in pictures:
        beside = path.relative_to(folder).with_suffix("")
        candidates = by_name.get(beside, [])
        if len(candidates) > 1:
            raise DataError(f"{path} has two masks, {candidates[0]} and {candidates[1]}: remove one of them")
        if candidates:
            mask_of[path] = candidates[0]
        elif (masks / beside).is_dir():
            mask_of[path] = masks / beside
        else:
            expected = masks / beside.with_name(f"{beside.name}_mask.png")
            raise DataError(f"{path} has no mask: {expected} is missing, although {expected.parent} exists")
    used = set(mask_of.values())
    if orphans := [file for file in files if file not in used and not used.intersection(file.parents)]:
        others = f" (and {len(orphans) - 1} others)" if len(orphans) > 1 else ""
        raise DataError(
            f"the mask {orphans[0]}{others} has no picture: {folder} holds none of that name; "
            "add the picture, or remove the mask"
        )
    return mask_of


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
    allowed = ", ".join(required) + (f", and optionally {', '.join(optional)}" if optional else "")
    try:
        text = _text_of(path)
        skip, delimiter = _delimiter(text, required)
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, delimiter=delimiter)
        if skip:
            next(reader.reader)
        columns = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        if missing := [name for name in required if name not in columns]:
            raise DataError(f"{path} has no column '{missing[0]}': its first line must name {allowed}")
        if unknown := [name for name in columns if name not in (*required, *optional)]:
            raise DataError(f"{path} has a column '{unknown[0]}' that is not known: use {allowed}")
        for cells in reader:
            if None in cells or None in cells.values():
                raise DataError(f"{path}, line {reader.line_num}: give one value for each of {', '.join(columns)}")
            yield reader.line_num, {name: value.strip() for name, value in cells.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table ({error}): save it as CSV in UTF-8") from error


def _text_of(path: Path) -> str:
    """The text of a table: UTF-8, or UTF-16 with its byte-order mark, as spreadsheets write them."""
    data = read_file(path, TABLE_BYTES, DataError)
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = data.decode(encoding)
    if "\0" in text:
        raise csv.Error("it holds zero bytes")
    return text


def _delimiter(text: str, required: tuple[str, ...]) -> tuple[bool, str]:
    """The delimiter with which the first line names all ``required`` columns, else a comma.

    Also returns whether the first line is "sep=;", which tells spreadsheets the delimiter, and the second the header.
    """
    first = next(iter(text.splitlines()), "")
    if match := re.fullmatch(r"sep=(.)", first.strip("\"'"), re.IGNORECASE):
        return True, match[1]
    for delimiter in _DELIMITERS:
        if set(required) <= {name.strip().strip('"').lower() for name in first.split(delimiter)}:
            return False, delimiter
    return False, ","


def _samples_from_rows(table: Path, root: Path, rows: list[_Row]) -> Found:
    parts: dict[str, list[Sample]] = {split: [] for split in _SPLITS}
    lines: dict[Path, int] = {}
    for row in rows:
        place = f"{table}, line {row.line}"
        split = row.split.lower()
        if split not in parts:
            raise DataError(f"{place}: split '{row.split}' is not known: give one of {', '.join(_SPLITS)}")
        label = _LABELS.get(row.label.lower())
        if label is None:
            raise DataError(f"{place}: label '{row.label}' is not known: give good or anomalous")
        if label and split != "test":
            raise DataError(f"{place}: an anomalous picture is in {split}, which takes good ones: move it to test")
        path = _resolve(root, row.path, f"{place}: the picture")
        if path in lines:
            raise DataError(f"{place}: {row.path} is already in line {lines[path]}: remove one of the two")
        lines[path] = row.line
        mask = _resolve(root, row.mask, f"{place}: the mask") if row.mask and label else None
        kind = (row.kind or "anomaly") if label else GOOD
        parts[split].append(Sample(path=path, label=label, kind=kind, mask_path=mask))
    if not parts["train"]:
        raise DataError(f"{table} has no row whose split is train: training requires good pictures")
    return Found(good=parts["train"], calibration=parts["calibration"] or None, test=parts["test"])


def _resolve(root: Path, text: str, what: str) -> Path:
    """The path ``text``, absolute or below ``root``, perhaps with backslashes. Raises `DataError` if it is no file."""
    for written in (text, text.replace("\\", "/")):
        if os.path.isfile(root / written):  # noqa: PTH113 - unlike Path's, False for a name that is too long
            return root / written
    shown = text if len(text) <= 200 else f"{text[:200]}..."
    raise DataError(f"{what} '{shown}' does not exist: paths are relative to {root}")
