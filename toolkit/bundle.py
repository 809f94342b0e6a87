"""The bundle: one directory that holds a detector, its engines, its thresholds and their provenance.

    bottle.adedge/
      bundle.json            the `Manifest`: schema version, specs, thresholds, provenance, sha256 of every file
      bundle.sig             optional Ed25519 signature of bundle.json (see `adedge.signing`)
      weights.safetensors    the trained networks (imported.onnx for a detector imported as a graph)
      training.json          digests of the training pictures, loss history
      golden.npz             frames with PyTorch's maps and scores (ONNX Runtime's for an imported graph)
      model.<precision>.onnx, scored.<precision>.onnx
      ranges.json            INT8 ranges and the digest of the pictures they come from
      reference-scores.json  the model's scores of the pictures that engines are compared on
      engines/<target>-<precision>/  the plan and engine.json
      reports/

bundle.json and bundle.sig are read once, when the bundle is opened; any other file is read once, when it is used, and
the bytes that were checked are the bytes that are used. Writes are atomic: `edit` works on a hard-linked copy next to
the bundle and exchanges the two directories once everything is on disk (see `adedge.staging`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from adedge.errors import BundleError, UsageError, reason
from adedge.files import flush_file, make_directories, write_flushed
from adedge.json_files import parse_json
from adedge.limits import JSON_BYTES, MEMBER_BYTES, SIGNATURE_BYTES, Limit, check, read_file
from adedge.manifest import MANIFEST, RESERVED, SIGNATURE, FileRecord, Manifest, check_name
from adedge.staging import Staging, recover, stage


@dataclass(frozen=True)
class Bundle:
    """A bundle opened for reading: its path, its validated manifest, and the bytes that this was read from.

    ``manifest_bytes`` are those of bundle.json, ``signature`` those of bundle.sig, None if it is not signed. Immutable:
    `edit` replaces the directory as a whole, and gives the new bundle.
    """

    path: Path
    manifest: Manifest
    manifest_bytes: bytes
    signature: bytes | None = None

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """Read and validate bundle.json; the digests of files are checked by `read` and `verify`.

        Raises `BundleError` if there is no bundle, or if bundle.json is damaged or has another schema version.
        """
        path = Path(path)
        try:
            recover(_real(path))
            if not path.is_dir():
                what = "is a file" if path.exists() else "does not exist"
                raise BundleError(f"{path} {what}: give the directory that 'adedge train' wrote")
            data, signature = _read_pair(path)
        except OSError as error:
            raise BundleError(f"{path} cannot be opened ({_reason(path, error)})") from error
        if data is None:
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}")
        return Bundle(path, Manifest.parse(data, str(path / MANIFEST)), data, signature)

    def has(self, name: str) -> bool:
        """Whether the manifest lists this file."""
        return name in self.manifest.files

    def read(self, name: str) -> bytes:
        """The contents of a file, read once and checked against the manifest's size and sha256.

        Raises `BundleError` if the file is not listed, is missing, or was changed.
        """
        record = self._record(name)
        with self._open(name) as stream:
            data = stream.read(record.bytes)
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise self._changed(name)
        return data

    def check(self, name: str) -> None:
        """Check a file's size and sha256 without keeping its contents. Raises `BundleError` like `read`."""
        with self._open(name) as stream:
            digest = _sha256(stream)
        if digest != self._record(name).sha256:
            raise self._changed(name)

    def verify(self) -> list[str]:
        """Check every digest and look for anything that the manifest does not list; one message per problem."""
        problems = []
        for name in self.manifest.files:
            try:
                self.check(name)
            except BundleError as error:
                problems.append(str(error))
        listed = {*self.manifest.files, *RESERVED}
        for name in _files_below(self.path):
            if name not in listed and not _is_litter(name):
                problems.append(f"{self.path / name} does not belong to the bundle: remove it")
        return problems

    def json(self, name: str) -> dict[str, Any]:
        """Parse a JSON file of the bundle. Raises `BundleError` like `read`, and if it is too large or not JSON."""
        check(JSON_BYTES, self._record(name).bytes, str(self.path / name), BundleError)
        return parse_json(self.read(name), str(self.path / name), BundleError, "restore the bundle from a copy")

    @contextmanager
    def edit(self, *, sign: Callable[[bytes], bytes] | None = None) -> Iterator[Draft]:
        """Change the bundle atomically: every change when the block ends, none if it raises.

            with bundle.edit() as draft:
                draft.write("golden.npz", data)
                draft.manifest = draft.manifest.replace(normalisation=normalisation)
            bundle = draft.bundle

        Drops the signature, which no longer holds; ``sign`` makes a new bundle.sig from the new bytes of bundle.json.
        Raises `BundleError` if another process is writing the bundle, if it changed since it was opened, if `verify`
        finds a problem (an edit must not take over a file that adedge did not write), or if the disk is full.
        """
        # Resolved, so that a symbolic link to the bundle survives the exchange, and "." gets a real name.
        real = _real(self.path)
        with _staged(real) as staging:
            if _read_if_present(real / MANIFEST) != self.manifest_bytes:
                raise BundleError(f"{self.path} changed while this command was running: run it again")
            if problems := self.verify():
                more = f" (and {len(problems) - 1} more problems: see 'adedge inspect')" if len(problems) > 1 else ""
                raise BundleError(f"{problems[0]}{more}")
            draft = Draft(self.path, staging.new, self.manifest)
            with _disk_errors(self.path):
                for name in self.manifest.files:
                    _link(real / name, staging.new / name)
            yield draft
            with _disk_errors(self.path):
                draft._finish(sign)
                _keep_owner(real, staging.new)
                staging.publish()

    def _record(self, name: str) -> FileRecord:
        record = self.manifest.files.get(name)
        if record is None:
            remedy = _REMEDY.get(name.split(".")[0], "run the command that writes it first")
            raise BundleError(f"{self.path} has no {name}: {remedy}")
        return record

    @contextmanager
    def _open(self, name: str) -> Iterator[BinaryIO]:
        """A listed file, once its kind and its size are right. Errors of reading become `BundleError`."""
        path = self.path / name
        try:
            if any((self.path / part).is_symlink() for part in _prefixes(name)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise self._unlike(f"{path} is missing although {MANIFEST} lists it") from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {reason(error)}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != self._record(name).bytes:
                raise self._changed(name)
            check(MEMBER_BYTES, status.st_size, str(path), BundleError)
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                yield stream
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {reason(error)}") from error
        finally:
            os.close(descriptor)

    def _changed(self, name: str) -> BundleError:
        path = self.path / name
        return self._unlike(f"{path} is not the file that was written (its size or sha256 differs from {MANIFEST})")

    def _unlike(self, what: str) -> BundleError:
        """The error of a file that is not as the manifest says: the bundle is damaged, or another command wrote it."""
        with suppress(BundleError):
            if _read_if_present(self.path / MANIFEST) != self.manifest_bytes:
                return BundleError(f"{self.path} changed while this command was running: run it again")
        return BundleError(f"{what}: restore the bundle from a copy")


def open_bundle(
    path: str | Path, keys: Path | None = None, expect: str | None = None, *, remember: bool = False
) -> Bundle:
    """Open a bundle for reading; with ``keys``, a public key or a keyring, only if one of them signed it.

    With ``expect`` too, only if it was signed for this product, and in no older version than this machine has inspected
    with before. ``remember`` says that it is about to inspect with this one (see `adedge.signing.accept`).

    >>> bundle = open_bundle("bottle.adedge")
    >>> bundle.manifest.method
    'oesdn'

    Raises `BundleError` if there is no bundle, if it is damaged, or if its signature is not accepted, `UsageError` if
    ``expect`` is given without ``keys``.
    """
    bundle = Bundle.open(path)
    if keys is None:
        if expect is not None:
            raise UsageError(f"'{expect}' can only be expected of a signed bundle: require a signature as well")
        return bundle
    from adedge.signing import accept

    accept(bundle, keys, expect, remember=remember)
    return bundle


class Draft:
    """The next state of the bundle ``path``: files go to a directory next to it, ``manifest`` may be reassigned."""

    def __init__(self, path: Path, directory: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self._path = path
        self._directory = directory
        self._files = dict(manifest.files)
        self._bundle: Bundle | None = None

    def write(self, name: str, data: bytes | str) -> FileRecord:
        """Write or replace one file; returns its size and digest."""
        try:
            path = self._directory / check_name(name)
        except ValueError as error:
            raise BundleError(str(error)) from None
        data = data.encode() if isinstance(data, str) else data
        with _disk_errors(self._path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # writing through its hard link would change the bundle in use
            write_flushed(path, data)
        record = FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        self._files[name] = record
        return record

    def write_json(self, name: str, value: Any) -> FileRecord:
        """Write one file as indented JSON; returns its size and digest."""
        return self.write(name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder, if there is one."""
        for file in [file for file in self._files if file == name or file.startswith(f"{name}/")]:
            with _disk_errors(self._path):
                (self._directory / file).unlink()
            with suppress(OSError):  # its folders, as far as they are empty now
                for folder in list(Path(file).parents)[:-1]:
                    (self._directory / folder).rmdir()
            del self._files[file]

    @property
    def bundle(self) -> Bundle:
        """The bundle as written, once the block of `Bundle.edit` or `create` has ended."""
        assert self._bundle is not None, "the block of the edit has not ended"
        return self._bundle

    def _finish(self, sign: Callable[[bytes], bytes] | None) -> None:
        """Write the manifest with the digests of all files, and the signature."""
        self.manifest = self.manifest.replace(
            files={name: record.model_dump() for name, record in sorted(self._files.items())}
        )
        data = self.manifest.encode()
        write_flushed(self._directory / MANIFEST, data)
        signature = None if sign is None else sign(data)
        if signature is not None:
            write_flushed(self._directory / SIGNATURE, signature)
        # Parsed, so that it is in every way the bundle that `Bundle.open` gives from now on.
        self._bundle = Bundle(self._path, Manifest.parse(data, MANIFEST), data, signature)


@contextmanager
def create(path: str | Path, manifest: Manifest, *, overwrite: bool = False) -> Iterator[Draft]:
    """Create a bundle at ``path`` atomically when the block ends; until then no other process can write there.

    Replaces an existing bundle only with ``overwrite``, and never any other file or non-empty directory. Raises
    `BundleError` if ``path`` is taken or cannot be written.
    """
    path = Path(path)
    real = _real(path)
    with _disk_errors(path):
        recover(real)
    check_creatable(path, overwrite=overwrite)
    with _disk_errors(path):
        make_directories(real.parent)
    with _staged(real) as staging:
        draft = Draft(path, staging.new, manifest)
        yield draft
        check_creatable(path, overwrite=overwrite)  # something may have appeared there during a long training
        with _disk_errors(path):
            draft._finish(None)
            staging.publish()


def check_creatable(path: Path, *, overwrite: bool) -> None:
    """Raise `BundleError` if a bundle cannot be created at ``path``: worth knowing before hours of training."""
    if path.name in ("", ".."):
        raise BundleError(f"'{path}' is not a name for a new bundle: give one, such as brick.adedge")
    with _disk_errors(path):
        is_bundle = (path / MANIFEST).is_file()
        is_empty = path.is_dir() and not any(path.iterdir())
        taken = os.path.lexists(_real(path)) and not is_empty
    if taken and not is_bundle:
        raise BundleError(f"{path} exists and is not a bundle: choose another name")
    if is_bundle and not overwrite:
        raise BundleError(f"{path} already holds a bundle: choose another name, or add --overwrite")
    parent = next(p for p in path.absolute().parents if p.is_dir())
    if not os.access(parent, os.W_OK):
        raise BundleError(f"{parent} is not writable: choose another directory for the bundle")


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return _sha256(stream)


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


_REMEDY: Mapping[str, str] = {
    "model": "run 'adedge export' (and 'adedge calibrate' for INT8) first",
    "scored": "run 'adedge export --with-scoring' first",
    "ranges": "run 'adedge calibrate' first",
    "golden": "run 'adedge train' again",
    "weights": "run 'adedge train' again",
    "imported": "run 'adedge import' again",
}


def _read_if_present(path: Path, limit: Limit = JSON_BYTES) -> bytes | None:
    try:
        return read_file(path, limit, BundleError)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {reason(error)}") from error


def _prefixes(name: str) -> Iterator[str]:
    """ "a/b/c" -> "a", "a/b", "a/b/c"."""
    parts = name.split("/")
    return ("/".join(parts[: count + 1]) for count in range(len(parts)))


def _files_below(path: Path) -> Iterator[str]:
    """The names of everything in a directory that is no directory itself, links to directories included, sorted."""
    names = []
    for folder, folders, files in os.walk(path):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        names += [(Path(folder) / name).relative_to(path).as_posix() for name in (*files, *links)]
    return iter(sorted(names))


def _is_litter(name: str) -> bool:
    """Whether the operating system leaves such files wherever a folder is looked at; an edit drops them."""
    last = name.rpartition("/")[2]
    return last in (".DS_Store", "Thumbs.db", "desktop.ini") or last.startswith((".nfs", "._"))


@contextmanager
def _staged(path: Path) -> Iterator[Staging]:
    """`adedge.staging.stage` with its errors as `BundleError`; of those of the block, only that the disk is full."""
    with ExitStack() as stack:
        with _disk_errors(path):
            staging = stack.enter_context(stage(path))
        try:
            yield staging
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise _disk_error(path, error) from error
            raise


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _disk_error(path, error) from error


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


_WAYS_OUT = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), ": get write permission for it and for the folder that holds it"
    ),
    errno.ENAMETOOLONG: ": choose a shorter name",
    errno.EIO: ": check the disk",
}


def _disk_error(path: Path, error: OSError) -> BundleError:
    why = _reason(path, error)
    if error.errno in _DISK_FULL:
        what = f"the disk that holds {path} is full: free some space"
    elif error.errno in (errno.EBUSY, errno.EXDEV):
        what = (
            f"{path} cannot be replaced, because it is a mount point or part of a container's image ({why}): mount "
            "the folder that holds it, or make a copy (cp -r) and use that"
        )
    else:
        what = f"{path} cannot be written ({why}){_WAYS_OUT.get(error.errno or 0, '')}"
    return BundleError(f"{what}; the bundle is unchanged")


def _reason(path: Path, error: OSError) -> str:
    """The reason of an error, with the file if it is another one than ``path``."""
    name = error.filename
    return f"{name}: {reason(error)}" if isinstance(name, str) and name != str(path) else reason(error)


def _real(path: Path) -> Path:
    """``path`` without links, absolute. Unlike `Path.resolve`, never raises: links in a circle stay."""
    return Path(os.path.realpath(path))


def _read_pair(path: Path) -> tuple[bytes | None, bytes | None]:
    """bundle.json and bundle.sig, both of the same state of the bundle."""
    while True:
        before = path.stat()
        pair = _read_if_present(path / MANIFEST), _read_if_present(path / SIGNATURE, SIGNATURE_BYTES)
        if os.path.samestat(before, path.stat()):  # else an edit has replaced the directory in between
            return pair


def _keep_owner(old: Path, new: Path) -> None:
    """Give ``new`` the permissions of ``old``, and its owner too if root has made it (in a container, say)."""
    status = old.stat()
    with suppress(OSError):  # on a file system without permissions or owners
        shutil.copymode(old, new)
        if os.geteuid() == 0 and status.st_uid != 0:
            for path in (new, *new.rglob("*")):
                os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system has no hard links (FAT on an SD card), and flush it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise  # the bundle, or a part of it, is a mount point
        shutil.copy2(source, target)
    flush_file(target)  # who has just copied the bundle to this disk may not have flushed it
