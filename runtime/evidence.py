"""A folder of evidence, pictures of rejects or raw maps, which never fills the disk: the oldest goes first."""

from __future__ import annotations

import re
import shutil
import stat
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adedge.runtime.disk import DiskFull, create_whole, writing
from adedge.runtime.verdict import RUN_ID, Verdict

_STEM = re.compile(rf"{RUN_ID}_(camera\d+_)?\d{{6,}}_[\w.-]*")  # what `evidence_stem` makes, and nothing else
_NAME_BYTES = 120  # of a frame's name in a file's name; file systems allow 255 for all of it
_ABANDONED_S = 60.0  # a part file of this age belongs to no running process


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How much evidence a folder keeps.

    folder_bytes     largest total size of the folder's evidence; None: no limit
    keep_free_bytes  space to leave free on its disk; None: 1% of the disk, at most 500 MB
    """

    folder_bytes: int | None = None
    keep_free_bytes: int | None = None

    def missing_bytes(self, path: Path) -> int:
        """How much more space must be free on the disk that holds ``path``; negative if there is enough."""
        disk = shutil.disk_usage(path)
        keep = min(disk.total // 100, 500_000_000) if self.keep_free_bytes is None else self.keep_free_bytes
        return keep - disk.free


KEEP_ALL = Retention()


def evidence_stem(run_id: str, verdict: Verdict) -> str:
    """A file name without a suffix, which sorts by run, camera and frame, and contains the name of the frame."""
    encoding = sys.getfilesystemencoding()
    name = re.sub(r"\.\w+$", "", verdict.name).encode(encoding, "replace").decode(encoding)
    readable = re.sub(r"[^\w.-]+", "_", name).strip("._")[-60:]
    readable = readable.encode(encoding)[-_NAME_BYTES:].decode(encoding, "ignore")
    camera = "" if verdict.camera is None else f"camera{verdict.camera}_"
    return f"{run_id}_{camera}{verdict.frame_id:06d}_{readable}"


class EvidenceFolder:
    """Files that adedge names by run and frame, in a folder that may hold others, which are never touched.

    Evidence of earlier runs counts, and is deleted, like that of this one.
    """

    def __init__(self, path: Path, suffixes: Sequence[str], retention: Retention = KEEP_ALL) -> None:
        """``suffixes``: those of the files of one frame. Raises `OutputError` if the folder is not writable."""
        self.path = path
        self._suffixes = tuple(suffixes)
        self._retention = retention
        with suppress(DiskFull), writing(path):  # the disk may have room again when the first evidence comes
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".{time.time_ns()}.part"
            probe.touch(exist_ok=False)
            probe.unlink()
        with writing(path):
            self._kept = deque(self._existing() if path.is_dir() else ())
        self._kept_bytes = sum(size for _, size in self._kept)

    def write(self, stem: str, files: Mapping[str, bytes]) -> None:
        """Write the files of one frame, by suffix, all or none; delete older ones if they need the space.

        Raises `OutputError`, a `DiskFull` if deleting all older ones would not leave enough space free.
        """
        size = sum(map(len, files.values()))
        self._make_room(size)
        written: list[Path] = []
        try:
            for suffix, data in files.items():
                written.append(self.path / f"{stem}{suffix}")
                create_whole(written[-1], data)
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        self._kept.append((stem, size))
        self._kept_bytes += size

    def _make_room(self, size: int) -> None:
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            missing = self._retention.missing_bytes(self.path) + size
            limit = self._retention.folder_bytes
            if limit is not None:
                missing = max(missing, self._kept_bytes + size - limit)
            if missing > self._kept_bytes:
                raise DiskFull(
                    f"{self.path} has no room for {size} bytes more: free some space on its disk, or choose other "
                    "limits with --evidence-size and --keep-free"
                )
            while missing > 0:
                missing -= self._delete_oldest()

    def _delete_oldest(self) -> int:
        stem, size = self._kept.popleft()
        self._kept_bytes -= size
        for suffix in self._suffixes:
            (self.path / f"{stem}{suffix}").unlink(missing_ok=True)
        return size

    def _existing(self) -> Iterator[tuple[str, int]]:
        """Stem and size of the evidence in the folder, the oldest first; deletes parts that a power cut left."""
        ages: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for path in self.path.iterdir():
            part = path.name.startswith(".") and path.name.endswith(".part")
            name = path.name[1 : -len(".part")] if part else path.name
            suffix = next((suffix for suffix in self._suffixes if name.endswith(suffix)), None)
            if suffix is None or not _STEM.fullmatch(stem := name.removesuffix(suffix)):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:  # another process has deleted it
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            if not part:
                ages[stem] = min(ages.get(stem, status.st_mtime_ns), status.st_mtime_ns)
                sizes[stem] = sizes.get(stem, 0) + status.st_size
            elif time.time() - status.st_mtime > _ABANDONED_S:
                path.unlink()
        for stem in sorted(ages, key=lambda stem: (ages[stem], stem)):
            yield stem, sizes[stem]
