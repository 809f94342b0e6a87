"""The layouts of public data sets and CSV manifests, whole and broken, on small pictures laid out like them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adedge.data.datasets import Dataset, load_dataset
from adedge.data.layouts import classes_in
from adedge.errors import DataError


def picture(path: Path, value: int = 7, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def mask(path: Path, rows: slice, value: int = 255) -> None:
    """A mask with ``value`` in some rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((12, 10), np.uint8)
    pixels[rows] = value
    Image.fromarray(pixels).save(path)


def seen(dataset: Dataset) -> list[tuple[str, int, str, int | None]]:
    """(Name, label, kind, pixels of the mask) of every test picture."""
    found = []
    for sample in dataset.test:
        pixels = sample.read_mask()
        assert sample.path is not None
        found.append((sample.path.name, sample.label, sample.kind, None if pixels is None else int(pixels.sum())))
    return found


@pytest.mark.parametrize("suffix", [".bmp", ".png"])
def test_btad(tmp_path: Path, suffix: str) -> None:
    for number in range(5):
        picture(tmp_path / f"01/train/ok/{number:04}.bmp", number)
    picture(tmp_path / "01/test/ok/0000.bmp", 20)
    picture(tmp_path / "01/test/ko/0001.bmp", 21)
    mask(tmp_path / f"01/ground_truth/ko/0001{suffix}", slice(2, 4))
    dataset = load_dataset(str(tmp_path / "01"))
    assert (len(dataset.train), len(dataset.calibration)) == (4, 1)
    assert {(sample.label, sample.kind) for sample in dataset.train} == {(0, "good")}
    assert seen(dataset) == [("0001.bmp", 1, "ko", 20), ("0000.bmp", 0, "good", None)]


def test_loco_merges_the_masks_of_a_picture_and_keeps_its_validation_pictures_apart(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"train/good/{number:03}.png", number)
    picture(tmp_path / "validation/good/000.png", 10)
    picture(tmp_path / "test/good/000.png", 20)
    picture(tmp_path / "test/logical_anomalies/000.png", 21)
    picture(tmp_path / "test/structural_anomalies/000.png", 22)
    # A mask of LOCO holds a code of the kind of defect, not 255, and there is one file for each defect.
    mask(tmp_path / "ground_truth/logical_anomalies/000/000.png", slice(0, 2), 255)
    mask(tmp_path / "ground_truth/logical_anomalies/000/001.png", slice(1, 4), 201)
    mask(tmp_path / "ground_truth/structural_anomalies/000/000.png", slice(0, 1), 3)
    dataset = load_dataset(str(tmp_path))
    assert (len(dataset.train), len(dataset.calibration)) == (4, 1)
    assert seen(dataset) == [
        ("000.png", 0, "good", None),
        ("000.png", 1, "logical_anomalies", 40),
        ("000.png", 1, "structural_anomalies", 10),
    ]


def test_masks_of_one_picture_have_one_size(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/000.png")
    picture(tmp_path / "test/logical_anomalies/000.png")
    mask(tmp_path / "ground_truth/logical_anomalies/000/000.png", slice(0, 2))
    picture(tmp_path / "ground_truth/logical_anomalies/000/001.png", 255, size=(5, 5))
    with pytest.raises(DataError, match=r"000.png and .*001.png differ in size"):
        load_dataset(str(tmp_path), strict=True)


def test_visa_as_converted_by_its_authors(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/0000.JPG")
    picture(tmp_path / "test/good/0001.JPG", 20)
    picture(tmp_path / "test/bad/000.JPG", 21)
    mask(tmp_path / "ground_truth/bad/000.png", slice(0, 3))
    assert seen(load_dataset(str(tmp_path))) == [("000.JPG", 1, "bad", 30), ("0001.JPG", 0, "good", None)]


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    """Two classes of VisA as published."""
    rows = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        for number in range(3):
            picture(tmp_path / f"{name}/Data/Images/Normal/{number:04}.JPG", number)
            part = "train" if number < 2 else "test"
            rows.append(f"{name},{part},normal,{name}/Data/Images/Normal/{number:04}.JPG,")
        picture(tmp_path / f"{name}/Data/Images/Anomaly/000.JPG", 30)
        mask(tmp_path / f"{name}/Data/Masks/Anomaly/000.png", slice(0, 2), 1)
        rows.append(f"{name},test,anomaly,{name}/Data/Images/Anomaly/000.JPG,{name}/Data/Masks/Anomaly/000.png")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_visa_as_published(visa: Path) -> None:
    dataset = load_dataset(str(visa / "candle"), holdout=0)
    assert [sample.path for sample in dataset.train] == [
        visa / f"candle/Data/Images/Normal/{number:04}.JPG" for number in range(2)
    ]
    assert seen(dataset) == [("0002.JPG", 0, "good", None), ("000.JPG", 1, "anomaly", 20)]
    assert [path.name for path in classes_in(visa)] == ["candle", "pcb1"]
    with pytest.raises(DataError, match=r"holds 2 data set\(s\), candle, pcb1"):
        load_dataset(str(visa))


def test_visa_without_its_table_says_which_file_is_missing(visa: Path) -> None:
    (visa / "split_csv/1cls.csv").unlink()
    with pytest.raises(DataError, match=r"split_csv/1cls.csv, which names .* is missing"):
        load_dataset(str(visa / "candle"))


def test_visa_under_another_name_is_not_in_the_table(visa: Path) -> None:
    (visa / "candle").rename(visa / "my_candles")
    with pytest.raises(DataError, match="no row whose object is my_candles"):
        load_dataset(str(visa / "my_candles"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """a.png to f.png, and a mask."""
    for number, name in enumerate("abcdef"):
        picture(tmp_path / f"{name}.png", number)
    mask(tmp_path / "masks/f.png", slice(0, 5))
    return tmp_path


def test_a_manifest(pictures: Path) -> None:
    table = pictures / "parts.csv"
    table.write_text(  # as a spreadsheet saves it: byte-order mark, columns in any order
        "\ufeffsplit,path,label,kind,mask\n"
        "train,a.png,good,,\ntrain,b.png,normal,,\ncalibration,c.png,0,,\n"
        "test,d.png,good,,\ntest,e.png,anomalous,dent,\ntest,f.png,1,,masks/f.png\n",
        encoding="utf-8",
    )
    dataset = load_dataset(str(table))
    assert [sample.path for sample in dataset.train] == [pictures / "a.png", pictures / "b.png"]
    assert [sample.path for sample in dataset.calibration] == [pictures / "c.png"]
    assert seen(dataset) == [
        ("d.png", 0, "good", None),
        ("e.png", 1, "dent", None),
        ("f.png", 1, "anomaly", 50),
    ]


def test_a_manifest_without_calibration_pictures_is_split(pictures: Path) -> None:
    table = pictures / "parts.csv"
    table.write_text("path,split,label\n" + "".join(f"{name}.png,train,good\n" for name in "abcde"))
    dataset = load_dataset(str(table))
    assert (len(dataset.train), len(dataset.calibration)) == (4, 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\na.png,good\n", "has no column 'split': its first line must name path, split, label"),
        ("path,split,label,colour\n", "has a column 'colour' that is not known"),
        ("", "has no column 'path'"),
        ("path,split,label\na.png,train\n", "line 2: give one value for each of path, split, label"),
        ("path,split,label\na.png,train,good,x\n", "line 2: give one value for each"),
        ("path,split,label\na.png,learn,good\n", "line 2: split 'learn' is not known: give one of train, calibration"),
        ("path,split,label\na.png,train,fine\n", "line 2: label 'fine' is not known: give good or anomalous"),
        ("path,split,label\na.png,train,anomalous\n", "line 2: an anomalous picture is in train"),
        ("path,split,label\na.png,train,good\nz.png,train,good\n", "line 3: the picture 'z.png' does not exist"),
        (f"path,split,label\n{'z' * 5000},train,good\n", r"line 2: the picture 'z{200}\.\.\.' does not exist"),
        ("path,split,label\na.png,train,good\na.png,test,good\n", "line 3: a.png is already in line 2"),
        ("path,split,label\na.png,test,good\n", "no row whose split is train"),
        ("path,split,label,mask\na.png,train,good,\nb.png,test,1,m.png\n", "line 3: the mask 'm.png' does not exist"),
    ],
)
def test_broken_manifests_name_the_line(pictures: Path, text: str, sentence: str) -> None:
    table = pictures / "parts.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=sentence):
        load_dataset(str(table))


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="parts.csv cannot be read"):
        load_dataset(str(tmp_path / "parts.csv"))


def test_two_folders_of_held_out_pictures_are_refused(tmp_path: Path) -> None:
    for part in ("train", "calibration", "validation"):
        picture(tmp_path / f"{part}/good/000.png")
    with pytest.raises(DataError, match="which mean the same"):
        load_dataset(str(tmp_path))


def test_a_test_folder_without_masks_is_for_image_metrics(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/000.png")
    picture(tmp_path / "test/ok/000.png", 20)
    picture(tmp_path / "test/ko/001.png", 21)
    assert seen(load_dataset(str(tmp_path))) == [("001.png", 1, "ko", None), ("000.png", 0, "good", None)]


TABLE = "path,split,label,mask,kind\nline 1/ä.png,train,good,,\nline 1/b.png,test,anomalous,masks/b.png,scratch\n"


def table_pictures(root: Path) -> None:
    picture(root / "line 1/ä.png", 1)
    picture(root / "line 1/b.png", 2)
    mask(root / "masks/b.png", slice(0, 2))


@pytest.mark.parametrize(
    "data",
    [
        TABLE.replace(",", ";").encode("utf-8-sig"),  # Excel in half of Europe
        TABLE.replace(",", ";").replace("\n", "\r\n").encode(),
        ("sep=;\r\n" + TABLE.replace(",", ";").replace("\n", "\r\n")).encode("utf-8-sig"),
        TABLE.replace(",", "\t").encode("utf-16"),  # Excel's "Unicode text"
        b"\xfe\xff" + TABLE.encode("utf-16-be"),
        TABLE.replace("\n", "\r").encode(),
        TABLE.replace("path,split,label", "Path, Split ,LABEL").replace("train,good", "Train,Good").encode(),
        TABLE.replace("line 1/", "line 1\\").replace("masks/", "masks\\").encode(),
        '"path","split","label","mask","kind"\n"line 1/ä.png","train","good","",""\n'.encode()
        + b'"line 1/b.png","test","anomalous","masks/b.png","scratch"\n',
        (TABLE.replace(",", ";") + "\n\n").encode(),
    ],
    ids=["semicolons", "crlf", "sep", "utf-16-le", "utf-16-be", "cr", "case", "backslashes", "quoted", "blank-lines"],
)
def test_manifests_of_every_spreadsheet(tmp_path: Path, data: bytes) -> None:
    table_pictures(tmp_path)
    (tmp_path / "parts.csv").write_bytes(data)
    dataset = load_dataset(str(tmp_path / "parts.csv"))
    assert [sample.path for sample in dataset.train] == [tmp_path / "line 1/ä.png"]
    assert seen(dataset) == [("b.png", 1, "scratch", 20)]


def test_a_manifest_may_name_absolute_paths(tmp_path: Path) -> None:
    table_pictures(tmp_path / "pictures")
    (tmp_path / "parts.csv").write_text(f"path,split,label\n{tmp_path}/pictures/line 1/ä.png,train,good\n")
    assert len(load_dataset(str(tmp_path / "parts.csv")).train) == 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (TABLE.encode("latin-1"), "parts.csv cannot be read as a table .*: save it as CSV in UTF-8"),
        (TABLE.replace("ä", "a").encode("utf-16-le"), "parts.csv cannot be read as a table .*zero bytes"),
        (b"", "parts.csv has no column 'path'"),
        (b"sep=;\n", "parts.csv has no column 'path'"),
        (b"path;split\n", "parts.csv has no column"),
        (b"path,split,label\n" + b"x" * 200_000 + b",train,good\n", "parts.csv cannot be read as a table"),
        (b"PK\x03\x04" + bytes(range(256)), "parts.csv cannot be read as a table"),
        (
            b"path,split,label\nC:\\pictures\\a.png,train,good\n",
            r"line 2: the picture 'C:\\pictures\\a.png' does not",
        ),
    ],
    ids=["latin-1", "utf-16-no-bom", "empty", "sep-only", "too-few-columns", "long-cell", "xlsx", "windows-drive"],
)
def test_tables_that_are_none_are_refused_in_one_sentence(tmp_path: Path, data: bytes, sentence: str) -> None:
    (tmp_path / "parts.csv").write_bytes(data)
    with pytest.raises(DataError, match=sentence) as caught:
        load_dataset(str(tmp_path / "parts.csv"))
    assert "\n" not in str(caught.value)
