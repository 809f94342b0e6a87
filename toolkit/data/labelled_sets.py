"""The labelled picture sets of the papers, read from their published files: MNIST, Fashion-MNIST, CIFAR-10.

Formats: idx (http://yann.lecun.com/exdb/mnist/), plain or gzipped, and CIFAR-10's binary version
(https://www.cs.toronto.edu/~kriz/cifar.html). CIFAR-10's Python version is refused: it is a pickle, which can run code
when it is loaded.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import math
import os
import tarfile
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError
from adedge.limits import ARCHIVE_BYTES, SET_BYTES, Limit, check, read_file
from adedge.user_cache import user_cache

CLASSES = 10

# Folders below the root that may hold a set's files: our own first, then torchvision's, then the root itself.
_FOLDERS = {
    "mnist": ("mnist", "MNIST/raw", "."),
    "fashion-mnist": ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw", "."),
    "cifar10": ("cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "."),
}
SETS = tuple(_FOLDERS)

_IDX_IMAGES, _IDX_LABELS = 0x0803, 0x0801  # magic numbers: unsigned bytes in 3 dimensions and in 1

_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR_TRAIN = tuple(f"data_batch_{part}.bin" for part in range(1, 6))
_CIFAR_TEST = ("test_batch.bin",)
_CIFAR_RECORD_BYTES = 1 + 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a set is published: ``files`` below ``url``, with the published MD5 (hex) of each."""

    url: str
    files: Mapping[str, str]


SOURCES = {
    "mnist": Source(
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Source(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Source(
        url="https://www.cs.toronto.edu/~kriz/", files={_CIFAR_ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"}
    ),
}
_TIMEOUT_S = 60.0
_LARGEST_BYTES = 200_000_000  # limit of a download, larger than any published file
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Labelled:
    """Pictures and their classes: images uint8 (N, H, W, 1 | 3), colour in BGR order; labels uint8 (N,), 0 to 9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def default_root() -> Path:
    """The default folder of labelled sets: $ADEDGE_DATA, else ~/.cache/adedge.

    Raises `DataError` if the user has no home folder.
    """
    folder = os.environ.get("ADEDGE_DATA")
    if folder:
        return Path(folder)
    caches = user_cache()
    if caches is None:
        raise DataError("this user has no home folder to keep data sets in: give one with --root, or set ADEDGE_DATA")
    return caches / "adedge"


def read_set(name: str, root: Path, *, download: bool = False) -> tuple[Labelled, Labelled]:
    """The training and test parts of a set in `SETS`, in the published order.

    Raises `DataError` if files are truncated, in another format, or missing and cannot be downloaded or must not be.
    """
    read = _read_cifar10 if name == "cifar10" else _read_idx_set
    try:
        return read(name, root)
    except _FilesNotFoundError as missing:
        if not download:
            raise DataError(
                f"{missing}: put them there, point $ADEDGE_DATA or --root to them, or add --download"
            ) from None
    _download(name, root)
    try:
        return read(name, root)
    except _FilesNotFoundError as missing:
        raise DataError(f"{missing}, although the download ended without an error") from None


class _FilesNotFoundError(Exception):
    """No folder holds the files of a set; the message names the files and the folders."""


def _folder_with(name: str, root: Path, choices: Sequence[Sequence[str]]) -> tuple[Path, Sequence[str]]:
    """The first folder that holds all files of one of the ``choices``, and that choice."""
    folders = [root / folder for folder in _FOLDERS[name]]
    for folder in folders:
        for files in choices:
            if all((folder / file).is_file() for file in files):
                return folder, files
    names = " or ".join(", ".join(files) for files in choices)
    raise _FilesNotFoundError(
        f"the files of {name} ({names}) are not in {' or '.join(str(folder) for folder in folders)}"
    )


def _read_idx_set(name: str, root: Path) -> tuple[Labelled, Labelled]:
    stems = [f"{part}-{what}" for part in ("train", "t10k") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    folder, files = _folder_with(name, root, [[f"{stem}.gz" for stem in stems], stems])
    train_images, train_labels, test_images, test_labels = (folder / file for file in files)
    return _labelled_from_idx(train_images, train_labels), _labelled_from_idx(test_images, test_labels)


def _labelled_from_idx(images_path: Path, labels_path: Path) -> Labelled:
    images, labels = read_idx(images_path, _IDX_IMAGES), read_idx(labels_path, _IDX_LABELS)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} has {len(images)} pictures and {labels_path} {len(labels)} labels: copy both again"
        )
    return Labelled(images[..., None], _check_labels(labels, labels_path))


def read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, plain or gzipped.

    It holds big-endian ``magic``, whose last byte counts the dimensions, then the shape, then the values.
    Raises `DataError` if the file is damaged, truncated, longer than its header says, too large, or has another magic
    number.
    """
    dimensions = magic & 0xFF
    start = 4 * (1 + dimensions)
    data = _contents(path)
    if len(data) < start or int.from_bytes(data[:4], "big") != magic:
        raise DataError(f"{path} is no idx file of {dimensions} dimension(s): copy or download it again")
    shape = tuple(np.frombuffer(data[:start], ">u4")[1:].tolist())
    size = math.prod(shape)
    values = memoryview(data)[start:]
    if len(values) != size:
        actual = "more" if len(values) > size else f"{len(values)}"
        raise DataError(
            f"{path} should hold {size} bytes after its header and holds {actual}: copy or download it again"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_cifar10(name: str, root: Path) -> tuple[Labelled, Labelled]:
    batches = (*_CIFAR_TRAIN, *_CIFAR_TEST)
    try:
        folder, files = _folder_with(name, root, [batches, [_CIFAR_ARCHIVE]])
    except _FilesNotFoundError as missing:
        for python_version in ("cifar-10-batches-py", "cifar-10-python.tar.gz"):
            for folder in (root, root / "cifar10"):
                if (folder / python_version).exists():
                    raise DataError(
                        f"{folder / python_version} is CIFAR-10's Python version, a pickle, which could run code when "
                        "it is loaded: get the binary version, "
                        f"{SOURCES[name].url}{_CIFAR_ARCHIVE}, or add --download"
                    ) from None
        raise missing
    if len(files) > 1:
        contents = {file: _contents(folder / file) for file in batches}
    else:
        contents = _archive_members(folder / _CIFAR_ARCHIVE, batches)
    return (
        _labelled_from_cifar([(file, contents[file]) for file in _CIFAR_TRAIN], folder),
        _labelled_from_cifar([(file, contents[file]) for file in _CIFAR_TEST], folder),
    )


def _contents(path: Path) -> bytes:
    """The bytes of a file, decompressed if its name ends in .gz. Raises `DataError` if it is damaged or too large."""
    try:
        data = read_file(path, SET_BYTES, DataError)
        if path.suffix != ".gz":
            return data
        with _Bounded(path, data, SET_BYTES) as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): copy or download it again") from error


class _Bounded(gzip.GzipFile):
    """Decompresses ``data``, the bytes of the file ``path``; raises `DataError` if they become more than ``limit``."""

    def __init__(self, path: Path, data: bytes, limit: Limit) -> None:
        super().__init__(fileobj=io.BytesIO(data))
        self._path = path
        self._limit = limit
        self._count = 0

    def read(self, size: int | None = -1) -> bytes:
        """At most ``size`` bytes; all that remain by default."""
        parts = []
        remaining = math.inf if size is None or size < 0 else size
        while remaining > 0 and (part := super().read(int(min(remaining, _CHUNK_BYTES)))):
            parts.append(part)
            remaining -= len(part)
            self._count += len(part)
            check(self._limit, self._count, f"{self._path}, decompressed,", DataError)
        return b"".join(parts)


def _archive_members(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Contents of the named files of a gzipped tar archive, in any of its folders; nothing is unpacked to disk."""
    contents = {}
    try:
        data = read_file(archive, ARCHIVE_BYTES, DataError)
        # As a stream, the archive is decompressed once, and what is skipped counts.
        with _Bounded(archive, data, ARCHIVE_BYTES) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                if name not in names or not member.isreg() or member.sparse is not None:
                    continue
                check(SET_BYTES, member.size, f"{name} of {archive}", DataError)
                if name in contents:
                    raise DataError(f"{archive} has two files {name}: copy or download it again")
                stream = tar.extractfile(member)
                contents[name] = b"" if stream is None else stream.read()
            unpacked.read()  # to the checksum at the end
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{archive} cannot be read ({error}): copy or download it again") from error
    if missing := [name for name in names if name not in contents]:
        raise DataError(f"{archive} has no {', '.join(missing)}: copy or download it again")
    return contents


def _labelled_from_cifar(batches: Sequence[tuple[str, bytes]], folder: Path) -> Labelled:
    """CIFAR-10 batches -> BGR pictures. A record is a label and 32 x 32 pixels, channel by channel in RGB order."""
    for name, data in batches:
        if not data or len(data) % _CIFAR_RECORD_BYTES:
            raise DataError(
                f"{name} of {folder} has {len(data)} bytes, no multiple of {_CIFAR_RECORD_BYTES}: "
                "copy or download it again"
            )
    records = np.frombuffer(b"".join(data for _, data in batches), np.uint8).reshape(-1, _CIFAR_RECORD_BYTES)
    rgb = records[:, 1:].reshape(-1, 3, 32, 32)
    return Labelled(np.ascontiguousarray(rgb[:, ::-1].transpose(0, 2, 3, 1)), _check_labels(records[:, 0], folder))


def _check_labels(labels: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Return the labels, or raise `DataError` if one is not a class."""
    if labels.size and labels.max() >= CLASSES:
        raise DataError(f"{path} has the label {labels.max()}, above {CLASSES - 1}: copy or download it again")
    return labels


def _download(name: str, root: Path) -> None:
    """Download the files of a set into the folder of its name; a file with another MD5 is not stored."""
    source, folder = SOURCES[name], root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, md5 in source.files.items():
            with urllib.request.urlopen(source.url + file, timeout=_TIMEOUT_S) as response:
                data = response.read(_LARGEST_BYTES)
            if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
                raise DataError(f"{source.url}{file} is not the file that was published: put it there by hand")
            partial = folder / f"{file}.partial"
            partial.write_bytes(data)
            partial.replace(folder / file)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{name} cannot be downloaded to {folder} ({error}): put its files there by hand") from error
