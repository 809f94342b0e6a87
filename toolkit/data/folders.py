"""Finding the pictures of a folder, with a record of everything that was left out and why.

Every command finds pictures with `find_pictures`, so that what one sees, all see.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from adedge.errors import DataError, reason

PICTURE_SUFFIXES: frozenset[str] = frozenset(
    {".bmp", ".j2k", ".jfif", ".jif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
    | {".tif", ".tiff", ".webp"}
)
VIDEO_SUFFIXES: frozenset[str] = frozenset(
    {".3gp", ".avi", ".flv", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
)
_OTHER_PICTURE_SUFFIXES = frozenset(
    {".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".jpf", ".jpx", ".jxl"}
    | {".jxr", ".nef", ".orf", ".pam", ".pcx", ".pef", ".pfm", ".psd", ".raf", ".raw", ".rw2", ".srw", ".tga"}
)
# First bytes of pictures and videos, for files of other suffixes or none.
_JPEG = b"\xff\xd8\xff"
_OTHER_CONTENTS = (b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL ", b"\x1aE\xdf\xa3")

# Made by NAS, archives and desktops: thumbnails, bins and copies of names.
_SYSTEM_NAMES = frozenset(
    {"@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "lost+found"}
    | {"system volume information", "thumbs.db", "ehthumbs.db"}
)
_NAMED = 3  # entries that a sentence names; it counts the rest


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What the listing of folders left out.

    ``unknown`` counts the pictures and videos of kinds that are not read by suffix ("" without one). ``unreadable``
    names folders, and links that lead nowhere, with the reason. ``hidden`` names hidden or system files and folders.
    """

    unknown: Mapping[str, int] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    @property
    def missed(self) -> int:
        """How many entries may hold pictures that should have been read."""
        return sum(self.unknown.values()) + len(self.unreadable)

    def __bool__(self) -> bool:
        return bool(self.missed or self.hidden)

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(
            unknown=Counter(self.unknown) + Counter(other.unknown),
            unreadable=self.unreadable + other.unreadable,
            hidden=self.hidden + other.hidden,
        )

    def __str__(self) -> str:
        """A clause for each reason, such as "2 hidden or system entries (@eaDir, ._a.png)"."""
        clauses = []
        if self.unreadable:
            clauses.append(
                f"{_counted(len(self.unreadable), 'folder')} that cannot be read, {first_few(self.unreadable)}"
            )
        if self.unknown:
            kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(self.unknown.items()))
            clauses.append(
                f"{_counted(sum(self.unknown.values()), 'file')} of kinds that are not read in folders ({kinds}): "
                "convert pictures to PNG or JPEG, and give videos one by one"
            )
        if self.hidden:
            clauses.append(f"{_counted(len(self.hidden), 'hidden or system entry')} ({first_few(self.hidden)})")
        return "; ".join(clauses)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The pictures of a folder, sorted, what was left out, and the number of files that are not hidden."""

    pictures: tuple[Path, ...]
    left_out: LeftOut
    files: int


def find_pictures(folder: Path) -> Listing:
    """As `list_folder`. Raises `DataError` if the folder is missing, not a folder, or holds no picture."""
    if not os.path.isdir(folder):  # noqa: PTH112 - unlike Path's, False for a name that is too long
        what = "is not a folder" if os.path.exists(folder) else "does not exist"  # noqa: PTH110
        raise DataError(f"{folder} {what}: give a folder of pictures")
    listing = list_folder(folder)
    if not listing.pictures:
        what = f"none of its {listing.files} file(s) is a picture" if listing.files else "it is empty"
        left_out = f"; left out: {listing.left_out}" if listing.left_out else ""
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        raise DataError(f"{folder} holds no pictures ({what}{left_out}): supported suffixes are {suffixes}")
    return listing


def list_folder(top: Path) -> Listing:
    """The pictures of a folder and its sub-folders, by suffix, or by content if they are JPEGs of another suffix.

    Links to folders are followed; a folder that is reached twice is read once.
    """
    found: dict[_Kind, list[Path]] = {kind: [] for kind in get_args(_Kind)}
    found["folder"].append(top)
    unreadable: list[str] = []
    seen: set[tuple[int, int | str]] = set()
    # Links wait until all real folders are read, so that a folder that is reached twice has its real name.
    while found["folder"] or found["link"]:
        folder = found["folder"].pop() if found["folder"] else found["link"].pop(0)
        try:
            status = folder.stat()
            # Some network file systems number nothing.
            identity = (status.st_dev, status.st_ino or str(folder.resolve()))
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    found[_kind(entry)].append(folder / entry.name)
        except OSError as error:
            unreadable.append(f"{folder} ({reason(error)})")
    unreadable += [f"{path} (the link leads nowhere, or where this user may not read)" for path in found["lost"]]
    left_out = LeftOut(
        unknown=Counter(path.suffix.lower() for path in found["unknown"]),
        unreadable=tuple(sorted(unreadable)),
        hidden=tuple(sorted(path.relative_to(top).as_posix() for path in found["hidden"])),
    )
    files = len(found["picture"]) + len(found["unknown"]) + len(found["other"])
    return Listing(pictures=tuple(sorted(found["picture"])), left_out=left_out, files=files)


def first_few(names: Sequence[str]) -> str:
    """The first names and the number of the others, for a sentence."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def is_picture(path: Path) -> bool:
    """Whether `find_pictures` takes a file for a picture."""
    suffix = path.suffix.lower()
    return suffix in PICTURE_SUFFIXES or (suffix not in VIDEO_SUFFIXES and _start_of(path).startswith(_JPEG))


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, as far as this user may see: unlike `Path.is_dir`, it raises nothing."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or made by a NAS, an archive or a desktop."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def folders_in(folder: Path) -> list[Path]:
    """The sub-folders that are not hidden, sorted. Raises `DataError` if the folder cannot be read."""
    return sorted(path for path in _entries(folder) if is_folder(path) and not is_hidden(path.name))


def loose_pictures(folder: Path) -> list[Path]:
    """The pictures, of any kind, that lie in a folder itself, sorted. Raises `DataError` if it cannot be read."""
    files = (path for path in _entries(folder) if not is_folder(path) and not is_hidden(path.name))
    return sorted(path for path in files if is_picture(path) or _is_unknown(path))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be read ({reason(error)}): change its permissions, or move it away"
        ) from error


_Kind = Literal["picture", "folder", "link", "hidden", "unknown", "lost", "other"]


def _kind(entry: os.DirEntry[str]) -> _Kind:
    path = Path(entry.path)
    suffix = path.suffix.lower()
    folder = is_folder(path)
    if is_hidden(entry.name):
        counts = folder or entry.name.lower() in _SYSTEM_NAMES or suffix in PICTURE_SUFFIXES
        return "hidden" if counts else "other"
    if folder:
        return "link" if entry.is_symlink() else "folder"
    if suffix in PICTURE_SUFFIXES:  # also a broken link or a pipe: reading it says what is wrong
        return "picture"
    if entry.is_symlink() and not os.access(path, os.F_OK):
        return "lost"
    if is_picture(path):
        return "picture"
    return "unknown" if _is_unknown(path) else "other"


def _is_unknown(path: Path) -> bool:
    """Whether a file is a picture or video of a kind that is not read, by its suffix or first bytes."""
    if path.suffix.lower() in VIDEO_SUFFIXES | _OTHER_PICTURE_SUFFIXES:
        return True
    start = _start_of(path)
    return start.startswith(_OTHER_CONTENTS) or start[4:8] == b"ftyp" or start[8:12] in (b"WEBP", b"AVI ")


def _start_of(path: Path) -> bytes:
    """The first bytes of a regular file; none if it is something else or cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            return stream.read(16)
    except OSError:
        return b""


def _counted(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun.removesuffix('y')}ies" if noun.endswith("y") else f"{count} {noun}s"
