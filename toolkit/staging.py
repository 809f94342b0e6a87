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
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adedge.errors import BundleError
from adedge.escaping import command_line
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
        """Flush ``new`` to disk and let it take the place of the directory, which may not exist yet.

        Raises `OSError` if the directory is unchanged, `BundleError` if it was replaced but perhaps not yet on disk.
        """
        flush_tree(self.new)
        flush_directory(self._home)
        if self._path.exists():
            if not exchange(self.new, self._path):
                self._path.rename(self._old)
                self.new.rename(self._path)
        else:
            self.new.rename(self._path)
        try:
            flush_directory(self._home)
            flush_directory(self._path.parent)
        except OSError as error:
            raise BundleError(
                f"{self._path} was written, but the disk does not confirm it ({error.strerror}): check the disk, then "
                f"run '{command_line('inspect', self._path)}'"
            ) from error


@contextmanager
def stage(path: Path) -> Iterator[Staging]:
    """Lock ``path`` (absolute, without links) for writing and yield its staging folder, removed when the block ends.

    Raises `BundleError` at once if another writer holds the lock or something is in the way, `OSError` if the folder
    cannot be made or ``path`` cannot be replaced.
    """
    home = staging_folder(path)
    if path.exists():
        # Now, not after hours of work.
        if os.path.ismount(path):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    with _locked(home, path):
        for name in (NEW, OLD):
            if os.path.lexists(home / name):
                raise BundleError(f"{home / name} is left from an earlier command and in the way: remove it")
        staging = Staging(path, home)
        staging.new.mkdir()
        yield staging


def recover(path: Path) -> None:
    """Put ``path`` (absolute) back in place if a writer was killed just between moving it away and replacing it.

    Raises `BundleError` if that is impossible, `OSError` if ``path`` cannot be looked at.
    """
    home = staging_folder(path)
    deadline = time.monotonic() + WAIT_S
    while not path.exists() and (home / OLD).is_dir():
        try:
            with _locked(home, path):
                pass
        except BundleError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        except OSError as error:
            raise BundleError(
                f"{path} was moved to {home / OLD} by a command that was killed, and cannot be moved back "
                f"({error.strerror}): move it back as a user who may write there"
            ) from error


def staging_folder(path: Path) -> Path:
    """The folder in which a writer of ``path`` works."""
    return path.parent / f".{path.name}.staging"


def exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; False if this system or file system cannot (Linux's RENAME_EXCHANGE)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_cwd, rename_exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) == 0)


@contextmanager
def _locked(home: Path, path: Path) -> Iterator[None]:
    """Hold the lock in ``home``, which is created if need be and tidied before and after the block."""
    descriptor = _lock(home, path)
    try:
        _tidy(home, path)
        yield
    finally:
        try:
            # Whatever cannot be done now is left to the next writer, which knows the folder by its marker.
            with suppress(OSError):
                _tidy(home, path)
                if [entry.name for entry in home.iterdir()] == [LOCK]:
                    (home / LOCK).unlink()
                    home.rmdir()  # fails if another writer takes over the empty folder at this moment
        finally:
            os.close(descriptor)


def _tidy(home: Path, path: Path) -> None:
    """Put the old directory back if nothing has taken its place, and remove what is not needed."""
    if not path.exists() and (home / OLD).is_dir():
        (home / OLD).rename(path)
        flush_directory(path.parent)
    for name in (NEW, OLD):
        _remove(home / name)


def _remove(path: Path) -> None:
    """Remove a file or a directory, also if it contains folders without write permission; leave what cannot be."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
        return
    for folder, _, _ in os.walk(path):
        with suppress(OSError):
            Path(folder).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _lock(home: Path, path: Path) -> int:
    """Lock the marker in ``home``, created if need be; returns its descriptor, which holds the lock until closed."""
    while True:
        try:
            home.mkdir(mode=0o700)
        except FileExistsError:
            _check_origin(home, path)
        try:
            descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # the previous writer has just removed the folder
        except OSError:
            with suppress(OSError):
                home.rmdir()  # a full disk has room for the folder, perhaps, but not for the marker
            raise
        try:
            _take(descriptor, path)
            # The previous writer may have removed the marker after it was opened here: then this lock locks nothing.
            if os.fstat(descriptor).st_nlink > 0:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BundleError(f"another adedge command is writing {path}: wait until it has finished") from None
    except OSError as error:
        raise BundleError(
            f"{path} cannot be locked ({error.strerror}): keep a bundle that is to be changed on a file system with "
            "file locks, such as a local disk"
        ) from error


def _check_origin(home: Path, path: Path) -> None:
    """Raise `BundleError` unless ``home`` was made by a writer: it holds the marker, or nothing yet."""
    try:
        names = [entry.name for entry in home.iterdir()]
    except FileNotFoundError:
        names = []  # just removed, or a link to nowhere
    except NotADirectoryError:
        names = [home.name]
    except PermissionError:
        raise BundleError(
            f"{home} belongs to another user, whose command is writing {path} or was killed: wait until it has "
            "finished, or remove the folder as that user"
        ) from None
    if home.is_symlink() or (names and LOCK not in names):
        raise BundleError(f"{home} is in the way and was not made by adedge: rename or remove it")
