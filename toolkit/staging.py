"""Replaces a directory atomically: one writer at a time, and after a kill or a power cut the old state or the new one.

A writer of DIRECTORY works in a folder next to it:

    .DIRECTORY.staging/
      lock     the marker; whoever holds its lock (flock) is the writer, and the lock ends with the process
      new/     the next state
      old/     the previous state, for a moment, where the file system cannot exchange two directories

When ``new`` is complete and on disk, it is exchanged with DIRECTORY, and the folder is removed. A folder left behind by
a killed writer has no lock; the next writer finds it and removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adedge.errors import BundleError
from adedge.files import flush_directory, flush_tree

LOCK, NEW, OLD = "lock", "new", "old"
WAIT_S = 2.0  # for the moment in which another writer has moved the old directory away and not yet the new one in place


class Staging:
    """The locked folder of a writer; ``new`` is the directory to fill."""

    def __init__(self, path: Path, home: Path) -> None:
        self.new = home / NEW
        self._old = home / OLD
        self._home = home
        self._path = path

    def publish(self) -> None:
        """Flush ``new`` to disk and let it take the place of the directory, which may not exist yet."""
        flush_tree(self.new)
        flush_directory(self._home)
        if self._path.exists():
            if not exchange(self.new, self._path):
                self._path.rename(self._old)
                self.new.rename(self._path)
        else:
            self.new.rename(self._path)
        flush_directory(self._home)
        flush_directory(self._path.parent)


@contextmanager
def stage(path: Path) -> Iterator[Staging]:
    """Lock ``path`` (absolute, without links) for writing and yield its staging folder, removed when the block ends.

    Raises `BundleError` at once if another writer holds the lock, `OSError` if the folder cannot be made.
    """
    home = staging_folder(path)
    descriptor = _lock(home, path)
    try:
        _recover(home, path)
        _clear(home)
        staging = Staging(path, home)
        staging.new.mkdir()
        yield staging
    finally:
        _recover(home, path)
        _clear(home)
        with suppress(OSError):
            # Whatever could not be removed is known as a writer's by the marker.
            if [entry.name for entry in home.iterdir()] == [LOCK]:
                (home / LOCK).unlink()
                home.rmdir()  # fails if another writer takes over the empty folder at this moment
        os.close(descriptor)


def recover(path: Path) -> None:
    """Put ``path`` (absolute) back in place if a writer was killed just between moving it away and replacing it."""
    home = staging_folder(path)
    deadline = time.monotonic() + WAIT_S
    while not path.exists() and (home / OLD).is_dir():
        try:
            descriptor = _lock(home, path)
        except BundleError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        except OSError as error:
            raise BundleError(
                f"{path} was moved to {home / OLD} by a command that was killed, and cannot be moved back "
                f"({error.strerror}): move it back as a user who may write there"
            ) from error
        try:
            _recover(home, path)
        finally:
            os.close(descriptor)


def staging_folder(path: Path) -> Path:
    """The folder in which a writer of ``path`` works."""
    return path.with_name(f".{path.name}.staging")


def exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; False if this system or file system cannot (Linux's RENAME_EXCHANGE)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_cwd, rename_exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) == 0)


def _recover(home: Path, path: Path) -> None:
    if not path.exists() and (home / OLD).is_dir():
        (home / OLD).rename(path)
        flush_directory(path.parent)


def _clear(home: Path) -> None:
    for name in (NEW, OLD):
        shutil.rmtree(home / name, ignore_errors=True)


def _is_foreign(home: Path) -> bool:
    """Whether something else has the name of a staging folder; a writer's own holds the marker, or nothing yet."""
    try:
        names = [entry.name for entry in home.iterdir()]
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True
    return home.is_symlink() or (names != [] and LOCK not in names)


def _lock(home: Path, path: Path) -> int:
    """Lock the marker in ``home``, created if need be; returns its descriptor, which holds the lock until closed."""
    while True:
        try:
            home.mkdir(mode=0o700)
        except FileExistsError:
            if _is_foreign(home):
                raise BundleError(f"{home} is in the way and was not made by adedge: rename or remove it") from None
        try:
            descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # the previous writer has just removed the folder
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous writer may have removed the marker after it was opened here: then this lock locks nothing.
            if os.fstat(descriptor).st_nlink > 0:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise BundleError(f"another adedge command is writing {path}: wait until it has finished") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
