"""The manifest of a bundle, bundle.json: what its detector is, how it was made, and the digest of every file."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from adedge.errors import BundleError
from adedge.json_files import parse_json
from adedge.specs import EngineKey, InputSpec, Record, ScoreSpec

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
SIGNATURE = "bundle.sig"
RESERVED = (MANIFEST, SIGNATURE)  # not listed in the manifest
IMPORTED = "imported"  # the `method` of a detector imported as an ONNX file


def check_name(name: str) -> str:
    """``name``, if a file inside a bundle may have it: a relative path, printable. Raises `ValueError`."""
    if PurePosixPath(name).as_posix() != name or name.startswith("/") or ".." in name.split("/") or name in (".", ""):
        raise ValueError(f"{name!r} would lie outside the bundle: give a path inside it")
    if "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r} contains a backslash or a control character")
    if name in RESERVED:
        raise ValueError(f"{name} is written by adedge itself")
    return name


FileName = Annotated[str, AfterValidator(check_name)]


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
    files: dict[FileName, FileRecord] = Field(default_factory=dict)

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

    def encode(self) -> bytes:
        """The contents of bundle.json: indented JSON in UTF-8 with sorted keys."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()

    @staticmethod
    def parse(data: bytes, what: str) -> Manifest:
        """Parse and validate the bytes of bundle.json; ``what`` names it in messages. Raises `BundleError`."""
        values = parse_json(data, what, BundleError, "restore the bundle from a copy")
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{what} has schema version {version}; this adedge reads {SCHEMA_VERSION}: "
                "use the adedge version that wrote it, or train again"
            )
        try:
            return Manifest.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{what} is damaged at '{field}': {first['msg']}") from error
