"""Engines in a bundle: their records, the checks before a plan is loaded, and loading it.

A plan is executable code for one library version and one kind of GPU. Deserialising an incompatible plan crashes, or
fails with an obscure message; so its record is first compared with the bundle and the machine, and a mismatch raises an
error that states the remedy.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from adedge.bundle import Bundle
from adedge.errors import BundleError, EngineError, MissingDependency
from adedge.escaping import command_line
from adedge.json_files import parse_json
from adedge.manifest import Difference
from adedge.runtime.backends import Backend, MachineInfo
from adedge.specs import PRECISIONS, TARGETS, EngineKey, Precision, Record, Target

MAX_BATCH = 1 << 16  # frames


class Tensor(Record):
    """An input or output of an engine: its name, and its shape without the batch."""

    name: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]


class EngineRecord(Record):
    """engine.json: what a plan is, what it was built from, and how far it deviates from PyTorch.

    ``plan`` and ``graph`` are names inside the bundle. ``batch`` is (minimum, optimum, maximum) frames per batch.
    ``library_version`` is that of ONNX Runtime, TensorRT or TensorRT-RTX; ``compute_capabilities`` ("8.7") are the GPU
    architectures that the plan runs on, and ``machine`` is the processor architecture ("aarch64"). ``path`` names the
    way of building that succeeded, ``attempts`` says why the ways before it failed, and ``warnings`` are the builder's.
    ``self_test`` is None if the building machine could not execute the plan; ``status`` puts the outcome in words.
    ``layers`` counts TensorRT's layers by the precision of their outputs ("int8": 12), as its engine inspector reports
    it; empty if there is no such inspector, or if the plan was not loaded.
    """

    target: Target
    precision: Precision
    plan: str
    plan_sha256: str
    graph: str
    graph_sha256: str
    batch: tuple[int, int, int]
    input: Tensor
    outputs: tuple[Tensor, ...]
    library_version: str = Field(max_length=200)
    gpu: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    machine: str = Field(default_factory=platform.machine)
    path: str
    attempts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    flags: dict[str, bool | int | float | str] = Field(default_factory=dict)
    build_seconds: float
    built: str
    layers: dict[str, int] = Field(default_factory=dict)
    self_test: Difference | None = None
    status: str

    @model_validator(mode="after")
    def _usable(self) -> EngineRecord:
        minimum, optimum, maximum = self.batch
        if not 1 <= minimum <= optimum <= maximum <= MAX_BATCH:
            raise ValueError(f"batch {self.batch} is not 1 <= minimum <= optimum <= maximum <= {MAX_BATCH}")
        core = self.flags.get("dla_core", 0)
        if not isinstance(core, int) or core < 0:
            raise ValueError(f"DLA cores are numbered from 0, and {core!r} is none of them")
        return self

    @property
    def key(self) -> EngineKey:
        """The key of the engine in its bundle."""
        return EngineKey(self.target, self.precision)


def engine_folder(key: EngineKey) -> str:
    """The folder of an engine in its bundle: "engines/tensorrt-int8"."""
    return f"engines/{key.target}-{key.precision}"


def engines_in(bundle: Bundle) -> list[EngineKey]:
    """The engines in a bundle, ordered by target, then FP32, FP16, INT8."""
    keys = (EngineKey(target, precision) for target in TARGETS for precision in PRECISIONS)
    return [key for key in keys if bundle.has(f"{engine_folder(key)}/engine.json")]


def load_engine(bundle: Bundle, key: EngineKey, *, threads: int | None = None, spin: bool = False) -> Backend:
    """Check an engine of the bundle against the bundle and this machine, then load it.

    ``threads`` and ``spin`` are those of `adedge.runtime.backends.onnxruntime.OnnxRuntimeBackend`; other targets ignore
    them. Raises `EngineError` if the engine is missing, stale or for another machine, `BundleError` if a file was
    changed, and `MissingDependency` if the library that executes the engine is not installed.
    """
    return load_recorded(bundle, read_record(bundle, key), threads=threads, spin=spin)


def load_recorded(bundle: Bundle, record: EngineRecord, *, threads: int | None = None, spin: bool = False) -> Backend:
    """`load_engine` for an engine whose record was read already."""
    check_bundle(record, bundle)
    return open_plan(record, bundle.read(record.plan), threads=threads, spin=spin)


def read_record(bundle: Bundle, key: EngineKey) -> EngineRecord:
    """Read an engine's record, digest checked. Raises `EngineError` if it is missing or invalid."""
    name = f"{engine_folder(key)}/engine.json"
    if not bundle.has(name):
        present = ", ".join(map(str, engines_in(bundle))) or "none"
        raise EngineError(
            f"{bundle.path} has no {key} engine (it has: {present}): run '{_build_command(bundle.path, key)}'"
        )
    try:
        data = parse_json(bundle.read(name), str(bundle.path / name), EngineError, _rebuild(key))
        record = EngineRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise EngineError(
            f"{bundle.path / name} is not an engine record of this adedge ('{field}': {first['msg']}): {_rebuild(key)}"
        ) from error
    if record.key != key:
        raise EngineError(f"{bundle.path / name} describes the {record.key} engine, not {key}: {_rebuild(key)}")
    return record


def check_bundle(record: EngineRecord, bundle: Bundle) -> None:
    """Check a record against its bundle: the plan's digest, the graph it was built from, the input's shape.

    Raises `BundleError` or `EngineError`.
    """
    files = bundle.manifest.files
    remedy = _rebuild(record.key)
    plan = files.get(record.plan)
    if plan is None or plan.sha256 != record.plan_sha256:
        raise BundleError(f"{bundle.path / record.plan} is not the plan that engine.json describes: {remedy}")
    graph = files.get(record.graph)
    if graph is None or graph.sha256 != record.graph_sha256:
        raise EngineError(f"the {record.key} engine of {bundle.path} is stale: {record.graph} changed since; {remedy}")
    expected = bundle.manifest.input.shape
    if record.input.shape != expected:
        raise EngineError(
            f"the {record.key} engine takes frames of {_size(record.input.shape)}, "
            f"the bundle's detector of {_size(expected)}: {remedy}"
        )


def check_machine(record: EngineRecord, here: MachineInfo) -> None:
    """Check a TensorRT record against this machine: library version, processor, GPU. Raises `EngineError`."""
    engine = f"the {record.key} engine"
    remedy = f"{_rebuild(record.key)} on this machine"
    if not runs_on_version(record, here.library_version):
        raise EngineError(
            f"{engine} was built by version {record.library_version} and this machine has {here.library_version}: "
            f"{remedy}, or install the version it was built by"
        )
    if record.machine != here.machine:
        raise EngineError(f"{engine} was built for {record.machine} and this machine is {here.machine}: {remedy}")
    if here.compute_capability is None:
        raise EngineError(f"{engine} requires an NVIDIA GPU and this machine has none: use --target onnxruntime here")
    if not runs_on_gpu(record, here.compute_capability):
        raise EngineError(
            f"{engine} is for GPUs of compute capability {', '.join(record.compute_capabilities)} and this machine's "
            f"{here.gpu} has {here.compute_capability}: {remedy}"
        )


def incompatibility(record: EngineRecord) -> str | None:
    """Why this machine cannot execute a plan of TensorRT or TensorRT-RTX; None if it can."""
    from adedge.runtime.backends.tensorrt import load_libraries, machine_info

    try:
        check_machine(record, machine_info(load_libraries(record.target)))
    except (EngineError, MissingDependency) as error:
        return str(error)
    return None


def runs_on_version(record: EngineRecord, version: str) -> bool:
    """Whether a library of ``version`` can load the plan.

    A plan loads in the version that built it. A version-compatible plan also loads in any version with the same major
    number; so does one of TensorRT 8 in 10, and one of 10 in 11 (NVIDIA's support matrix).
    """
    built, here = version_tuple(record.library_version), version_tuple(version)
    if record.flags.get("version_compatible"):
        return (built[0], here[0]) in {(here[0], here[0]), (8, 10), (10, 11)}
    return built[:3] == here[:3]


def runs_on_gpu(record: EngineRecord, compute_capability: str) -> bool:
    """Whether the plan runs on a GPU of ``compute_capability``: one it was built for, or Ampere+ if so built."""
    if record.flags.get("hardware_compatibility") == "ampere-plus":
        return version_tuple(compute_capability) >= (8, 0)
    return compute_capability in record.compute_capabilities


def version_tuple(text: str) -> tuple[int, ...]:
    """ "10.13.3.9" -> (10, 13, 3, 9), to compare as numbers: as text, "10" sorts before "8". Raises `EngineError`."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0]))
    if not numbers:
        raise EngineError(f"'{text}' is not a version: expected numbers and dots, as in 10.3.0")
    return numbers


def open_plan(record: EngineRecord, plan: bytes, *, threads: int | None = None, spin: bool = False) -> Backend:
    """Load a plan that `check_bundle` accepted, after checking it against this machine. Raises `EngineError`."""
    if record.target == "onnxruntime":
        from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend

        backend: Backend = OnnxRuntimeBackend(plan, batch=record.batch[2], threads=threads, spin=spin)
    else:
        from adedge.runtime.backends.tensorrt import TensorRTBackend, load_libraries, machine_info

        libraries = load_libraries(record.target)
        check_machine(record, machine_info(libraries))
        backend = TensorRTBackend(
            plan,
            libraries,
            batch=(record.batch[0], record.batch[2]),
            dla_core=_dla_core(record),
            trusted_code=bool(record.flags.get("version_compatible")),
        )
    shapes = [array.shape[1:] for array in (backend.input, *backend.outputs)]
    expected = [tensor.shape for tensor in (record.input, *record.outputs)]
    if shapes != expected:
        backend.close()
        raise EngineError(f"the plan's tensors are {shapes} and engine.json says {expected}: {_rebuild(record.key)}")
    return backend


def _dla_core(record: EngineRecord) -> int | None:
    core = record.flags.get("dla_core")
    return None if core is None else int(core)


def _rebuild(key: EngineKey) -> str:
    return f"build it again with '{_build_command('BUNDLE', key)}'"


def _build_command(bundle: object, key: EngineKey) -> str:
    return command_line("build-engine", bundle, "--target", key.target, "--precision", key.precision)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, (*shape[1:], *shape[:1])))
