"""Sizes above which an input is refused before it is decoded, so that a small file cannot take all of the memory.

The defaults leave room for anything that a line needs. ADEDGE_LIMITS=FACTOR in the environment, or
`adedge --limits FACTOR COMMAND`, multiplies all of them.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from pathlib import Path
from typing import NamedTuple

from adedge.errors import AdedgeError, UsageError

VARIABLE = "ADEDGE_LIMITS"


class Limit(NamedTuple):
    """The largest accepted ``value`` of a quantity, in ``unit``s of ``scale``."""

    value: int
    unit: str
    scale: int = 1


PICTURE_BYTES = Limit(512 << 20, "MB", 1 << 20)  # of the file, as compressed
PICTURE_PIXELS = Limit(200_000_000, "megapixels", 1_000_000)
ADDRESS_BYTES = Limit(64 << 10, "KB", 1 << 10)  # of a file that holds the address of a source
JSON_BYTES = Limit(64 << 20, "MB", 1 << 20)
JSON_DEPTH = Limit(100, "levels")
ARCHIVE_BYTES = Limit(8 << 30, "GB", 1 << 30)  # of all its files together, decompressed
SET_BYTES = Limit(1 << 30, "GB", 1 << 30)  # of one file of a labelled set, decompressed
TABLE_BYTES = Limit(64 << 20, "MB", 1 << 20)
SIGNATURE_BYTES = Limit(1 << 20, "MB", 1 << 20)  # each of many valid signatures would be checked
MEMBER_BYTES = Limit(16 << 30, "GB", 1 << 30)  # of one file in a bundle
GRAPH_BYTES = Limit(2 << 30, "GB", 1 << 30)  # ONNX's own limit without external data


def factor() -> float:
    """The number that every limit is multiplied by. Raises `UsageError` if ADEDGE_LIMITS is no number of at least 1."""
    text = os.environ.get(VARIABLE, "1")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (1 <= value < math.inf):
        raise UsageError(f"{VARIABLE} is '{text}': give a number of at least 1, such as 4")
    return value


def check(limit: Limit, value: int, what: str, error: type[AdedgeError]) -> None:
    """Raise ``error`` if ``value`` exceeds ``limit``; ``what`` begins the message, such as "part.png"."""
    if value > limit.value * factor():
        size, largest = value / limit.scale, limit.value * factor() / limit.scale
        needed = math.ceil(value / limit.value)
        raise error(
            f"{what} has {size:.4g} {limit.unit}, and at most {largest:g} are accepted: if that is right, raise all "
            f"limits with 'adedge --limits {needed} ...' or {VARIABLE}={needed}"
        )


def read_file(path: Path, limit: Limit, error: type[AdedgeError]) -> bytes:
    """The contents of a regular file of at most ``limit`` bytes, opened once.

    Raises ``error`` if it is larger or no regular file (a FIFO would block, a device would never end), and `OSError` if
    it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is not a regular file: give a file on disk")
        check(limit, status.st_size, str(path), error)
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(status.st_size + 1)
    finally:
        os.close(descriptor)
    if len(data) > status.st_size:
        raise error(f"{path} grew while it was read: wait until it is written, then try again")
    return data
