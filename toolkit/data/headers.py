"""What a picture file says about itself before it is decoded: its format, size, orientation and end.

Decoders allocate whatever a header asks for, ignore EXIF orientation (or apply it to some formats only), and fill the
missing part of a truncated file with grey. So these few fields are read here, from PNG, JPEG, BMP, TIFF, WebP, PNM and
JPEG 2000.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Format = Literal["PNG", "JPEG", "BMP", "TIFF", "WebP", "PNM", "JPEG 2000"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000: start, then the segment with the size
_MOST_SCANS = 100  # of a progressive JPEG, which has about ten: each takes as long as a picture
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # a marker other than a restart
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_NO_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # JPEG markers without a segment, and stuffed zeros
_PNM = re.compile(rb"P[1-6]" + 2 * rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,9})" + rb"\s")
_WIDTH, _HEIGHT, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 274, 322, 323
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


@dataclass(frozen=True, kw_only=True)
class Header:
    """The fields of a picture file, as stored: before ``orientation`` is applied.

    ``orientation`` is EXIF's, 1 to 8. ``pixels`` is what the decoder allocates: a tile may be larger than the picture.
    ``lossy`` files change pixels when they are written. ``complete`` is False if the end of the file is missing, which
    is known of JPEG and PNG only. ``orientation_at`` is the place of a TIFF's tag: (offset, struct format).
    """

    format: Format
    height: int
    width: int
    orientation: int = 1
    lossy: bool = False
    complete: bool = True
    tile_pixels: int = 0
    orientation_at: tuple[int, str] | None = None

    @property
    def pixels(self) -> int:
        """The number of pixels that decoding takes memory for."""
        return max(self.height * self.width, self.tile_pixels)


def read_header(data: bytes) -> Header | None:
    """The header of a picture file; None if it has another format or its header is damaged."""
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"BM"):
            return _bmp(data)
        if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return _tiff(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
        if data.startswith((_JP2, _CODESTREAM)):
            return _jpeg_2000(data)
        if match := _PNM.match(data):
            return Header(format="PNM", height=int(match[2]), width=int(match[1]))
    except (struct.error, OverflowError):  # an offset beyond the end, or beyond any
        pass
    return None


def without_orientation(data: bytes, header: Header) -> bytes:
    """The file with the orientation in its TIFF tag, which some decoders apply, set to 1; other formats as they are."""
    if header.orientation == 1 or header.orientation_at is None:
        return data
    neutral = bytearray(data)
    offset, integer = header.orientation_at
    struct.pack_into(integer, neutral, offset, 1)
    return bytes(neutral)


def _png(data: bytes) -> Header | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    orientation, complete, position = 1, False, len(_PNG)
    while position + 8 <= len(data) and not complete:
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : position + 8 + length])
        complete = name == b"IEND"
        position += 12 + length
    return Header(format="PNG", height=height, width=width, orientation=orientation, complete=complete)


def _jpeg(data: bytes) -> Header | None:
    """Walk the segments up to the end marker of the first picture: a phone may append a video, a second picture."""
    height = width = 0
    orientation, complete, position, scans = None, False, 2, 0
    while (position := data.find(b"\xff", position)) >= 0:
        while data[position : position + 1] == b"\xff":
            position += 1
        marker = data[position] if position < len(data) else 0
        position += 1
        if marker in _NO_LENGTH:
            continue
        if marker == 0xD9:
            complete = True
            break
        if position + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _START_OF_FRAME and not height and position + 7 <= len(data):
            height, width = struct.unpack_from(">HH", data, position + 3)
        elif marker == 0xE1 and data[position + 2 : position + 8] == b"Exif\0\0" and orientation is None:
            orientation = _exif_orientation(data[position + 8 : position + length])
        position += length
        if marker == 0xDA:
            scans += 1
            if scans > _MOST_SCANS:
                return None
            end = _END_OF_SCAN.search(data, position)
            if end is None:
                break
            position = end.start()
    return Header(
        format="JPEG", height=height, width=width, orientation=orientation or 1, lossy=True, complete=complete
    )


def _bmp(data: bytes) -> Header:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return Header(format="BMP", height=abs(height), width=abs(width))  # a negative height: rows from the top


def _tiff(data: bytes) -> Header | None:
    tags = _tiff_tags(data)
    if _WIDTH not in tags or _HEIGHT not in tags:
        return None
    width, height = tags[_WIDTH][0], tags[_HEIGHT][0]
    orientation, offset, integer = tags.get(_ORIENTATION, (1, 0, ""))
    return Header(
        format="TIFF",
        height=height,
        width=width,
        orientation=_valid_orientation(orientation),
        tile_pixels=tags.get(_TILE_WIDTH, (0,))[0] * tags.get(_TILE_HEIGHT, (0,))[0],
        orientation_at=(offset, integer) if integer else None,
    )


def _tiff_tags(data: bytes) -> Mapping[int, tuple[int, int, str]]:
    """The single integers of a TIFF's first directory by tag: (value, offset, struct format)."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (directory,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, directory)
    first, size, value_at = (directory + 8, 20, 12) if big else (directory + 2, 12, 8)
    tags: dict[int, tuple[int, int, str]] = {}
    for number in range(count):
        entry = first + size * number
        if entry + size > len(data):
            break
        tag, kind, values = struct.unpack_from(f"{order}HH{'Q' if big else 'I'}", data, entry)
        if kind in _TIFF_INTEGERS and values == 1 and (big or kind != 16):
            integer = order + _TIFF_INTEGERS[kind]
            (value,) = struct.unpack_from(integer, data, entry + value_at)
            tags.setdefault(tag, (value, entry + value_at, integer))
    return tags


def _webp(data: bytes) -> Header | None:
    size: tuple[int, int] | None = None
    orientation, lossy, position = 1, False, 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if name == b"VP8X":
            low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, body + 4)
            size = size or (low_w + (high_w << 16) + 1, low_h + (high_h << 16) + 1)
        elif name == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, body + 1)
            size = size or ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif name == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, body + 6)
            size, lossy = size or (width & 0x3FFF, height & 0x3FFF), True
        elif name == b"ANMF":
            lossy = True  # or not: the frames inside may be either
        elif name == b"EXIF":
            orientation = _exif_orientation(data[body : body + length].removeprefix(b"Exif\0\0"))
        position = body + length + length % 2
    if size is None:
        return None
    return Header(format="WebP", height=size[1], width=size[0], orientation=orientation, lossy=lossy)


def _jpeg_2000(data: bytes) -> Header | None:
    position = 0
    while not data.startswith(_CODESTREAM, position):  # in the box "jp2c"
        length, name = struct.unpack_from(">I4s", data, position)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
            head = 16
        if name == b"jp2c":
            position += head
            if not data.startswith(_CODESTREAM, position):
                return None
        elif length < head:
            return None
        else:
            position += length
    right, bottom, left, top = struct.unpack_from(">4I", data, position + 8)
    (channels,) = struct.unpack_from(">H", data, position + 40)
    if channels > 4:  # the decoder would allocate all of them before it refuses the file
        return None
    return Header(format="JPEG 2000", height=bottom - top, width=right - left, lossy=True)


def _exif_orientation(exif: bytes) -> int:
    if not exif.startswith((b"II*\0", b"MM\0*")):
        return 1
    try:
        return _valid_orientation(_tiff_tags(exif).get(_ORIENTATION, (1, 0, ""))[0])
    except (struct.error, OverflowError):
        return 1


def _valid_orientation(value: int) -> int:
    return value if 1 <= value <= 8 else 1
