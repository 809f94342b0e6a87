"""Execute a plan with TensorRT (8.5 to 11) or TensorRT-RTX through pycuda.

Only what all these versions have is called: tensors by name, `set_tensor_address`, `execute_async_v3`. Buffers are
allocated once: the host's page-locked, so that copies run asynchronously, the device's at the largest batch. The CUDA
context is the device's primary one, which TensorRT's own CUDA runtime uses too; pycuda.autoinit would make a second
one in which TensorRT's handles are invalid.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from adedge.errors import EngineError, MissingDependency
from adedge.runtime.backend import Array, FixedBuffers
from adedge.runtime.engines import Here
from adedge.specs import Target

_NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


@dataclass(frozen=True, kw_only=True)
class Libraries:
    """The two libraries an executor needs: ``trt`` (the module tensorrt or tensorrt_rtx) and pycuda's driver module."""

    trt: Any
    cuda: Any


def load_tensorrt(target: Target) -> Any:
    """Import tensorrt or tensorrt_rtx. Raises `MissingDependency` saying where each comes from."""
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
    """Import TensorRT and pycuda. Raises `MissingDependency`, or `EngineError` where there is no NVIDIA driver."""
    trt = load_tensorrt(target)
    try:
        import pycuda.driver as cuda
    except ModuleNotFoundError as exc:
        raise MissingDependency("pycuda", "cuda", f"executing a {_NAMES[target]} engine") from exc
    except ImportError as exc:
        raise EngineError(
            f"executing a {_NAMES[target]} engine needs the NVIDIA driver, which this machine lacks ({exc}): "
            "use --target onnxruntime here"
        ) from exc
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as exc:
        raise EngineError(f"the NVIDIA driver does not start ({exc}): look at 'nvidia-smi' or 'dmesg'") from exc
    if count == 0:
        raise EngineError(f"executing a {_NAMES[target]} engine needs an NVIDIA GPU, and CUDA sees none")
    return Libraries(trt=trt, cuda=cuda)


def title(trt: Any) -> str:
    """The library's name and version for messages: "TensorRT 10.3.0"."""
    return f"{'TensorRT-RTX' if trt.__name__ == 'tensorrt_rtx' else 'TensorRT'} {trt.__version__}"


def machine_here(libraries: Libraries) -> Here:
    """Version, processor and GPU (CUDA's device 0) that a plan would run with."""
    device = libraries.cuda.Device(0)
    major, minor = device.compute_capability()
    return Here(
        library_version=str(libraries.trt.__version__),
        machine=platform.machine(),
        gpu=str(device.name()),
        compute_capability=f"{major}.{minor}",
    )


class Log:
    """What TensorRT said while one thing was done: its messages of severity warning and error, oldest first."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def clear(self) -> None:
        """Forget everything, before the next thing is done."""
        self.errors.clear()
        self.warnings.clear()

    def explain(self) -> str:
        """The errors as one line, or a hint that there were none."""
        return "; ".join(_single_lines(self.errors)) or "it gave no reason"

    def cautions(self) -> tuple[str, ...]:
        """The warnings, each one line and once."""
        return _single_lines(self.warnings)


def _single_lines(messages: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(" ".join(message.split()) for message in messages))


@cache
def logger_of(trt: Any) -> tuple[Any, Log]:
    """The process's only logger for a TensorRT module, and what it collects: TensorRT ignores any further logger."""
    log = Log()

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class comes from a module without type information
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                log.errors.append(msg)
            elif severity == trt.ILogger.WARNING:
                log.warnings.append(msg)

    return Logger(), log


class TensorRTBackend(FixedBuffers):
    """A plan executed on CUDA's device 0, copies to and from the device included.

    ``batch`` is the plan's (least, most) frames at once: `run` with fewer than the least executes the least.
    ``dla_core`` must be what the plan was built with. ``trusted_code`` lets a version-compatible plan run the host code
    it carries; its digest must have been checked before. Another thread than the one that made it may use it.
    """

    def __init__(
        self,
        plan: bytes,
        libraries: Libraries,
        *,
        batch: tuple[int, int],
        dla_core: int | None = None,
        trusted_code: bool = False,
    ) -> None:
        self._cuda = libraries.cuda
        self._least = batch[0]
        self._cuda_context = self._checked("open the GPU", libraries.cuda.Device(0).retain_primary_context)
        with self._current():
            self._runtime, self._engine = _deserialise(libraries.trt, plan, dla_core, trusted_code)
            self._input_name, self.output_names = _tensor_names(libraries.trt, self._engine)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(f"TensorRT cannot set the plan up: {logger_of(libraries.trt)[1].explain()}")
            shapes = self._shapes(batch[1])
            super().__init__(shapes[0], shapes[1:])
            self._stream = self._checked("make a stream", self._cuda.Stream)
            self._device = [self._on_device(array) for array in (self.input, *self.outputs)]
            for name, memory in zip((self._input_name, *self.output_names), self._device, strict=True):
                if not self._context.set_tensor_address(name, int(memory)):
                    raise EngineError(f"TensorRT refuses the memory of tensor '{name}': build the engine again")
        self._shape_n = batch[1]

    def run(self, n: int) -> None:
        """Copy ``input[:n]`` to the GPU, execute, copy ``outputs[i][:n]`` back, and wait for all of it."""
        self._check(n)
        with self._current():
            try:
                self._execute(n)
            except self._cuda.Error as exc:
                raise EngineError(f"CUDA failed while running the engine: {exc}") from exc

    def close(self) -> None:
        """Free the plan and the device memory.

        The host buffers stay readable: they hold the CUDA context, which goes when the last of them goes.
        """
        if self._closed:
            return
        super().close()
        with self._current():
            self._stream.synchronize()
            # The context before the engine that made it, that before the runtime, and last the memory they point at.
            del self._context, self._engine, self._runtime
            for memory in self._device:
                memory.free()
            self._device = []

    def _execute(self, n: int) -> None:
        frames = max(n, self._least)
        if frames != self._shape_n:
            if not self._context.set_input_shape(self._input_name, (frames, *self.input.shape[1:])):
                raise EngineError(f"TensorRT refuses {frames} frame(s) at once: build the engine again with this batch")
            self._shape_n = frames
        self._cuda.memcpy_htod_async(self._device[0], self.input[:n], self._stream)
        if not self._context.execute_async_v3(self._stream.handle):
            raise EngineError("TensorRT failed to start the engine: build it again on this machine")
        for host, memory in zip(self.outputs, self._device[1:], strict=True):
            self._cuda.memcpy_dtoh_async(host[:n], memory, self._stream)
        self._stream.synchronize()

    def _shapes(self, batch: int) -> list[tuple[int, ...]]:
        """The input's and the outputs' shapes at the largest batch."""
        shape = (batch, *tuple(self._engine.get_tensor_shape(self._input_name))[1:])
        if not self._context.set_input_shape(self._input_name, shape):
            raise EngineError(f"TensorRT refuses an input of {shape}: build the engine again with this batch")
        shapes = [tuple(self._context.get_tensor_shape(name)) for name in (self._input_name, *self.output_names)]
        if any(size < 0 for shape in shapes for size in shape):
            raise EngineError(f"the plan's tensors have no fixed size at batch {batch} ({shapes}): export it again")
        return shapes

    def _allocate(self, shape: Sequence[int]) -> Array:
        """Page-locked host memory, zeroed."""
        empty = self._cuda.pagelocked_empty
        array: Array = self._checked("allocate page-locked memory", empty, tuple(shape), np.float32)
        array[:] = 0
        return array

    def _on_device(self, array: Array) -> Any:
        return self._checked(f"allocate {array.nbytes} bytes of GPU memory", self._cuda.mem_alloc, array.nbytes)

    def _checked(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._cuda.Error as exc:
            raise EngineError(f"CUDA cannot {what}: {exc}") from exc

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make the primary context current in this thread."""
        self._cuda_context.push()
        try:
            yield
        finally:
            self._cuda_context.pop()


def _deserialise(trt: Any, plan: bytes, dla_core: int | None, trusted_code: bool) -> tuple[Any, Any]:
    """The runtime and the engine, which must live as long as what they make."""
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
    """The name of the only input and those of the outputs, all float32."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = tuple(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT)
    if len(inputs) != 1 or not outputs:
        raise EngineError(f"the plan has inputs {inputs} and outputs {outputs}; one input is expected: export it again")
    for name in names:
        if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
            raise EngineError(
                f"the plan's tensor '{name}' is {engine.get_tensor_dtype(name)}, not FLOAT: export it again"
            )
    return inputs[0], outputs
