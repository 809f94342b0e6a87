"""Durable file writes: whole or not at all, even after a power cut."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What file systems answer that cannot flush a directory: shared folders of virtual machines, older SMB, some FUSE.
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})


def write_whole(path: Path, data: bytes | str) -> None:
    """Write or replace a file atomically: a reader, even after a power cut, sees either the old or the new contents.

    The data is flushed to disk before the file gets its name. Raises `OSError` if the write fails; no temporary file
    is left behind.
    """
    with _part_of(path) as part:
        write_flushed(part, data)
        part.replace(path)
    flush_directory(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, created if need be, and wait for it first: one process after another runs the block."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes | str, *, mode: int = 0o666) -> None:
    """Like `write_whole`, but never replaces a file: raises `FileExistsError`. ``mode`` is subject to the umask."""
    with _part_of(path) as part:
        write_flushed(part, data, mode=mode)
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        try:
            os.link(part, path)  # unlike a rename, fails if the name is taken
        except FileExistsError:
            raise
        except OSError:  # no hard links, as on FAT
            part.replace(path)
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


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    """A name beside ``path`` for a temporary file, which is removed; errors of the block name ``path`` instead."""
    part = path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.part")  # 60 characters have at most 240 bytes
    try:
        yield part
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            part.unlink()
