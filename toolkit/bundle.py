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

The contents of a file are used only after its digest was checked. Writes are atomic: `edit` works on a hard-linked copy
next to the bundle and exchanges the two directories once everything is on disk.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from adedge.errors import BundleError
from adedge.files import flush
from adedge.specs import EngineKey, InputSpec, Record, ScoreSpec

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
SIGNATURE = "bundle.sig"
IMPORTED = "imported"  # the `method` of a detector imported as an ONNX file


class FileRecord(Record):
    """The expected sha256 (hex) and size in bytes of a file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Normalisation(Record):
    """Mean and standard deviation of the reference's raw scores of held-out good pictures: z = (score - mean) / std.

    For display and comparison only; verdicts and metrics use raw scores.
    """

    mean: float
    std: float = Field(gt=0)
    pictures: int = Field(ge=2)


class Threshold(Record):
    """A frame is anomalous when its raw score exceeds ``value``.

    Split-conformal: fitted on ``pictures`` held-out good pictures, it is exceeded by a new good picture with
    probability at most ``false_alarm_rate``. ``data_digest`` identifies the pictures.
    """

    value: float
    false_alarm_rate: float = Field(gt=0, lt=1)
    pictures: int = Field(ge=1)
    data_digest: str


class Difference(Record):
    """How far a graph or engine deviates from PyTorch on the golden frames.

    ``map_error`` and ``score_error`` are maximum absolute differences of raw anomaly maps and scores. ``flips`` counts
    the frames whose verdict differs, None without thresholds. ``auroc_change`` is the AUROC minus PyTorch's, None
    unless there are good and anomalous frames.
    """

    map_error: float
    score_error: float
    frames: int
    flips: int | None = None
    auroc_change: float | None = None


class Graph(Record):
    """One ONNX file: its interface, the weights and ranges it was made from, and its deviation from PyTorch."""

    file: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    with_scoring: bool
    weights_sha256: str
    ranges_sha256: str | None = None
    difference: Difference | None = None
    notes: tuple[str, ...] = ()


class Provenance(Record):
    """Where a bundle comes from: data, training settings, device and library versions."""

    created: str
    data: str
    data_digest: str
    seed: int
    budget: str
    device: str
    versions: dict[str, str]
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)


class Manifest(Record):
    """The contents of bundle.json.

    ``network`` holds the arguments that rebuild the networks (see `adedge.methods`). ``thresholds`` is keyed by
    "<backend>/<precision>", one of which is the `reference`; ``graphs`` by file stem, for example "model.int8";
    ``files`` by path inside the bundle, with forward slashes.
    """

    schema_version: int = SCHEMA_VERSION
    method: str
    variant: str
    network: dict[str, bool | int | float | str]
    input: InputSpec
    score: ScoreSpec
    normalisation: Normalisation | None = None
    thresholds: dict[str, Threshold] = Field(default_factory=dict)
    graphs: dict[str, Graph] = Field(default_factory=dict)
    provenance: Provenance
    files: dict[str, FileRecord] = Field(default_factory=dict)

    @property
    def weights(self) -> str:
        """The file that every graph is made from: the trained networks or the imported graph."""
        return "imported.onnx" if self.method == IMPORTED else "weights.safetensors"

    @property
    def reference(self) -> str:
        """The key that flips are counted against: PyTorch's, or ONNX Runtime's if there is no PyTorch model."""
        return str(EngineKey("onnxruntime", "fp32")) if self.method == IMPORTED else "pytorch/fp32"

    def threshold(self, engine: EngineKey | str) -> float | None:
        """The score above which an engine, or the `reference`, rejects a frame; None if it is not calibrated."""
        threshold = self.thresholds.get(str(engine))
        return None if threshold is None else threshold.value

    def replace(self, **changes: Any) -> Manifest:
        """A validated copy with ``changes``."""
        return Manifest.model_validate({**self.model_dump(), **changes})


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Bundle:
    """A bundle opened for reading: its path and validated manifest.

    Immutable: `edit` replaces the directory as a whole; open the bundle again to see the changes.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """Read and validate bundle.json; the digests of files are checked on access (`file`, `read`) or by `verify`.

        Raises `BundleError` if there is no bundle, or if bundle.json is damaged or has another schema version.
        """
        path = Path(path)
        _recover(path.resolve())
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise BundleError(f"{path} {what}: give the directory that 'adedge train' wrote")
        try:
            text = (path / MANIFEST).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path / MANIFEST} cannot be read: {error}") from error
        return Bundle(path, _parse(text, path))

    def has(self, name: str) -> bool:
        """Whether the manifest lists this file."""
        return name in self.manifest.files

    def file(self, name: str) -> Path:
        """The path of a file of the bundle, after checking its size and sha256.

        Raises `BundleError` if the file is not listed, is missing, or was changed.
        """
        path = self._listed_path(name)
        record = self.manifest.files[name]
        if path.stat().st_size != record.bytes or sha256_of(path) != record.sha256:
            raise BundleError(_changed_message(path))
        return path

    def _listed_path(self, name: str) -> Path:
        """The path of an existing file that the manifest lists. Raises `BundleError`."""
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.path} has no {name}: {_REMEDY.get(name.split('.')[0], 'run the command that writes it first')}"
            )
        path = self.path / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path} is missing although {MANIFEST} lists it: restore the bundle from a copy")
        return path

    def read(self, name: str) -> bytes:
        """The contents of a file of the bundle, read once and checked. Raises `BundleError` like `file`."""
        path = self._listed_path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
        record = self.manifest.files[name]
        if len(data) != record.bytes or hashlib.sha256(data).hexdigest() != record.sha256:
            raise BundleError(_changed_message(path))
        return data

    def verify(self) -> list[str]:
        """Check every digest and look for unlisted files; returns one message per problem."""
        problems = []
        for name in self.manifest.files:
            try:
                self.file(name)
            except BundleError as error:
                problems.append(str(error))
        listed = {*self.manifest.files, MANIFEST, SIGNATURE}
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            if not path.is_dir() and name not in listed:
                problems.append(f"{path} is not listed in {MANIFEST}: remove it, or restore the bundle from a copy")
        return problems

    def json(self, name: str) -> Any:
        """Parse a JSON file of the bundle after checking its digest."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise BundleError(f"{self.path / name} is not valid JSON: {error}") from error

    @contextmanager
    def edit(self) -> Iterator[Draft]:
        """Change the bundle atomically: every change when the block ends, none if it raises.

            with bundle.edit() as draft:
                draft.write("golden.npz", data)
                draft.manifest = draft.manifest.replace(normalisation=normalisation)

        Drops the signature, which no longer holds. Raises `BundleError` if another process is writing the bundle, if it
        changed since it was opened, or if the disk is full.
        """
        # Resolved, so that a symbolic link to the bundle survives the exchange, and "." gets a real name.
        real = self.path.resolve()
        with _locked(real):
            if (real / MANIFEST).read_bytes() != _encode(self.manifest):
                raise BundleError(f"{self.path} changed while this command was running: run it again")
            with _staged(real, self.manifest, existing=True) as draft:
                yield draft


def open_bundle(path: str | Path, public: Path | None = None) -> Bundle:
    """Open a bundle for reading; with a ``public`` key, only if that key signed it.

    >>> bundle = open_bundle("bottle.adedge")
    >>> bundle.manifest.method
    'oesdn'

    Raises `BundleError` if there is no bundle, if it is damaged, or if it is not signed by that key.
    """
    bundle = Bundle.open(path)
    if public is not None:
        from adedge.signing import require

        require(bundle, public)
    return bundle


class Draft:
    """The next state of a bundle: files go to a directory next to it, and ``manifest`` may be reassigned."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._written: dict[str, FileRecord | None] = {}

    def write(self, name: str, data: bytes | str) -> FileRecord:
        """Write one file; returns its size and digest."""
        path = self.path(name)
        data = data.encode() if isinstance(data, str) else data
        path.write_bytes(data)
        record = FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        self._written[name] = record
        return record

    def write_json(self, name: str, value: Any) -> FileRecord:
        """Write one file as indented JSON; returns its size and digest."""
        return self.write(name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    def path(self, name: str) -> Path:
        """The path to write file ``name`` to; its digest is computed when the edit ends.

        The old file is unlinked first: writing through its hard link would change the bundle in use.
        """
        path = self.directory / name
        if not path.resolve().is_relative_to(self.directory.resolve()):
            raise BundleError(f"'{name}' would lie outside the bundle: give a path inside it")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._written[name] = None
        return path

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder."""
        path = self.directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Record the digests of written files, drop removed files, write the manifest, and flush everything to disk."""
        files: dict[str, FileRecord] = {}
        for path in sorted(self.directory.rglob("*")):
            name = path.relative_to(self.directory).as_posix()
            if path.is_dir() or name in (MANIFEST, SIGNATURE):
                continue
            old = self.manifest.files.get(name)
            if old is not None and name not in self._written:
                files[name] = old
            else:
                flush(path)
                record = self._written.get(name)
                files[name] = record or FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)
        self.manifest = self.manifest.replace(files={k: v.model_dump() for k, v in files.items()})
        manifest = self.path(MANIFEST)
        manifest.write_bytes(_encode(self.manifest))
        flush(manifest)
        flush(self.directory)


@contextmanager
def create(path: str | Path, manifest: Manifest, *, overwrite: bool = False) -> Iterator[Draft]:
    """Create a bundle at ``path`` atomically.

    Replaces an existing bundle only with ``overwrite``, and never any other file or non-empty directory. Raises
    `BundleError` if ``path`` is taken or cannot be written.
    """
    path = Path(path)
    check_creatable(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _staged(path.resolve(), manifest, existing=False) as draft:
        yield draft


def check_creatable(path: Path, *, overwrite: bool) -> None:
    """Raise `BundleError` if a bundle cannot be created at ``path``: worth knowing before hours of training."""
    if path.name in ("", ".."):
        raise BundleError(f"'{path}' is not a name for a new bundle: give one, such as brick.adedge")
    if path.exists() and not (path / MANIFEST).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise BundleError(f"{path} exists and is not a bundle: choose another name")
    if (path / MANIFEST).is_file() and not overwrite:
        raise BundleError(f"{path} already holds a bundle: choose another name, or add --overwrite")
    parent = next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())
    if not os.access(parent, os.W_OK):
        raise BundleError(f"{parent} is not writable: choose another directory for the bundle")


_REMEDY: Mapping[str, str] = {
    "model": "run 'adedge export' (and 'adedge calibrate' for INT8) first",
    "scored": "run 'adedge export --with-scoring' first",
    "ranges": "run 'adedge calibrate' first",
    "golden": "run 'adedge train' again",
    "weights": "run 'adedge train' again",
    "imported": "run 'adedge import' again",
}


def _changed_message(path: Path) -> str:
    return (
        f"{path} is not the file that was written (its sha256 differs from {MANIFEST}): restore the bundle from a copy"
    )


def _encode(manifest: Manifest) -> bytes:
    return (json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()


def _parse(text: str, path: Path) -> Manifest:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{path / MANIFEST} is not valid JSON ({error}): restore the bundle from a copy") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path / MANIFEST} has schema version {version}; this adedge reads {SCHEMA_VERSION}: "
            "use the adedge version that wrote it, or train again"
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path / MANIFEST} is damaged at '{field}': {first['msg']}") from error


@contextmanager
def _staged(path: Path, manifest: Manifest, *, existing: bool) -> Iterator[Draft]:
    """A directory next to ``path`` that replaces it when the block ends, and is removed if the block raises."""
    _remove_leftovers(path)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.{os.getpid()}.", dir=path.parent))
    except OSError as error:
        raise _disk_error(path, error) from error
    try:
        staging.chmod(0o755)
        if existing:
            shutil.copytree(path, staging, dirs_exist_ok=True, copy_function=_link)
            (staging / SIGNATURE).unlink(missing_ok=True)
        draft = Draft(staging, manifest)
        yield draft
        draft._finish()
        _exchange(staging, path)
        flush(path.parent)
    except OSError as error:
        raise _disk_error(path, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _disk_error(path: Path, error: OSError) -> BundleError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BundleError(f"the disk that holds {path} is full: free some space; the bundle is unchanged")
    return BundleError(f"{path} cannot be written ({error}); the bundle is unchanged")


def _link(source: str, target: str) -> None:
    """Hard-link a file, or copy it if the file system has no hard links (FAT on an SD card)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _exchange(staging: Path, path: Path) -> None:
    """Move ``staging`` to ``path`` atomically: by a rename, or by Linux's exchange if ``path`` exists."""
    if not path.exists():
        staging.rename(path)
        return
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        renameat2 = None
    if renameat2 is not None:
        result = renameat2(_AT_FDCWD, os.fsencode(staging), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE)
        if result == 0:
            return
    # Old kernels and some network file systems lack the exchange: rename twice; `_recover` handles the gap in between.
    backup = path.with_name(f".{path.name}.previous")
    path.rename(backup)
    staging.rename(path)
    shutil.rmtree(backup, ignore_errors=True)


def _recover(path: Path) -> None:
    """Undo an exchange that was interrupted between its two renames."""
    backup = path.with_name(f".{path.name}.previous")
    if backup.is_dir() and not path.exists():
        backup.rename(path)


def _remove_leftovers(path: Path) -> None:
    """Remove the staging directories of killed processes."""
    for leftover in path.parent.glob(f".{path.name}.*.*"):
        owner = leftover.name.split(".")[-2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the bundle's directory for writing. Raises `BundleError` at once if another writer holds it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BundleError(f"another adedge command is writing {path}: wait until it has finished") from None
        if os.fstat(descriptor).st_ino != path.stat().st_ino:
            raise BundleError(f"{path} changed while this command was running: run it again")
        yield
    finally:
        os.close(descriptor)
