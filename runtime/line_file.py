"""A file of lines that is appended to, never ends in a partial line, and is rotated by size and age."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import time
from dataclasses import dataclass
from datetime import datetime
from io import FileIO
from pathlib import Path

from adedge.errors import reason
from adedge.runtime.disk import DiskFull, writing
from adedge.runtime.verdict import RUN_ID, new_run_id

log = logging.getLogger(__name__)

_LONGEST_LINE = 1 << 20  # bytes; a longer one without an end is no line of ours


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """When a file is set aside and a new one begun, and how many are kept; None: never, and all.

    ``verdicts.jsonl`` becomes ``verdicts.20260131T081502Z-4f2a.jsonl``. The file in use is not among ``keep_files``.
    """

    size_bytes: int | None = None
    age_s: float | None = None
    keep_files: int | None = None


NO_ROTATION = Rotation()


class LineFile:
    """Appends lines. Pipes and devices work too; they are neither repaired nor rotated."""

    def __init__(self, path: Path, rotation: Rotation = NO_ROTATION) -> None:
        """Ends or cuts off a partial last line. Raises `OutputError` if the file cannot be opened."""
        self._path = path
        self._rotation = rotation
        self._file: FileIO | None = None
        self._regular = False
        self._begun_at = 0.0
        try:
            self._open()
        except DiskFull as error:  # the disk may have room again when the first line comes
            log.warning("%s", error)

    def append(self, line: bytes) -> None:
        """Write one line, with its line feed, whole or not at all. Raises `OutputError`."""
        with writing(self._path):
            if self._was_moved():
                self.close()
            self._rotate(len(line))
            file = self._file or self._open()
            written = 0
            try:
                while written < len(line):
                    written += file.write(line[written:])
            except OSError:
                self._cut_off(line[:written])
                raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> FileIO:
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._regular = stat.S_ISREG(self._path.stat().st_mode)
            except FileNotFoundError:
                self._regular = True
            file = FileIO(self._path, "a+" if self._regular else "w")
            try:
                if self._regular:
                    _end_last_line(file, self._path)
                    self._begun_at = _begun_at(file)
            except BaseException:
                file.close()
                raise
        self._file = file
        return file

    def _was_moved(self) -> bool:
        """Whether the file no longer has its name: log rotation, another run or a person renamed or deleted it."""
        if self._file is None or not self._regular:
            return False
        try:
            return not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return True
        except OSError:  # of its folder, perhaps; the open file may still take lines
            return False

    def _cut_off(self, partial: bytes) -> None:
        """Remove what was written of a line, unless another process has appended to the file since."""
        if self._file is None or not self._regular or not partial:
            return
        size = os.fstat(self._file.fileno()).st_size
        if os.pread(self._file.fileno(), len(partial), size - len(partial)) == partial:
            self._file.truncate(size - len(partial))

    def _rotate(self, coming: int) -> None:
        """Set the file aside if the next line would make it too large, or if it is too old."""
        size_bytes, age_s = self._rotation.size_bytes, self._rotation.age_s
        if self._file is None or not self._regular or (size_bytes is None and age_s is None):
            return
        size = os.fstat(self._file.fileno()).st_size
        too_large = size_bytes is not None and size + coming > size_bytes
        too_old = age_s is not None and time.time() - self._begun_at >= age_s
        if size == 0 or not (too_large or too_old):
            return
        try:
            self._path.rename(self._path.with_suffix(f".{new_run_id()}{self._path.suffix}"))
            self.close()
            if self._rotation.keep_files is not None:
                _keep_newest(self._path, self._rotation.keep_files)
        except FileNotFoundError:  # another run was faster
            self.close()
        except OSError as error:
            self._rotation = NO_ROTATION
            log.warning("%s can no longer be rotated (%s): make its folder writable", self._path, reason(error))


def _keep_newest(path: Path, count: int) -> None:
    form = re.compile(rf"{re.escape(path.stem)}\.{RUN_ID}{re.escape(path.suffix)}")
    aside = [other for other in path.parent.iterdir() if form.fullmatch(other.name) and other.is_file()]
    aside.sort(key=lambda other: (other.stat().st_mtime_ns, other.name))
    for old in aside[: max(0, len(aside) - count)]:
        old.unlink(missing_ok=True)


def _end_last_line(file: FileIO, path: Path) -> None:
    """End the last line if it is whole JSON; cut it off if it is the start of a record, or the NULs of a power cut."""
    size = os.fstat(file.fileno()).st_size
    tail = os.pread(file.fileno(), min(size, _LONGEST_LINE), max(0, size - _LONGEST_LINE))
    partial = tail[tail.rfind(b"\n") + 1 :]
    if not partial:
        return
    text = partial.rstrip(b"\0")
    if text and (not text.startswith(b"{") or len(partial) == _LONGEST_LINE):
        file.write(b"\n")  # not ours: nothing of it is removed
    elif _is_json(text):
        file.truncate(size - len(partial) + len(text))
        file.write(b"\n")
    else:
        file.truncate(size - len(partial))
        log.warning("%s ended in a partial line of %d bytes, probably from a power cut: cut off", path, len(partial))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _begun_at(file: FileIO) -> float:
    """Unix time of a file's first line: its "captured_at", "at" if it is an event, or else now."""
    first = os.pread(file.fileno(), _LONGEST_LINE, 0).partition(b"\n")[0]
    try:
        record = json.loads(first)
        time_of_line = record.get("captured_at") or record["at"]
        return datetime.fromisoformat(time_of_line.replace("Z", "+00:00")).timestamp()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return time.time()
