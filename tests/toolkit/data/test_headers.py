"""Sizes and limits before decoding, and files whose bytes are wrong: one sentence, no hang, no gigabytes."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from adedge.data.headers import read_header
from adedge.data.pictures import decode_picture, read_mask, read_picture
from adedge.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8)


def encoded(kind: str, pixels: NDArray[np.generic] = PIXELS, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def by_opencv(suffix: str, pixels: NDArray[np.generic] = PIXELS, *options: int) -> bytes:
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


FILES = {
    "png": encoded("PNG"),
    "png-palette": encoded("PNG", np.asarray(Image.fromarray(PIXELS).quantize(16))),
    "png-16": by_opencv(".png", PIXELS.astype(np.uint16) * 257),
    "jpeg": encoded("JPEG"),
    "jpeg-progressive": encoded("JPEG", progressive=True),
    "jpeg-exif": encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "bmp": encoded("BMP"),
    "bmp-grey": encoded("BMP", PIXELS[:, :, 0]),
    "tiff": encoded("TIFF"),
    "tiff-lzw": encoded("TIFF", compression="tiff_lzw"),
    "tiff-big": encoded("TIFF", big_tiff=True),
    "tiff-float": encoded("TIFF", PIXELS[:, :, 0].astype(np.float32)),
    "webp": encoded("WEBP"),
    "webp-lossless": encoded("WEBP", lossless=True),
    "webp-extended": encoded("WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "webp-alpha": encoded("WEBP", np.dstack([PIXELS, PIXELS[:, :, 0]])),
    "ppm": encoded("PPM"),
    "pgm-text": b"P2 # a comment\n# another\n37 23\n255\n" + b" ".join(b"%d" % v for v in PIXELS[:, :, 0].flat) + b"\n",
    "pbm": encoded("PPM", PIXELS[:, :, 0] > 127),
    "jp2": encoded("JPEG2000"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_header_has_the_size(name: str) -> None:
    header = read_header(FILES[name])
    assert header is not None
    assert (header.height, header.width, header.orientation, header.complete) == (23, 37, 1, True)
    assert header.lossy == name.startswith(("jpeg", "jp2")) or name in ("webp", "webp-extended", "webp-alpha")


def png_bomb(side: int) -> bytes:
    """A PNG of ``side`` × ``side`` black pixels in colour, some thousandth of their size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    compressor = zlib.compressobj(1)
    row = bytes(1 + 3 * side)
    data = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.fault("small picture files that decode to gigabytes", tries=2)
def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """Decoded, these pixels are 768 MB."""
    (tmp_path / "bomb.png").write_bytes(png_bomb(16_000))
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from adedge.data.pictures import read_mask, read_picture\n"
        "from adedge.errors import DataError\n"
        "for read in (read_picture, read_mask):\n"
        "    try: read(Path(sys.argv[1]))\n"
        "    except DataError as error: print(error)\n"
        "print(re.search('VmHWM: *([0-9]+)', Path('/proc/self/status').read_text().replace('\\t', ' '))[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bomb.png")], capture_output=True, text=True, check=True
    )
    *sentences, peak_kib = done.stdout.splitlines()
    assert len(sentences) == 2
    for sentence in sentences:
        assert "bomb.png (16000 × 16000) has 256 megapixels, and at most 200 are accepted" in sentence
        assert "--limits 2" in sentence
    assert int(peak_kib) < 400_000


@pytest.mark.fault("small picture files that decode to gigabytes")
@pytest.mark.parametrize("name", ["png", "jpeg", "bmp", "tiff", "tiff-big", "webp-lossless", "ppm", "jp2"])
def test_every_format_claiming_many_pixels_is_refused(name: str) -> None:
    data = FILES[name]
    many = {
        "png": (struct.pack(">II", 37, 23), struct.pack(">II", 60_000, 60_000)),
        "jpeg": (struct.pack(">HH", 23, 37), struct.pack(">HH", 60_000, 60_000)),
        "bmp": (struct.pack("<ii", 37, 23), struct.pack("<ii", 60_000, -60_000)),
        "tiff": (struct.pack("<HHIIHHII", 256, 4, 1, 37, 257, 4, 1, 23),
                 struct.pack("<HHIIHHII", 256, 4, 1, 60_000, 257, 4, 1, 60_000)),
        "tiff-big": (struct.pack("<HHQQHHQQ", 256, 4, 1, 37, 257, 4, 1, 23),
                     struct.pack("<HHQQHHQQ", 256, 4, 1, 60_000, 257, 4, 1, 60_000)),
        "webp-lossless": (struct.pack("<I", 36 | 22 << 14), struct.pack("<I", 16383 | 16383 << 14)),
        "ppm": (b"37 23", b"60000 60000"),
        "jp2": (struct.pack(">II", 37, 23), struct.pack(">II", 60_000, 60_000)),
    }  # fmt: skip
    few, claimed = many[name]
    if name == "webp-lossless":
        position = data.index(b"VP8L") + 9
        data = data[:position] + bytes([claimed[0], claimed[1], claimed[2], claimed[3] & 0x0F]) + data[position + 4 :]
    else:
        assert few in data
        data = data.replace(few, claimed)
    with pytest.raises(DataError, match=r"x \(\d+ × \d+\) has [\d.]+ megapixels, and at most 200"):
        decode_picture(data, "x")


def test_a_tile_larger_than_its_picture_counts() -> None:
    tags = [(256, 3, 4), (257, 3, 4), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1),
            (322, 4, 32768), (323, 4, 32768), (324, 4, 8), (325, 4, 16)]  # fmt: skip
    data = b"II*\0" + struct.pack("<I", 24) + bytes(16) + struct.pack("<H", len(tags))
    data += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags) + bytes(4)
    with pytest.raises(DataError, match="1074 megapixels"):
        decode_picture(data, "x")


def test_the_limit_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("PNG", np.zeros((15_000, 14_000), bool))
    with pytest.raises(DataError, match=r"14000 × 15000.* 210 megapixels"):
        decode_picture(data, "x")
    monkeypatch.setenv("ADEDGE_LIMITS", "2")
    assert decode_picture(data, "x").shape == (15_000, 14_000, 1)


@pytest.mark.fault("a pipe or a device in place of a file", tries=4)
def test_a_pipe_a_device_and_a_huge_file_are_no_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "huge.png").open("wb") as stream:
        stream.truncate(600 << 20)  # sparse
    started = time.monotonic()
    for path, reason in (
        (tmp_path / "pipe.png", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "huge.png", "has 600 MB, and at most 512"),
        (tmp_path / "nul\0.png", "cannot be read"),
        (tmp_path / ("n" * 300 + ".png"), "cannot be read: File name too long"),
    ):
        for read in (read_picture, read_mask):
            with pytest.raises(DataError, match=reason):
                read(path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_whatever_their_suffix(tmp_path: Path, name: str) -> None:
    for suffix in (".png", ".jpg", ".txt"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(FILES[name])
        if name == "tiff-float":
            with pytest.raises(DataError, match="holds float32 values"):
                read_picture(path)
        else:
            assert read_picture(path).shape[:2] == (23, 37)


@pytest.mark.fault("pictures cut off at any length")
@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused_wherever_it_is_cut(name: str) -> None:
    data = FILES[name]
    for length in {*range(1, len(data), 41), len(data) - 1}:
        with pytest.raises(DataError, match="^x "):
            decode_picture(data[:length], "x")


def test_a_jpeg_of_more_scans_than_anybody_writes_is_refused() -> None:
    """Each scan costs as much time as a picture, and a few bytes."""
    data = FILES["jpeg-progressive"]
    start = data.rindex(b"\xff\xda")
    many = data[:start] + 200 * data[start:-2] + data[-2:]
    with pytest.raises(DataError, match="^x cannot be decoded"):
        decode_picture(many, "x")


@pytest.mark.parametrize(
    "data",
    [
        b"II+\0\x08\0\0\0" + b"\xff" * 32,
        b"MM\0*" + b"\xff" * 4,
        b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x01free" + b"\xff" * 8,
        b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\0free" + b"\xff" * 8,
        b"RIFF\xff\xff\xff\xffWEBPVP8X",
        b"\xff\xd8\xff",
        b"\xff\xd8" + b"\xff" * 1000,
        b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",
        b"BM",
        b"P5 999999999999 1 255\n",
    ],
)
def test_a_header_that_points_anywhere_is_an_error(data: bytes) -> None:
    with pytest.raises(DataError, match="^x "):
        decode_picture(data, "x")


MUTABLE = [*FILES.values()]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A file with some bytes replaced, most of them near its beginning, and perhaps cut off or repeated."""
    data = bytearray(draw(st.sampled_from(MUTABLE)))
    for _ in range(draw(st.integers(1, 8))):
        end = draw(st.sampled_from([32, 128, len(data)]))
        data[draw(st.integers(0, min(end, len(data)) - 1))] = draw(
            st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
        )
    change = draw(st.sampled_from(["none", "cut", "tail", "insert"]))
    if change == "cut":
        del data[draw(st.integers(0, len(data))) :]
    elif change == "tail":
        data += draw(st.binary(max_size=64))
    elif change == "insert":
        at = draw(st.integers(0, len(data)))
        data[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


@pytest.mark.fault("pictures with changed bytes", tries=500)
@settings(max_examples=500, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_a_damaged_file_is_a_picture_of_its_headers_size_or_an_error(data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frame, sentence = None, ""
    try:
        frame = decode_picture(data, "x")
    except DataError as error:
        sentence = str(error)
    if frame is None:
        assert sentence.startswith("x")
        assert "\n" not in sentence
    else:
        header = read_header(data)
        assert header is not None
        size = (header.height, header.width) if header.orientation <= 4 else (header.width, header.height)
        assert frame.shape[:2] == size
        assert frame.dtype == np.uint8
        assert frame.shape[2] in (1, 3)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 2_500_000, "200 megapixels of 3 × 8 bits, and what their decoder needs besides"
