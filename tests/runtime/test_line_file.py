"""Lines outlive restarts, power cuts and full disks, and rotation loses none."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
from datetime import datetime, timedelta, timezone
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adedge.errors import OutputError
from adedge.runtime import line_file
from adedge.runtime.disk import DiskFull
from adedge.runtime.line_file import LineFile, Rotation
from adedge.runtime.verdict import RUN_ID

WHOLE = b'{"frame": 0}\n{"frame": 1}\n'


def append(path: Path, *lines: bytes, rotation: Rotation = line_file.NO_ROTATION) -> None:
    file = LineFile(path, rotation)
    for line in lines:
        file.append(line)
    file.close()
    file.close()


def test_a_restart_appends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "v.jsonl"
    append(path, b"{}\n")
    append(path, b"[]\n")
    assert path.read_bytes() == b"{}\n[]\n"


@pytest.mark.fault("a line of verdicts torn by a power cut")
@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (b'{"frame": 2, "na', b""),
        (b"{", b""),
        (b'{"frame": 2}', b'{"frame": 2}\n'),
        (b'{"frame": 2}\0\0\0', b'{"frame": 2}\n'),
        (b'{"frame"\0\0\0', b""),
        (bytes(4096), b""),  # blocks that the file system had promised, and not yet written
        (b"{" * 100_000, b""),
        (b"", b""),
        (b"no JSON", b"no JSON\n"),  # not ours
        (b"\x89PNG\0\0", b"\x89PNG\0\0\n"),
    ],
)
@pytest.mark.parametrize("before", [WHOLE, b""])
def test_a_partial_last_line_is_ended_or_cut_off(tmp_path: Path, before: bytes, tail: bytes, kept: bytes) -> None:
    path = tmp_path / "v.jsonl"
    path.write_bytes(before + tail)
    append(path, b'{"frame": 9}\n')
    assert path.read_bytes() == before + kept + b'{"frame": 9}\n'


@pytest.mark.fault("a line of verdicts torn by a power cut", tries=100)
@given(st.integers(0, 200))
def test_whole_lines_survive_a_cut_at_any_byte(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    lines = [json.dumps({"name": f"Größe {n}", "values": [n, {"a": "}\n{"}]}, ensure_ascii=False) for n in range(4)]
    data = "".join(f"{line}\n" for line in lines).encode()[:length]
    path = tmp_path_factory.mktemp("cut") / "v.jsonl"
    path.write_bytes(data)
    append(path, b'{"last": true}\n')
    read = [json.loads(line) for line in path.read_text().splitlines()]
    whole = [json.loads(line) for line in lines[: data.count(b"\n")]]
    assert read[: len(whole)] == whole
    assert read[-1] == {"last": True}


def test_a_cut_off_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "v.jsonl"
    path.write_bytes(b'{"frame')
    append(path)
    assert "partial line of 7 bytes" in caplog.text


@pytest.mark.fault("the disk is full while verdicts are written")
def test_a_full_disk_leaves_whole_lines_and_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    file = LineFile(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        file.append(b"a" * 79 + b"\n")
        with pytest.raises(OutputError):
            file.append(b"b" * 79 + b"\n")
        file.append(b"c" * 19 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.append(b"d\n")
    file.close()
    assert path.read_bytes() == b"a" * 79 + b"\n" + b"c" * 19 + b"\nd\n"


class TornFile(FileIO):
    """Writes three bytes, then lets another process write, then finds the disk full."""

    def __init__(self, path: Path, other: LineFile) -> None:
        super().__init__(path, "a+")
        self._other = other

    def write(self, data: Any) -> int:
        super().write(data[:3])
        self._other.append(b"other\n")
        raise OSError(28, os.strerror(28))


def test_a_line_of_another_process_is_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    file, other = LineFile(path), LineFile(path)
    file.close()
    file._file = TornFile(path, other)
    with pytest.raises(DiskFull):
        file.append(b"mine\n")
    file.close()
    other.close()
    assert b"other\n" in path.read_bytes()


@pytest.mark.fault("the disk is full while verdicts are written")
def test_a_disk_that_is_full_at_the_start_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "new" / "v.jsonl"

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "mkdir", full)
    file = LineFile(path)
    with pytest.raises(DiskFull):
        file.append(b"lost\n")
    monkeypatch.undo()
    file.append(b"kept\n")
    file.close()
    assert path.read_bytes() == b"kept\n"
    assert "is full" in caplog.text


@pytest.mark.fault("the file of verdicts is renamed or deleted during the run")
@pytest.mark.parametrize("how", ["renamed", "deleted", "replaced"])
def test_lines_go_to_the_file_of_that_name(tmp_path: Path, how: str) -> None:
    path = tmp_path / "v.jsonl"
    file = LineFile(path)
    file.append(b"before\n")
    if how == "deleted":
        path.unlink()
    else:
        path.rename(tmp_path / "v.jsonl.1")
    if how == "replaced":
        path.write_bytes(b"other\n")
    file.append(b"after\n")
    file.close()
    assert path.read_bytes() == (b"other\n" if how == "replaced" else b"") + b"after\n"
    if how != "deleted":
        assert (tmp_path / "v.jsonl.1").read_bytes() == b"before\n"


def test_a_folder_that_became_unreadable_stops_no_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.jsonl"
    file = LineFile(path)

    def refuse(self: Path) -> os.stat_result:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "stat", refuse)
    file.append(b"{}\n")
    monkeypatch.undo()
    file.close()
    assert path.read_bytes() == b"{}\n"


def aside(path: Path) -> list[Path]:
    return sorted(other for other in path.parent.iterdir() if other != path)


def test_rotation_by_size_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    lines = [f'{{"frame": {n}}}\n'.encode() for n in range(20)]  # 13 or 14 bytes
    append(path, *lines[:10], rotation=Rotation(size_bytes=40))
    append(path, *lines[10:], rotation=Rotation(size_bytes=40))
    files = [*aside(path), path]
    assert all(re.fullmatch(rf"v\.{RUN_ID}\.jsonl", file.name) for file in files[:-1])
    assert all(0 < file.stat().st_size <= 40 for file in files)
    assert sorted(b"".join(file.read_bytes() for file in files).splitlines(True)) == sorted(lines)
    assert path.read_bytes().endswith(lines[-1])


def test_rotation_by_several_processes_loses_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "v.jsonl"
    files = [LineFile(path, Rotation(size_bytes=40)) for _ in range(3)]
    lines = [f"{n:09d}\n".encode() for n in range(60)]  # four in a file
    for n, line in enumerate(lines):
        files[n % 3].append(line)
        assert path.read_bytes().endswith(line)
    for file in files:
        file.close()
    written = [file.read_bytes() for file in (*aside(path), path)]
    assert sorted(b"".join(written).splitlines(True)) == lines
    assert [len(content) for content in written] == [40] * 15
    assert not caplog.records


def test_a_line_longer_than_the_size_is_written(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    append(path, b"long\n", b"long\n", rotation=Rotation(size_bytes=1))
    assert [file.read_bytes() for file in (*aside(path), path)] == [b"long\n", b"long\n"]


def test_rotation_by_the_age_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    now = datetime.now(timezone.utc)
    for hours, rotated in ((23, 0), (25, 1)):
        first = json.dumps({"captured_at": (now - timedelta(hours=hours)).isoformat().replace("+00:00", "Z")})
        path.write_text(first + "\n")
        append(path, b"{}\n", rotation=Rotation(age_s=86_400))
        assert len(aside(path)) == rotated
        assert path.read_text() == ("{}\n" if rotated else f"{first}\n{{}}\n")


def test_only_files_set_aside_by_rotation_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    foreign = ["v.jsonl.1", "v.2026.jsonl", "w.20260131T081502Z-4f2a.jsonl", "v.20260131T081502Z-4f2a.jsonl.gz"]
    for name in foreign:
        (tmp_path / name).write_text("")
    oldest = tmp_path / "v.20250131T081502Z-4f2a.jsonl"
    oldest.write_text("oldest\n")
    os.utime(oldest, (0, 0))
    append(path, *[b"{}\n"] * 6, rotation=Rotation(size_bytes=3, keep_files=2))
    kept = {file.name for file in aside(path)} - set(foreign)
    assert {file.name for file in aside(path)} >= set(foreign)
    assert len(kept) == 2
    assert "v.20250131T081502Z-4f2a.jsonl" not in kept


def test_a_file_that_cannot_be_set_aside_grows_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "v.jsonl"

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "rename", refuse)
    append(path, *[b"{}\n"] * 5, rotation=Rotation(size_bytes=3))
    assert path.read_bytes() == b"{}\n" * 5
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_file_that_another_run_sets_aside_at_the_same_moment_is_rotated_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "v.jsonl"
    rename = Path.rename

    def rename_after_another(self: Path, target: Path) -> None:
        monkeypatch.undo()
        rename(self, tmp_path / "another")
        rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_after_another)
    append(path, b"0\n", b"1\n", b"2\n", rotation=Rotation(size_bytes=2))
    assert sorted(file.read_bytes() for file in (*aside(path), path)) == [b"0\n", b"1\n", b"2\n"]
    assert path.read_bytes() == b"2\n"
    assert not caplog.records


def test_a_device_is_not_rotated() -> None:
    append(Path("/dev/null"), b"{}\n", b"{}\n", rotation=Rotation(size_bytes=1, keep_files=0))
    assert Path("/dev/null").is_char_device()
