"""Execute a plan with TensorRT (8.5 to 11) or TensorRT-RTX through pycuda.

Uses the API that all these versions share (named tensors, `set_tensor_address`, `execute_async_v3`) and tests for the
few members that were added or removed. Buffers are allocated once, for the largest batch; those on the host are
page-locked, so that copies run asynchronously. A plan with several optimisation profiles gets one execution context per
profile, all in one block of scratch memory, and a batch runs in the profile that was tuned closest to it.
"""

from __future__ import annotations

import json
import logging
import platform
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from adedge.errors import EngineError, MissingDependency
from adedge.runtime.backends import Array, FixedBuffers, MachineInfo
from adedge.runtime.cuda.driver import Gpu, Resources, load_cuda
from adedge.specs import Target

messages = logging.getLogger(__name__)
"""Receives TensorRT's messages."""

_NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


@dataclass(frozen=True, kw_only=True)
class Libraries:
    """The two libraries that execution requires: ``trt`` (tensorrt or tensorrt_rtx) and ``cuda`` (pycuda's driver)."""

    trt: Any
    cuda: Any


def load_tensorrt(target: Target) -> Any:
    """Import tensorrt or tensorrt_rtx. Raises `MissingDependency`, which says how to install it."""
    try:
        if target == "tensorrt-rtx":
            import tensorrt_rtx as trt
        else:
            import tensorrt as trt
    except ImportError as exc:
        if target == "tensorrt-rtx":
            raise MissingDependency("tensorrt-rtx", "rtx", "a TensorRT-RTX engine") from exc
        raise MissingDependency(
            "tensorrt",
            "tensorrt",
            "a TensorRT engine (on a Jetson TensorRT comes with JetPack: 'sudo apt install nvidia-jetpack' and a "
            "virtual environment made with --system-site-packages)",
        ) from exc
    return trt


def load_libraries(target: Target) -> Libraries:
    """Import TensorRT and pycuda. Raises `MissingDependency`, or `EngineError` if there is no NVIDIA driver."""
    trt = load_tensorrt(target)
    return Libraries(trt=trt, cuda=load_cuda(f"executing a {_NAMES[target]} engine"))


def title(trt: Any) -> str:
    """The library's name and version for messages: "TensorRT 10.3.0"."""
    return f"{'TensorRT-RTX' if trt.__name__ == 'tensorrt_rtx' else 'TensorRT'} {trt.__version__}"


def machine_info(libraries: Libraries) -> MachineInfo:
    """The library version, processor and GPU (CUDA device 0) that plans run with."""
    device = libraries.cuda.Device(0)
    major, minor = device.compute_capability()
    return MachineInfo(
        library_version=str(libraries.trt.__version__),
        machine=platform.machine(),
        gpu=str(device.name()),
        compute_capability=f"{major}.{minor}",
    )


class Log:
    """TensorRT's errors and warnings during one operation, oldest first."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def clear(self) -> None:
        """Discard all messages, before the next operation."""
        self.errors.clear()
        self.warnings.clear()

    def explain(self) -> str:
        """The errors on one line, or a note that there are none."""
        return "; ".join(_single_lines(self.errors)) or "it gave no reason"

    def unique_warnings(self) -> tuple[str, ...]:
        """The distinct warnings, one line each."""
        return _single_lines(self.warnings)


def _single_lines(messages: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(" ".join(message.split()) for message in messages))


@cache
def logger_of(trt: Any) -> tuple[Any, Log]:
    """The process-wide logger for a TensorRT module, and its `Log`: TensorRT ignores any second logger.

    All messages also go to Python's logging, under this module's name.
    """
    log = Log()
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.CRITICAL,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.INFO,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class comes from a module without type information
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            messages.log(level, "%s", msg)
            if level >= logging.ERROR:
                log.errors.append(msg)
            elif level == logging.WARNING:
                log.warnings.append(msg)

    return Logger(), log


class ScratchMemory:
    """Device memory that execution contexts use in turn: sized for the largest of them, not for their sum.

    TensorRT keeps a network's activations there while it runs. Contexts may share it if they run one after the other,
    on one stream; so may the engines of several detectors on one device.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._resources = Resources(gpu)
        self._contexts: list[Any] = []
        self._address = 0
        self.size = 0

    def attach(self, context: Any, size: int) -> None:
        """Assign ``size`` bytes to a context; if that needs a larger block, earlier contexts move to it.

        Raises `EngineError` if the device has too little memory.
        """
        if size > self.size:
            grown = Resources(self._resources.gpu)
            self._address, self.size = grown.device(size, "the engine's activations"), size
            for earlier in self._contexts:
                self._assign(earlier)
            self._resources.close()
            self._resources = grown
        self._contexts.append(context)
        self._assign(context)

    def _assign(self, context: Any) -> None:
        if self.size == 0:
            return  # a network without activations
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(self._address, self.size)
        else:
            context.device_memory = self._address

    def close(self) -> None:
        """Free the memory; the contexts must be destroyed first."""
        self._contexts.clear()
        self._resources.close()
        self._address = self.size = 0


@dataclass(frozen=True)
class Profile:
    """An optimisation profile: the minimum, optimum and maximum batch that it was built for."""

    min: int
    opt: int
    max: int


def profile_for(profiles: Sequence[Profile], n: int) -> int:
    """The index of the profile to run n frames in: the one with the least padding, then the one tuned closest to n.

    Raises `EngineError` if n exceeds the maximum of every profile.
    """
    candidates = [index for index, limits in enumerate(profiles) if n <= limits.max]
    if not candidates:
        largest = max(limits.max for limits in profiles)
        raise EngineError(
            f"a batch of {n} frames exceeds this plan's maximum of {largest}: "
            "build the engine again with a larger --batch"
        )
    # A profile computes at least its minimum batch.
    return min(candidates, key=lambda index: (max(profiles[index].min - n, 0), abs(profiles[index].opt - n)))


class TensorRTBackend(FixedBuffers):
    """A plan executed on CUDA device 0: `run` copies to and from the device, `enqueue` does not.

    ``batch`` is the plan's (minimum, maximum) frames per batch; smaller batches are padded to the minimum. ``dla_core``
    must be the one that the plan was built for. ``trusted_code`` lets a version-compatible plan run the host code that
    it contains: check the plan's digest first. ``scratch`` is shared with other engines that run on ``stream``, one
    after the other. A thread other than the one that created the backend may use it.

    ``device_input`` and ``device_outputs`` are addresses of float32 device memory in the layout of `input` and
    `outputs`; ``shape_changes`` counts changes of the input shape, each of which invalidates a captured CUDA graph.
    """

    def __init__(
        self,
        plan: bytes,
        libraries: Libraries,
        *,
        batch: tuple[int, int],
        dla_core: int | None = None,
        trusted_code: bool = False,
        gpu: Gpu | None = None,
        stream: Any = None,
        scratch: ScratchMemory | None = None,
    ) -> None:
        self.gpu = gpu or Gpu(libraries.cuda)
        self._trt = libraries.trt
        self._contexts: list[Any] = []
        self._own_scratch: ScratchMemory | None = None
        self.shape_changes = 0
        with self.gpu.current(), Resources(self.gpu) as self._resources:
            self._runtime, self._engine = _deserialise(libraries.trt, plan, dla_core, trusted_code)
            try:
                self._set_up(batch, stream, scratch)
            except BaseException:
                self._release_engine()
                raise

    def _set_up(self, batch: tuple[int, int], stream: Any, scratch: ScratchMemory | None) -> None:
        """Create the contexts and buffers, and bind the buffers' addresses."""
        self._input_name, self.output_names = _tensor_names(self._trt, self._engine)
        self._profiles = _profiles(self._engine, self._input_name, batch)
        if scratch is None and len(self._profiles) > 1:
            scratch = self._own_scratch = ScratchMemory(self.gpu)
        self.stream = stream or self.gpu.stream()
        for index in range(len(self._profiles)):
            self._contexts.append(self._context(index, scratch))
        self._shape_n = [0] * len(self._contexts)
        shapes = self._resolve_shapes(batch[1])
        super().__init__(shapes[0], shapes[1:])
        names = (self._input_name, *self.output_names)
        addresses = [
            self._resources.device(array.nbytes, f"the tensor '{name}'")
            for name, array in zip(names, (self.input, *self.outputs), strict=True)
        ]
        self.device_input, self.device_outputs = addresses[0], tuple(addresses[1:])
        for context in self._contexts:
            for name, address in zip(names, addresses, strict=True):
                if not context.set_tensor_address(name, address):
                    raise EngineError(f"TensorRT refuses the memory of tensor '{name}': build the engine again")

    def _context(self, profile: int, scratch: ScratchMemory | None) -> Any:
        """Create an execution context for one profile, in shared scratch memory if there is some."""
        if scratch is None:
            context = self._engine.create_execution_context()
        elif hasattr(self._trt, "ExecutionContextAllocationStrategy"):
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
        else:
            context = self._engine.create_execution_context_without_device_memory()
        if context is None:
            raise EngineError(f"TensorRT cannot set the plan up: {logger_of(self._trt)[1].explain()}")
        if scratch is not None:
            scratch.attach(context, _scratch_size(self._engine))
        if profile > 0 and not context.set_optimization_profile_async(profile, self.stream.handle):
            raise EngineError(f"TensorRT refuses its own profile {profile}: build the engine again")
        return context

    def run(self, n: int) -> None:
        """Copy ``input[:n]`` to the GPU, execute, copy ``outputs[i][:n]`` back, and wait for completion."""
        self._check(n)
        cuda = self.gpu.cuda
        with self.gpu.current():
            try:
                cuda.memcpy_htod_async(self.device_input, self.input[:n], self.stream)
                self.enqueue(n)
                for host, address in zip(self.outputs, self.device_outputs, strict=True):
                    cuda.memcpy_dtoh_async(host[:n], address, self.stream)
                self.stream.synchronize()
            except cuda.Error as exc:
                raise EngineError(f"CUDA failed while running the engine: {exc}") from exc

    def enqueue(self, n: int) -> None:
        """Enqueue the network on ``stream``, from ``device_input`` to ``device_outputs``, without waiting.

        The CUDA context must be current. Raises `EngineError` if TensorRT fails.
        """
        self._check(n)
        profile = profile_for(self._profiles, n)
        context, frames = self._contexts[profile], max(n, self._profiles[profile].min)
        if frames != self._shape_n[profile]:
            self._set_shape(context, frames)
            self._shape_n[profile] = frames
            self.shape_changes += 1
        if not context.execute_async_v3(self.stream.handle):
            reason = logger_of(self._trt)[1].explain()
            raise EngineError(f"TensorRT failed to start the engine: {reason}; build it again on this machine")

    def layers(self) -> tuple[Layer, ...]:
        """The plan's layers, in as much detail as the plan was built with; may be empty."""
        return layers_from_inspector(_inspector_json(self._trt, self._engine))

    def layer_counts(self) -> dict[str, int]:
        """The number of layers per output precision ("unknown" if not reported), most frequent first."""
        return dict(Counter(layer.precision or "unknown" for layer in self.layers()).most_common())

    def close(self) -> None:
        """Free the plan and the device memory.

        The host buffers stay readable: they keep the CUDA context alive until the last of them is gone.
        """
        if self._closed:
            return
        super().close()
        with self.gpu.current():
            with suppress(self.gpu.cuda.Error):  # already raised when it occurred
                self.stream.synchronize()
            self._release_engine()
        self._resources.close()

    def _release_engine(self) -> None:
        """Destroy the contexts before their engine, that before its runtime, and free their memory last."""
        self._contexts.clear()
        del self._engine, self._runtime
        if self._own_scratch is not None:
            self._own_scratch.close()

    def _set_shape(self, context: Any, frames: int) -> None:
        shape = (frames, *self._frame_shape)
        if not context.set_input_shape(self._input_name, shape):
            raise EngineError(f"TensorRT refuses an input of {shape}: build the engine again with this batch")

    def _resolve_shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Set the input shape for ``batch``, and return the shapes of the input and the outputs."""
        self._frame_shape = tuple(self._engine.get_tensor_shape(self._input_name))[1:]
        profile = profile_for(self._profiles, batch)
        context = self._contexts[profile]
        self._set_shape(context, batch)
        self._shape_n[profile] = batch
        shapes = [tuple(context.get_tensor_shape(name)) for name in (self._input_name, *self.output_names)]
        if any(size < 0 for shape in shapes for size in shape):
            raise EngineError(f"the plan's tensors have no fixed size at batch {batch} ({shapes}): export it again")
        return shapes

    def _allocate(self, shape: Sequence[int]) -> Array:
        """Page-locked host memory, zeroed."""
        array: Array = self.gpu.pinned(shape, np.float32, "an engine's tensor")
        return array


def _profiles(engine: Any, input_name: str, batch: tuple[int, int]) -> list[Profile]:
    """The plan's profiles; if there is only one, its limits are the engine record's ``batch``."""
    count = engine.num_optimization_profiles
    if count <= 1:
        return [Profile(batch[0], batch[1], batch[1])]
    shapes = [engine.get_tensor_profile_shape(input_name, index) for index in range(count)]
    return [Profile(*(int(next(iter(shape))) for shape in limits)) for limits in shapes]


def _scratch_size(engine: Any) -> int:
    """The most bytes of activations that one of the engine's contexts needs."""
    if hasattr(engine, "device_memory_size_v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of a built engine, after TensorRT fused what it could.

    ``kind`` ("Convolution") and ``precision`` ("int8", of its first output) are None unless the plan was built with
    detailed profiling verbosity.
    """

    name: str
    kind: str | None = None
    precision: str | None = None


_PRECISIONS = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}


def layers_from_inspector(text: str) -> tuple[Layer, ...]:
    """Parse the layers from an engine inspector's JSON.

    Up to TensorRT 10, an output has "Format/Datatype": "Row major linear FP32"; from 11 on, "DataType": "Float" or
    "FP32". A layer is either a name or an object. Raises `EngineError` if the text does not list layers.
    """
    try:
        entries = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as exc:
        raise EngineError(f"the engine inspector's output is not understood: {text[:80]!r}") from exc
    return tuple(_layer(entry) for entry in entries)


def _layer(entry: Any) -> Layer:
    if isinstance(entry, str):
        return Layer(name=entry)
    outputs = entry.get("Outputs") or [{}]
    data_type = str(outputs[0].get("DataType") or outputs[0].get("Format/Datatype") or "")
    words = re.findall(r"[a-z]+\d*", data_type.lower())
    precision = next((_PRECISIONS[word] for word in words if word in _PRECISIONS), None)
    return Layer(name=str(entry.get("Name", "")), kind=entry.get("LayerType"), precision=precision)


def _inspector_json(trt: Any, engine: Any) -> str:
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _deserialise(trt: Any, plan: bytes, dla_core: int | None, trusted_code: bool) -> tuple[Any, Any]:
    """Deserialise a plan: the runtime and the engine, both of which must outlive what they create."""
    logger, log = logger_of(trt)
    log.clear()
    runtime = trt.Runtime(logger)
    if trusted_code and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    if dla_core is not None:
        runtime.DLA_core = dla_core
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{title(trt)} cannot open the plan: {log.explain()}; build the engine again")
    return runtime, engine


def _tensor_names(trt: Any, engine: Any) -> tuple[str, tuple[str, ...]]:
    """The name of the only input and the names of the outputs, all float32. Raises `EngineError`."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = tuple(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT)
    if len(inputs) != 1 or not outputs:
        raise EngineError(
            f"the plan has inputs {inputs} and outputs {outputs}, but one input is expected, and at least one output: "
            "export it again"
        )
    for name in names:
        if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
            raise EngineError(
                f"the plan's tensor '{name}' is {engine.get_tensor_dtype(name)}, not FLOAT: export it again"
            )
    return inputs[0], outputs
