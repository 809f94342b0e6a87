"""Whether a result can be stored, found out without writing anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adedge.bundle import Bundle
from adedge.cli.storage import check_folder, is_writable
from adedge.errors import OutputError


def test_a_bundle_is_writable_if_it_and_the_folder_around_it_are(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(bundle)
    assert is_writable(opened)
    for refused in (bundle, tmp_path):
        monkeypatch.setattr(os, "access", lambda path, mode, refused=refused: Path(path) != refused)
        assert not is_writable(opened)


def test_a_bundle_reached_by_a_link_is_judged_where_it_is(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.adedge").symlink_to(bundle)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "links")
    assert is_writable(Bundle.open(tmp_path / "links" / "b.adedge"))


def test_a_folder_is_checked_where_its_path_begins_to_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file")
    check_folder(tmp_path, "the proof", OutputError)
    check_folder(tmp_path / "new" / "deep", "the proof", OutputError)
    assert not (tmp_path / "new").exists()
    with pytest.raises(OutputError, match=r"the proof cannot be written to .*/file/deep \(.*/file is a file\): choose"):
        check_folder(tmp_path / "file" / "deep", "the proof", OutputError)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match=r"is not writable\): choose another place with -o"):
        check_folder(tmp_path / "new" / "deep", "the proof", OutputError)
