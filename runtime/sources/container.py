"""What the container of a video says about its completeness: OpenCV tells neither a cut-off nor a trimmed file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_ISO_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_INDEX_BYTES = 256 << 20
_MOST_BOXES = 100_000  # a file of empty boxes would take minutes
_TRIMMED_S = 0.01  # edits that are shorter than the track by more than this hide frames


@dataclass(frozen=True)
class Container:
    """``cut_off``: it promises more bytes than the file has.

    ``counted``: its index says how many frames it shows. ``estimated``: their number follows from its length alone.
    """

    cut_off: bool = False
    counted: bool = False
    estimated: bool = False


def read_container(path: Path) -> Container:
    """What an AVI, MP4, QuickTime or Matroska (WebM) file says; of any other kind, nothing is known."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            head = stream.read(12)
            if head[:4] == b"RIFF" and head[8:] == b"AVI ":
                return Container(cut_off=8 + int.from_bytes(head[4:8], "little") > size, counted=True)
            if head[:4] == _EBML:
                return Container(cut_off=_segment_end(stream) > size, estimated=True)
            if head[4:8] in _ISO_BOXES:
                return _iso_container(stream, size)
    except (struct.error, ValueError, LookupError, OverflowError):
        pass  # damaged beyond what this reads
    return Container()


def _iso_container(stream: BinaryIO, size: int) -> Container:
    offset, counted = 0, False
    for _ in range(_MOST_BOXES):
        if offset + 8 > size:
            break
        stream.seek(offset)
        length, kind = struct.unpack(">I4s", stream.read(8))
        header = 8
        if length == 1:
            length, header = *struct.unpack(">Q", stream.read(8)), 16
        elif length == 0:
            length = size - offset
        if length < header or offset + length > size:
            return Container(cut_off=length >= header, counted=counted)
        if kind == b"moov" and length <= _INDEX_BYTES:
            counted = _all_frames_shown(stream.read(length - header))
        offset += length
    return Container(counted=counted)


def _all_frames_shown(moov: bytes) -> bool:
    """Whether every frame that the index of an MP4 counts is shown: no fragments follow, and no edit list trims it."""
    boxes = list(_boxes(moov))
    if any(kind == b"mvex" for kind, _ in boxes):
        return False
    movie_scale, _ = _scale_and_duration(dict(boxes)[b"mvhd"])
    for kind, content in boxes:
        track = dict(_boxes(content)) if kind == b"trak" else {}
        media = dict(_boxes(track.get(b"mdia", b"")))
        if media.get(b"hdlr", b"")[8:12] != b"vide" or b"edts" not in track:
            continue
        scale, duration = _scale_and_duration(media[b"mdhd"])
        shown = sum(_edits(dict(_boxes(track[b"edts"]))[b"elst"])) / movie_scale
        if shown < duration / scale - _TRIMMED_S:
            return False
    return True


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of the boxes in a box."""
    offset = 0
    while offset + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, offset)
        if length < 8:
            return
        yield kind, content[offset + 8 : offset + length]
        offset += length


def _scale_and_duration(header: bytes) -> tuple[int, int]:
    """Units per second, and the duration in them, of an mvhd or mdhd box."""
    scale, duration = struct.unpack_from(">IQ" if header[0] else ">II", header, 20 if header[0] else 12)
    if scale == 0:
        raise ValueError("a time scale of 0")
    return scale, duration


def _edits(elst: bytes) -> Iterator[int]:
    """The durations of the edits that show frames, in units of the movie; -1 as the start shows none."""
    entry = struct.Struct(">QqI" if elst[0] else ">IiI")
    (count,) = struct.unpack_from(">I", elst, 4)
    for index in range(count):
        duration, start, _ = entry.unpack_from(elst, 8 + index * entry.size)
        if start >= 0:
            yield duration


def _segment_end(stream: BinaryIO) -> int:
    """Where the Matroska segment that follows the EBML header ends; 0 if it does not say."""
    stream.seek(4)
    stream.seek(_vint(stream) or 0, 1)
    if stream.read(4) != _SEGMENT:
        return 0
    length = _vint(stream)
    return 0 if length is None else stream.tell() + length


def _vint(stream: BinaryIO) -> int | None:
    """An EBML length: as many zero bits lead as bytes follow; all ones mean that it is unknown."""
    first = stream.read(1)[0]
    following = 8 - first.bit_length()
    bits = 7 * (following + 1)
    value = int.from_bytes(bytes([first]) + stream.read(following), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
