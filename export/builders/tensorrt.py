"""TensorRT 8.5 to 11: build a plan on the GPU that will run it.

Strong typing (TensorRT 10 and later) takes every type from the graph. Weak typing (8.5 to 10.x, removed in 11) takes
precisions from builder flags. Typing modes and builder options are detected on the module itself, DLA support by
version number. The ways to build are tried in order: Q/DQ with FP16 scales, Q/DQ with FP32 scales, weak typing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from adedge.errors import EngineError, reason
from adedge.export.builders import DEFAULT_WORKSPACE_BYTES, BuildOptions, BuildResult, Source
from adedge.files import write_whole
from adedge.onnx_data import refuse_external
from adedge.progress import Progress
from adedge.runtime.backends.tensorrt import Log, load_libraries, logger_of, machine_info, title
from adedge.runtime.engines import Tensor, version_tuple
from adedge.specs import Precision

OLDEST_VERSION = (8, 5)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to build: the graph to parse, strong or weak typing, and the builder flags for weak typing."""

    name: str
    graph: str
    strong: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SerializedEngine:
    """A serialised engine, the graph's input and outputs as TensorRT parsed them, and the builder's warnings."""

    data: bytes
    input: Tensor
    outputs: tuple[Tensor, ...]
    warnings: tuple[str, ...]


STRONG: Mapping[Precision, tuple[Way, ...]] = {
    "fp32": (Way(name="strongly typed FP32", graph="model.fp32", strong=True),),
    "fp16": (Way(name="strongly typed FP16", graph="model.fp16", strong=True),),
    "int8": (
        Way(name="strongly typed INT8, FP16 scales", graph="model.int8-fp16", strong=True),
        Way(name="strongly typed INT8, FP32 scales", graph="model.int8", strong=True),
    ),
}
WEAK: Mapping[Precision, tuple[Way, ...]] = {
    "fp32": (Way(name="weakly typed FP32", graph="model.fp32", strong=False),),
    "fp16": (Way(name="weakly typed FP16", graph="model.fp32", strong=False, flags=("FP16",)),),
    "int8": (Way(name="weakly typed INT8", graph="model.int8", strong=False, flags=("INT8", "FP16")),),
}


def build(source: Source, options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Try each way to build that this TensorRT supports, in order, and return the first plan.

    Raises `MissingDependency` without TensorRT or pycuda, `EngineError` without a GPU, if this TensorRT or device does
    not support an option, or with the reason for each attempt if all fail.
    """
    libraries = load_libraries("tensorrt")
    machine = machine_info(libraries)
    trt = libraries.trt
    if version_tuple(trt.__version__) < OLDEST_VERSION:
        raise EngineError(f"{title(trt)} is too old: adedge requires 8.5 (JetPack 5.1) or later")
    check_dla(trt, source, options)
    attempts: list[str] = []
    for way in ways_to_build(trt, source.precision, dla=options.dla_core is not None):
        if way.graph not in source.graphs:
            attempts.append(f"{way.name}: the bundle has no {way.graph}.onnx")
            continue
        try:
            plan = build_plan(
                trt,
                way,
                source,
                lambda builder, config: _configure(trt, builder, config, options),
                progress,
                on_built=lambda config: _save_timing_cache(config, options.timing_cache),
            )
        except EngineError as error:
            attempts.append(f"{way.name}: {error}")
            continue
        return BuildResult(
            plan=plan.data,
            graph=way.graph,
            input=plan.input,
            outputs=plan.outputs,
            library_version=machine.library_version,
            path=way.name,
            attempts=tuple(attempts),
            warnings=plan.warnings,
            gpu=machine.gpu,
            compute_capabilities=(str(machine.compute_capability),),
            flags=_flags(options),
        )
    raise build_failure(title(trt), source.precision, attempts)


def build_failure(library: str, precision: Precision, attempts: list[str]) -> EngineError:
    """The error to raise when every attempt has failed."""
    return EngineError(f"{library} cannot build this detector in {precision}: {'; '.join(attempts)}")


def ways_to_build(trt: Any, precision: Precision, *, dla: bool = False) -> tuple[Way, ...]:
    """The ways to build that this TensorRT module supports, preferred first.

    For a DLA, weak typing is the only way in every version that supports it.
    """
    strong = STRONG[precision] if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") else ()
    weak = WEAK[precision] if hasattr(trt.BuilderFlag, "FP16") else ()
    if dla and weak:
        return weak
    # Weakly typed FP32 computes the same as strongly typed FP32, so it is no fallback.
    return strong if strong and precision == "fp32" else (*strong, *weak)


def check_dla(trt: Any, source: Source, options: BuildOptions) -> None:
    """Raise `EngineError` before building if the DLA does not support this build."""
    if options.dla_core is None:
        return
    version = version_tuple(trt.__version__)
    if (10, 8) <= version < (11,):
        raise EngineError(
            f"{title(trt)} has no DLA: 10.7 was the last 10.x with one; leave --dla-core out, "
            "or use JetPack 6 (TensorRT 10.3)"
        )
    if source.precision == "fp32":
        raise EngineError("a DLA computes in FP16 or INT8 only: choose --precision fp16, or leave --dla-core out")
    if source.precision == "int8" and version < (11,):
        raise EngineError(
            f"the DLA of {title(trt)} accepts no Q/DQ graph: choose --precision fp16 for the DLA, "
            "or leave --dla-core out to run INT8 on the GPU"
        )
    if len(set(source.batch)) != 1:
        raise EngineError("a DLA requires one fixed batch: give --batch three equal numbers, such as --batch 1,1,1")


def build_plan(
    trt: Any,
    way: Way,
    source: Source,
    configure: Callable[[Any, Any], None],
    progress: Progress | None = None,
    on_built: Callable[[Any], None] | None = None,
) -> SerializedEngine:
    """Parse one graph and build an engine from it.

    ``configure(builder, config)`` sets the options of the library in use; ``on_built(config)`` runs after a successful
    build. Raises `EngineError` with the parser's errors and node names, or with the builder's errors.
    """
    # TensorRT holds pointers to graph bytes, parser and network: local variables keep them alive until serialisation.
    logger, log = logger_of(trt)
    log.clear()
    builder = _require(trt.Builder(logger), "a builder", log)
    creation = trt.NetworkDefinitionCreationFlag
    kind = getattr(creation, "STRONGLY_TYPED", None) if way.strong else getattr(creation, "EXPLICIT_BATCH", None)
    if kind is None:
        raise EngineError(f"{title(trt)} has no {'strong' if way.strong else 'weak'} typing")
    network = _require(builder.create_network(1 << int(kind)), "a network", log)
    parser = _require(trt.OnnxParser(network, logger), "a parser", log)
    refuse_external(source.graphs[way.graph], f"{way.graph}.onnx")
    if not parser.parse(source.graphs[way.graph]):
        raise EngineError(f"{title(trt)} cannot parse {way.graph}.onnx: {parser_errors(parser)}")
    input_tensor, output_tensors = _network_tensors(trt, network, source)
    config = _require(builder.create_builder_config(), "a configuration", log)
    for flag in way.flags:
        config.set_flag(_member(trt, "BuilderFlag", flag, f"{flag} flag"))
    _add_profile(builder, config, input_tensor.name, source)
    configure(builder, config)
    cancelled = threading.Event()
    monitor = _monitor(trt, config, progress, cancelled)
    if monitor is not None:
        config.progress_monitor = monitor
    data = _interruptible(lambda: builder.build_serialized_network(network, config), cancelled)
    if data is None:
        raise EngineError(f"{title(trt)} cannot build {way.graph}.onnx: {log.explain()}")
    if on_built is not None:
        on_built(config)
    return SerializedEngine(
        data=bytes(data), input=input_tensor, outputs=output_tensors, warnings=log.unique_warnings()
    )


def parser_errors(parser: Any) -> str:
    """The ONNX parser's errors on one line, each with its node."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # 8.x reports only the node's index.
        name = getattr(error, "node_name", None)
        operator = getattr(error, "node_operator", None)
        where = f"node '{name()}'" if name is not None and name() else f"node {error.node()}"
        kind = f" ({operator()})" if operator is not None and operator() else ""
        lines.append(f"{where}{kind}: {' '.join(str(error.desc()).split())}")
    return "; ".join(dict.fromkeys(lines)) or "the parser gave no reason"


def _network_tensors(trt: Any, network: Any, source: Source) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The parsed network's input and outputs; raises `EngineError` if the detector cannot use them."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    if len(tensors) != 1:
        raise EngineError(f"the graph must have one input, the frames, and has {len(tensors)}: export it again")
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in tensors:
        if tensor.dtype != trt.DataType.FLOAT:
            raise EngineError(f"the graph's tensor '{tensor.name}' is {tensor.dtype}, not FLOAT: export it again")
        if any(size < 0 for size in tuple(tensor.shape)[1:]):
            raise EngineError(
                f"the graph's tensor '{tensor.name}' has shape {tuple(tensor.shape)}; only the batch may be dynamic: "
                "export it again"
            )
    frames, *outputs = [Tensor(name=tensor.name, shape=tuple(tensor.shape)[1:]) for tensor in tensors]
    if frames.shape != source.shape:
        raise EngineError(f"the graph takes {frames.shape}, the detector {source.shape}: export it again")
    batch = tensors[0].shape[0]
    if batch >= 0 and source.batch != (batch, batch, batch):
        raise EngineError(f"the graph takes exactly {batch} frame(s) at once: export it with a dynamic batch")
    return frames, tuple(outputs)


def _add_profile(builder: Any, config: Any, name: str, source: Source) -> None:
    profile = builder.create_optimization_profile()
    profile.set_shape(name, *((n, *source.shape) for n in source.batch))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT rejects the batch {','.join(map(str, source.batch))} for input '{name}'")


def _configure(trt: Any, builder: Any, config: Any, options: BuildOptions) -> None:
    """Set the options on TensorRT's builder configuration; raises `EngineError` for those it does not support."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes or DEFAULT_WORKSPACE_BYTES)
    set_tf32(trt, config, options.tf32)
    # Makes the plan report each layer's precision after fusion, which engine.json records.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.opt_level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise EngineError(f"{title(trt)} has no optimisation level: leave --opt-level out")
        config.builder_optimization_level = options.opt_level
    if options.version_compatible:
        config.set_flag(_member(trt, "BuilderFlag", "VERSION_COMPATIBLE", "--version-compatible"))
    if options.hardware_compatibility is not None:
        name = options.hardware_compatibility.upper().replace("-", "_")
        level = _member(trt, "HardwareCompatibilityLevel", name, f"--hardware-compatibility {name.lower()}")
        config.hardware_compatibility_level = level
    if options.dla_core is not None:
        if options.dla_core >= builder.num_DLA_cores:
            raise EngineError(f"--dla-core {options.dla_core}: this device has {builder.num_DLA_cores} DLA core(s)")
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if options.timing_cache is not None:
        _use_timing_cache(config, options.timing_cache)


def set_tf32(trt: Any, config: Any, allowed: bool) -> None:
    """Allow or forbid TF32, which TensorRT allows by default: without ``allowed``, FP32 means FP32."""
    if allowed:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)


def _flags(options: BuildOptions) -> dict[str, bool | int | float | str]:
    """The options to record in engine.json: those that were set, and those whose default differs from TensorRT's."""
    flags: dict[str, bool | int | float | str] = {
        "workspace_bytes": options.workspace_bytes or DEFAULT_WORKSPACE_BYTES,
        "tf32": options.tf32,
        "version_compatible": options.version_compatible,
    }
    if options.opt_level is not None:
        flags["opt_level"] = options.opt_level
    if options.dla_core is not None:
        flags["dla_core"] = options.dla_core
    if options.hardware_compatibility is not None:
        flags["hardware_compatibility"] = options.hardware_compatibility
    return flags


def _use_timing_cache(config: Any, path: Path) -> None:
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as exc:
        raise EngineError(f"the timing cache {path} cannot be read: {reason(exc)}") from exc
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            f"the timing cache {path} was made for another GPU or TensorRT version: name another file, or remove it"
        )


def _save_timing_cache(config: Any, path: Path | None) -> None:
    if path is None:
        return
    cache = config.get_timing_cache()
    data = None if cache is None else cache.serialize()
    if data is None:
        raise EngineError(f"TensorRT provides no timing cache to write to {path}: leave --timing-cache out")
    try:
        write_whole(path, bytes(data))
    except OSError as exc:
        raise EngineError(f"the timing cache {path} cannot be written: {reason(exc)}") from exc


def _member(trt: Any, enum: str, name: str, what: str) -> Any:
    """A member of a TensorRT enumeration; raises `EngineError` if this version lacks it."""
    member = getattr(getattr(trt, enum, None), name, None)
    if member is None:
        raise EngineError(f"{title(trt)} has no {what}: leave it out")
    return member


def _require(value: _T | None, what: str, log: Log) -> _T:
    if value is None:
        raise EngineError(f"TensorRT cannot create {what}: {log.explain()}")
    return value


def _monitor(trt: Any, config: Any, progress: Progress | None, cancelled: threading.Event) -> Any | None:
    """A progress monitor that stops the build once ``cancelled`` is set; None before TensorRT 10, which has none."""
    if not (hasattr(trt, "IProgressMonitor") and hasattr(config, "progress_monitor")):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base class comes from a module without type information
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            # There are hundreds of short sub-phases; only the outermost is worth showing.
            if parent_phase is None:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if progress is not None and phase_name in self.steps:
                progress(step + 1, self.steps[phase_name], phase_name)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _interruptible(call: Callable[[], _T], cancelled: threading.Event) -> _T:
    """Run a long call that releases the GIL in another thread, so that this one handles Ctrl-C at once.

    An interrupt sets ``cancelled``, which makes the progress monitor stop the build, and waits up to 10 s for that.
    """
    results: list[_T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    try:
        threading.Thread(target=work, name="adedge-build", daemon=True).start()
        # Not Thread.join: in Python 3.10 and 3.11 an interrupted join marks the thread as finished.
        while not done.wait(0.2):
            pass
    except BaseException:
        cancelled.set()
        done.wait(10)
        raise
    if errors:
        raise errors[0]
    return results[0]
