"""Finding pictures: nothing is left out in silence, whatever a NAS, a phone or a desktop puts into a folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adedge.data.datasets import load_dataset
from adedge.data.folders import PICTURE_SUFFIXES, find_pictures, is_picture
from adedge.errors import DataError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0"


def picture(path: Path, value: int = 7, kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 10), value, np.uint8)).save(path, kind)


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_pictures(folder).pictures]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Act as a user who is not root, for whom permissions count."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A temporary folder that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path
        for inside, folders, _ in os.walk(path):
            for name in folders:
                (Path(inside) / name).chmod(0o755)


def test_listing_is_sorted_recursive_and_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    for name in ["b.PNG", "a/z.png", "a/a.jpg", "._b.PNG", ".cache/c.png", "notes.txt", "folder.png/in.bmp"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a/a.jpg", "a/z.png", "b.PNG", "folder.png/in.bmp"]
    assert ".gif" not in PICTURE_SUFFIXES


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent does not exist"):
        find_pictures(tmp_path / "absent")
    with pytest.raises(DataError, match="it is empty"):
        find_pictures(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"none of its 1 file\(s\) is a picture"):
        find_pictures(tmp_path)
    with pytest.raises(DataError, match="notes.txt is not a folder"):
        find_pictures(tmp_path / "notes.txt")


def test_a_folder_of_other_kinds_alone_says_which(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC)
    with pytest.raises(DataError, match=r"none of its 1 file\(s\) is a picture; left out: 1 file .*\(1 \.heic\)"):
        find_pictures(tmp_path)


@pytest.mark.fault("pictures of other kinds, thumbnails and broken links in a folder")
def test_links_to_folders_are_followed_and_cycles_end(tmp_path: Path) -> None:
    picture(tmp_path / "nas/b.png")
    picture(tmp_path / "parts/a.png")
    picture(tmp_path / "parts/deep/c.png")
    (tmp_path / "parts/line1").symlink_to(tmp_path / "nas")
    (tmp_path / "parts/deep/up").symlink_to(tmp_path / "parts")
    (tmp_path / "parts/again").symlink_to(tmp_path / "parts/deep")  # sorts before the real folder
    (tmp_path / "nas/self").symlink_to("self")
    found = find_pictures(tmp_path / "parts")
    assert [path.relative_to(tmp_path / "parts").as_posix() for path in found.pictures] == [
        "a.png",
        "deep/c.png",
        "line1/b.png",
    ]
    assert [text.split(" (")[0] for text in found.left_out.unreadable] == [str(tmp_path / "parts/line1/self")]


@pytest.mark.fault("pictures of other kinds, thumbnails and broken links in a folder")
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    """An unmounted NAS: without its pictures, a detector would be trained on half of the data."""
    picture(tmp_path / "a.png")
    (tmp_path / "line1").symlink_to("/mnt/is-not-mounted")
    with pytest.raises(DataError, match="line1.* leads nowhere"):
        load_dataset(str(tmp_path))


@pytest.mark.fault("folders that may not be read")
def test_a_folder_that_may_not_be_read_is_named_and_an_error_in_training(open_path: Path) -> None:
    picture(open_path / "a.png")
    picture(open_path / "secret/b.png")
    (open_path / "secret").chmod(0)
    with as_nobody():
        found = find_pictures(open_path)
        assert found.pictures == (open_path / "a.png",)
        assert found.left_out.unreadable == (f"{open_path / 'secret'} (Permission denied)",)
        with pytest.raises(DataError, match="secret .Permission denied.: mount the folder, change its permissions"):
            load_dataset(str(open_path))


@pytest.mark.fault("folders that may not be read")
def test_a_kind_of_a_layout_that_may_not_be_read_is_an_error(open_path: Path) -> None:
    picture(open_path / "train/good/a.png")
    picture(open_path / "test/crack/b.png", 9)
    (open_path / "test").chmod(0o311)  # to be entered, not listed
    with as_nobody(), pytest.raises(DataError, match="test cannot be read .Permission denied"):
        load_dataset(str(open_path))


@pytest.mark.fault("pictures of other kinds, thumbnails and broken links in a folder")
def test_kinds_that_are_not_read_are_counted_by_suffix(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in ("IMG_1.HEIC", "IMG_2.heic", "x.avif", "y.gif", "z.cr2", "clip.mp4", "motion.mjpg"):
        (tmp_path / name).write_bytes(HEIC)
    picture(tmp_path / "nosuffix", kind="PNG")
    picture(tmp_path / "export.dat", kind="TIFF")
    (tmp_path / "notes.txt").write_text("BM is how a BMP begins, and this text is none")
    (tmp_path / "labels.json").write_text("{}")
    found = find_pictures(tmp_path)
    assert found.pictures == (tmp_path / "a.png",)
    assert found.left_out.unknown == {
        ".heic": 2, ".avif": 1, ".gif": 1, ".cr2": 1, ".mp4": 1, ".mjpg": 1, "": 1, ".dat": 1,
    }  # fmt: skip
    assert (found.left_out.missed, found.left_out.hidden) == (9, ())
    assert load_dataset(str(tmp_path)).skipped == (f"{tmp_path}: left out {found.left_out}",)
    assert "2 .heic" in str(found.left_out)
    with pytest.raises(DataError, match="left out 9 files"):
        load_dataset(str(tmp_path), strict=True)


@pytest.mark.parametrize("name", ["web.jfif", "scan.jpe", "IMG_1.HEIC", "upload", "photo.jpg_"])
def test_jpegs_are_read_whatever_their_suffix(tmp_path: Path, name: str) -> None:
    picture(tmp_path / name, kind="JPEG")
    assert names(tmp_path) == [name]
    assert is_picture(tmp_path / name)
    assert load_dataset(str(tmp_path)).skipped == ()


def test_jpeg_2000_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "scan.jp2")
    (sample,) = load_dataset(str(tmp_path)).train
    np.testing.assert_array_equal(sample.read(), np.full((12, 10, 1), 7, np.uint8))


@pytest.mark.fault("pictures of other kinds, thumbnails and broken links in a folder")
def test_thumbnails_and_system_files_are_left_out_and_counted(tmp_path: Path) -> None:
    picture(tmp_path / "train/good/a.png")
    picture(tmp_path / "test/good/b.png", 8)
    for name in ("@eaDir/a.png/SYNOPHOTO.jpg", "__MACOSX/._a.png", ".thumbnails/a.png", ".AppleDouble/a.png"):
        picture(tmp_path / "train/good" / name, kind="PNG")
        picture(tmp_path / "test/good" / name, kind="PNG")
        picture(tmp_path / "test" / name, kind="PNG")
        picture(tmp_path / "train" / name, kind="PNG")
    for name in ("Thumbs.db", "._a.png", ".DS_Store"):
        (tmp_path / "train/good" / name).write_bytes(b"\0\5\x16\7")
    dataset = load_dataset(str(tmp_path), strict=True)
    assert [sample.path for sample in (*dataset.train, *dataset.test)] == [
        tmp_path / "train/good/a.png",
        tmp_path / "test/good/b.png",
    ]
    # Four folders in each of the two that were listed, Thumbs.db and ._a.png; .DS_Store is no picture.
    assert "10 hidden or system entries" in dataset.skipped[0]


def test_pipes_and_broken_links_among_pictures_are_skipped_by_name(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "other")
    dataset = load_dataset(str(tmp_path))
    assert len(dataset.train) == 1
    assert [
        "gone.png cannot be read: No such file" in dataset.skipped[0],
        "pipe.png is not a regular" in dataset.skipped[1],
    ]
    assert len(dataset.skipped) == 2
