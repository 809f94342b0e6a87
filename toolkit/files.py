"""Durable file writes: whole or not at all, even after a power cut."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

# What file systems answer that cannot flush a directory: shared folders of virtual machines, older SMB, some FUSE.
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})


def write_whole(path: Path, data: bytes | str) -> None:
    """Write or replace a file atomically: a reader, even after a power cut, sees either the old or the new contents.

    The data is flushed to disk before the file gets its name. Raises `OSError` if the write fails; no temporary file
    is left behind.
    """
    part = _part_of(path)
    try:
        write_flushed(part, data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush_directory(path.parent)


def write_new(path: Path, data: bytes | str, *, mode: int = 0o666) -> None:
    """Like `write_whole`, but never replaces a file: raises `FileExistsError`. ``mode`` is subject to the umask."""
    part = _part_of(path)
    try:
        write_flushed(part, data, mode=mode)
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        try:
            os.link(part, path)  # unlike a rename, fails if the name is taken
        except FileExistsError:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        except OSError:  # no hard links, as on FAT
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    flush_directory(path.parent)


def write_flushed(path: Path, data: bytes | str, *, mode: int = 0o666) -> None:
    """Create a file and flush its contents to disk; its name is on disk once `flush_directory` was called.

    Raises `FileExistsError` if there is one.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data.encode() if isinstance(data, str) else data)
        stream.flush()
        os.fsync(descriptor)


def make_directories(path: Path) -> None:
    """Create a directory and its missing parents, each with its name on disk."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in reversed(missing):
        flush_directory(one.parent)


def flush_file(path: Path) -> None:
    """Flush the contents of a file to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(path: Path) -> None:
    """Flush the names in a directory to disk; where the file system cannot flush one directory, flush everything."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        os.sync()
    finally:
        os.close(descriptor)


def flush_tree(path: Path) -> None:
    """Flush the names in a directory and in everything below it to disk, innermost first."""
    for folder, _, _ in os.walk(path, topdown=False):
        flush_directory(Path(folder))


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
