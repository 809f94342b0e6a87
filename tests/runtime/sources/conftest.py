"""Videos made with OpenCV's writer, whole and trimmed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

CODECS = {".avi": "MJPG", ".mp4": "mp4v", ".webm": "VP80", ".mkv": "mp4v"}


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """Writes noise that moves by 3 pixels a frame, 30 frames at 25 per second: each frame needs data of its own."""

    def write(path: Path, frames: int = 30) -> Path:
        noise = np.random.default_rng(0).integers(0, 256, (112, 160, 3), np.uint8)
        codec = cv2.VideoWriter.fourcc(*CODECS[path.suffix])
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, 25.0, (160, 112))
        if not writer.isOpened():
            pytest.skip(f"this OpenCV cannot write {path.suffix}")
        for number in range(frames):
            writer.write(np.roll(noise, 3 * number, 1))
        writer.release()
        return path

    return write


@pytest.fixture(scope="session")
def trim() -> Callable[..., None]:
    """Makes the edit list of such an MP4 show only ``frames`` of its 30 frames, from ``first`` on."""

    def edit(path: Path, *, first: int, frames: int) -> None:
        data = bytearray(path.read_bytes())
        (scale,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
        elst = data.index(b"elst") + 4
        version, count, duration = struct.unpack_from(">III", data, elst)
        assert (version, count) == (0, 1)
        struct.pack_into(">II", data, elst + 8, duration * frames // 30, first * scale // 25)
        path.write_bytes(data)

    return edit
