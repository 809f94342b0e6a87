"""Containers that are whole, cut off or trimmed, made with OpenCV's writer and then edited as bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adedge.runtime.sources.container import Container, read_container

WriteVideo = Callable[..., Path]
Trim = Callable[..., None]

WHOLE = {
    "a.avi": Container(counted=True),
    "b.mp4": Container(counted=True),
    "c.webm": Container(estimated=True),
    "d.mkv": Container(estimated=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_and_cut_off(tmp_path: Path, write_video: WriteVideo, name: str) -> None:
    path = write_video(tmp_path / name)
    assert read_container(path) == WHOLE[name]
    path.write_bytes(path.read_bytes()[:-200])
    assert read_container(path).cut_off


def test_trimmed_mp4_shows_fewer_frames_than_it_counts(tmp_path: Path, write_video: WriteVideo, trim: Trim) -> None:
    path = write_video(tmp_path / "a.mp4")
    trim(path, first=0, frames=30)
    assert read_container(path) == Container(counted=True)
    trim(path, first=5, frames=20)
    assert read_container(path) == Container()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF",
        b"\x1a\x45\xdf\xa3",
        b"\x1a\x45\xdf\xa3\x00\x00",
        b"\x00\x00\x00\x08moov",
        b"\x00\x00\x00\x01mdat" + b"\xff" * 8,
        b"\x00\x00\x00\x00ftyp" + b"x" * 30,
        b"text that is no video" * 9,
    ],
)
def test_any_bytes_are_read_without_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    assert not read_container(path).counted


@pytest.mark.fault("one byte changed in the index of a video", tries=300)
def test_damage_anywhere_in_the_index_is_no_error(tmp_path: Path, write_video: WriteVideo) -> None:
    path = write_video(tmp_path / "a.mp4", frames=3)
    whole = path.read_bytes()
    start = whole.index(b"moov")
    rng = np.random.default_rng(1)
    for position in rng.integers(start, len(whole), 300):
        data = bytearray(whole)
        data[position] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        read_container(path)
