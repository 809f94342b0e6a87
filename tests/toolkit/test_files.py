"""A file is replaced as a whole or not at all, whatever goes wrong, and nothing is left beside it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adedge.files import flush_directory, flush_file, flush_tree, make_directories, write_new, write_whole


def test_text_is_utf_8_and_bytes_are_as_given(tmp_path: Path) -> None:
    write_whole(tmp_path / "text", "Größe ≤ 5 µm\n")
    assert (tmp_path / "text").read_bytes() == b"Gr\xc3\xb6\xc3\x9fe \xe2\x89\xa4 5 \xc2\xb5m\n"
    write_whole(tmp_path / "bytes", b"\r\n\x00\xff")
    assert (tmp_path / "bytes").read_bytes() == b"\r\n\x00\xff"


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("a much longer text that was there before")
    with path.open() as reader:
        write_whole(path, "new")
        assert reader.read() == "a much longer text that was there before"  # who reads it already keeps the old file
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def refuse(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("old", ["old", None], ids=["replacing", "new"])
@pytest.mark.parametrize("fail", [refuse, interrupt], ids=["disk full", "ctrl-c"])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_what_fails_leaves_the_old_contents_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, fail: Callable[..., None], old: str | None
) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    before = {one.name: one.read_text() for one in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", fail) if where == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt if fail is interrupt else OSError):
        write_whole(path, "new")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == before


def test_the_data_is_on_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file, then the new name, then fsync of the folder that holds the name."""
    path, seen = tmp_path / "file", []
    fsync, kinds = os.fsync, {True: "folder", False: "file"}

    def note(descriptor: int) -> None:
        opened = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((kinds[opened.is_dir()], opened.read_bytes() if opened.is_file() else b"", path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_whole(path, b"data")
    assert seen == [("file", b"data", False), ("folder", b"", True)]


def test_a_killed_writer_leaves_the_old_contents(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "import os, signal, sys; from pathlib import Path; from adedge.files import write_whole\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(Path(sys.argv[1]), 'new')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "absent" / "file", "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "."])
def test_flushing_closes_what_it_opens(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a list of descriptors, not of files
    (flush_directory if name == "." else flush_file)(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_new_file_never_replaces_another(tmp_path: Path) -> None:
    write_new(tmp_path / "key", "secret", mode=0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError) as refused:
        write_new(tmp_path / "key", "other")
    assert refused.value.filename == str(tmp_path / "key")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"key": "secret"}


def test_a_new_file_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_link(*arguments: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse_link)
    write_new(tmp_path / "key", "secret")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "key", "other")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"key": "secret"}


def test_a_new_file_that_does_not_fit_on_the_disk_leaves_its_name_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            write_new(tmp_path / "key", "secret")
    assert list(tmp_path.iterdir()) == []
    write_new(tmp_path / "key", "secret")


@pytest.mark.fault("a file system that cannot flush directories")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_a_directory_flushes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync, synced = os.fsync, []

    def refuse_directories(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    monkeypatch.setattr(os, "sync", lambda: synced.append(True))
    write_whole(tmp_path / "file", "data")
    assert (tmp_path / "file").read_text() == "data"
    assert synced == [True]


def test_a_disk_error_while_a_directory_is_flushed_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        flush_directory(tmp_path)


def test_a_tree_is_flushed_from_the_inside_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    flush_tree(tmp_path)
    assert flushed == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]


def test_every_new_directory_has_its_name_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    make_directories(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert flushed == [tmp_path, tmp_path / "a"]


@pytest.mark.parametrize("write", [write_whole, write_new])
def test_errors_name_the_file_and_not_the_temporary_one(tmp_path: Path, write: Callable[..., None]) -> None:
    (tmp_path / "file").write_text("")
    for parent in ("absent", "file"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)) as error:
            write(tmp_path / parent / "key", "data")
        assert error.value.filename == str(tmp_path / parent / "key")


@pytest.mark.parametrize("name", ["x" * 255, "ß" * 127], ids=["ASCII", "two bytes a character"])
@pytest.mark.parametrize("write", [write_whole, write_new])
def test_a_name_of_the_largest_length_can_be_written(tmp_path: Path, write: Callable[..., None], name: str) -> None:
    write(tmp_path / name, "data")
    assert [one.name for one in tmp_path.iterdir()] == [name]
