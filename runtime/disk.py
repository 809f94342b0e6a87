"""Writing to a disk that may fill up: one kind of error, and files that are whole or missing."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adedge.errors import OutputError, reason


class DiskFull(OutputError):  # noqa: N818 - as in `MissingDependency`, clearer without the suffix
    """No space is left: the same call may succeed later."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Map errors of the operating system to `OutputError`, and those about space to `DiskFull`.

    `BrokenPipeError` is passed on: that the reader of a pipe has left is no fault of the output.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"the disk that holds {path} is full: free some space, or choose another path") from error
        raise OutputError(f"{path} cannot be written ({reason(error)}): choose another path") from error


def create_whole(path: Path, data: bytes) -> None:
    """Write a file under another name, ``.NAME.part``, then rename it. Raises `OutputError`, and leaves no part file.

    Does not wait for the disk, unlike `adedge.files.write_whole`: that takes longer than judging a frame.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            part.write_bytes(data)
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
