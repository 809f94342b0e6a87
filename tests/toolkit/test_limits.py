"""Files above a limit are refused before they are read."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from adedge.errors import DataError, UsageError
from adedge.limits import PICTURE_BYTES, VARIABLE, Limit, check, factor, read_file

SMALL = Limit(1000, "bytes")


def test_a_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(250)) * 4)
    assert read_file(path, SMALL, DataError) == bytes(range(250)) * 4


def test_a_larger_file_is_refused_with_the_factor_that_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(2500))
    with pytest.raises(DataError, match=r"a has 2500 bytes, and at most 1000 .*--limits 3 .*ADEDGE_LIMITS=3"):
        read_file(path, SMALL, DataError)
    monkeypatch.setenv(VARIABLE, "3")
    assert len(read_file(path, SMALL, DataError)) == 2500


def test_the_message_counts_in_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2")
    with pytest.raises(DataError, match=re.escape("x.png has 2048 MB, and at most 1024 are accepted")):
        check(PICTURE_BYTES, 2 << 30, "x.png", DataError)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(DataError, match="pipe is not a regular file"):
        read_file(path, SMALL, DataError)


def test_devices_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/dev/zero is not a regular file"):
        read_file(Path("/dev/zero"), SMALL, DataError)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, SMALL, DataError)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing", SMALL, DataError)


@pytest.mark.parametrize("text", ["many", "0.5", "nan", "inf", "-1", ""])
def test_a_factor_that_is_no_number_of_at_least_one(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match="ADEDGE_LIMITS"):
        factor()
