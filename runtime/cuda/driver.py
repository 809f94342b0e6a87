"""CUDA device 0 through pycuda: memory, streams, and launches of the kernels in runtime/kernels.

This is the only module that maps pycuda's errors to `EngineError`, naming the operation that failed. The CUDA context
is the device's primary context, which TensorRT's CUDA runtime uses too; pycuda.autoinit would create a second one, in
which TensorRT's handles are invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from adedge.errors import EngineError, MissingDependency
from adedge.runtime.cuda.kernel_cache import KERNELS, Compiler, find_compiler, kernel_image

_T = TypeVar("_T")

Dimensions = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One kernel launch, planned on the host: pure data that any driver interface can execute.

    family      the source file in runtime/kernels, without ".cu"
    kernel      the function in it
    grid, block blocks in the grid and threads in a block, (x, y, z)
    shared      dynamic shared memory in bytes
    signature   types of the arguments in `struct` notation: P address, i int32, f float32, q int64
    arguments   numbers, and addresses as integers
    """

    family: str
    kernel: str
    grid: Dimensions
    block: Dimensions
    signature: str
    arguments: tuple[int | float, ...]
    shared: int = 0

    def __post_init__(self) -> None:
        if len(self.signature) != len(self.arguments):
            raise EngineError(f"{self.kernel} takes {len(self.signature)} arguments, not {len(self.arguments)}")

    def __str__(self) -> str:
        grid, block = ("x".join(map(str, size)) for size in (self.grid, self.block))
        shared = f", {self.shared} bytes of shared memory" if self.shared else ""
        return f"{self.kernel} (grid {grid}, block {block}{shared})"


def aligned(size: int) -> int:
    """Bytes, rounded up so that what follows is aligned like a separate allocation."""
    return -(-size // 256) * 256


def load_cuda(purpose: str) -> Any:
    """Import and initialise pycuda's driver module for ``purpose`` ("executing an engine"), which errors name.

    Raises `MissingDependency` if pycuda is not installed; `EngineError` if there is no NVIDIA driver, it is too old
    for this pycuda, it does not start, or it finds no GPU.
    """
    try:
        import pycuda.driver as cuda
    except ModuleNotFoundError as exc:
        raise MissingDependency("pycuda", "cuda", purpose) from exc
    except ImportError as exc:
        if "undefined symbol" in str(exc):
            raise EngineError(
                f"{purpose} needs a newer NVIDIA driver than this machine's: pycuda was built for one that has "
                f"'{str(exc).rsplit(' ', 1)[-1]}'; update the driver, or build pycuda with this machine's CUDA toolkit"
            ) from exc
        raise EngineError(
            f"{purpose} needs the NVIDIA driver, which this machine lacks ({exc}): use --target onnxruntime here"
        ) from exc
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as exc:
        if "no CUDA-capable device" not in str(exc):
            raise EngineError(f"the NVIDIA driver does not start ({exc}): check 'nvidia-smi' or 'dmesg'") from exc
        count = 0
    if count == 0:
        raise EngineError(f"{purpose} needs an NVIDIA GPU, and CUDA sees none: use --target onnxruntime here")
    return cuda


class Gpu:
    """CUDA device 0, which runs the engine and the kernels.

    Calls that touch the device must be made inside ``with gpu.current():``, from any thread. ``compiler`` compiles the
    sources in ``kernels`` when they are first needed (by default the one found on this machine); ``cache`` is the
    folder for the compiled code.
    """

    def __init__(
        self, cuda: Any, *, compiler: Compiler | None = None, cache: Path | None = None, kernels: Path = KERNELS
    ) -> None:
        """``cuda``: the module from `load_cuda`. Raises `EngineError` if the context cannot be opened."""
        self.cuda = cuda
        device = self._call("open the GPU", cuda.Device, 0)
        self.name = str(device.name())
        self.compute_capability: tuple[int, int] = tuple(device.compute_capability())
        self._device = device
        self._context = self._call("open the GPU", device.retain_primary_context)
        self._compiler = compiler
        self._cache = cache
        self._kernels = kernels
        self._modules: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        self._launched: Launch | None = None

    @property
    def architecture(self) -> str:
        """The architecture that kernels are compiled for: "sm_87"."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}"

    @property
    def integrated(self) -> bool:
        """Whether the GPU shares its memory with the CPU, as on a Jetson."""
        return bool(self._device.get_attribute(self.cuda.device_attribute.INTEGRATED))

    @property
    def multiprocessors(self) -> int:
        """Number of multiprocessors; launches are planned to give each of them work."""
        return int(self._device.get_attribute(self.cuda.device_attribute.MULTIPROCESSOR_COUNT))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device's context current in this thread."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def allocate(self, size: int, what: str) -> Any:
        """Allocate ``size`` bytes of device memory; int() of the result is its address, ``free()`` frees it.

        Raises `EngineError` with ``what`` the memory was for, its size and the free memory.
        """
        try:
            return self.cuda.mem_alloc(size)
        except self.cuda.MemoryError as exc:
            free, total = self.cuda.mem_get_info()
            raise EngineError(
                f"{what} needs {_size(size)} of GPU memory, of which {_size(free)} of {_size(total)} are free: "
                "use a smaller --batch, or stop other programs on this GPU"
            ) from exc
        except self.cuda.Error as exc:
            raise EngineError(f"CUDA cannot allocate {_size(size)} for {what}: {exc}") from exc

    def pinned(self, shape: Sequence[int], dtype: DTypeLike, what: str, *, mapped: bool = False) -> NDArray[Any]:
        """Allocate zeroed page-locked host memory, which streams can copy from and to asynchronously.

        With ``mapped`` the device can access it in place, at `mapped_address`. Raises `EngineError` if the allocation
        fails.
        """
        flags = self.cuda.host_alloc_flags.DEVICEMAP if mapped else 0
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        request = f"allocate {_size(size)} of page-locked memory for {what}"
        array: NDArray[Any] = self._call(request, self.cuda.pagelocked_empty, tuple(shape), dtype, mem_flags=flags)
        array[...] = 0
        return array

    def mapped_address(self, array: NDArray[Any]) -> int:
        """Device address of an array from `pinned` with ``mapped``."""
        return int(self._call("map host memory", array.base.get_device_pointer))  # type: ignore[union-attr]

    def stream(self) -> Any:
        """Create a stream."""
        return self._call("create a stream", self.cuda.Stream)

    def event(self) -> Any:
        """Create an event, without timing, for a stream or the host to wait on another stream."""
        return self._call("create an event", self.cuda.Event, self.cuda.event_flags.DISABLE_TIMING)

    def load(self, family: str) -> None:
        """Compile and load a family of kernels ahead of their first launch.

        Raises `EngineError` if they cannot be compiled or the driver refuses the code.
        """
        if family in self._modules:
            return
        compiler = self._compiler or find_compiler()
        driver = self.cuda.get_driver_version()
        if compiler.version[0] > driver // 1000:
            raise EngineError(
                f"the NVIDIA driver supports CUDA up to {driver // 1000}.{driver % 1000 // 10}, but the kernels would "
                f"be compiled by {compiler.name}: update the driver, or install a CUDA {driver // 1000} toolkit"
            )
        image = kernel_image(self._kernels / f"{family}.cu", self.architecture, compiler, self._cache)
        self._modules[family] = self._call(
            f"load the kernels of {family}.cu, compiled by {compiler.name} for {self.architecture}",
            self.cuda.module_from_buffer,
            image,
        )

    def launch(self, launch: Launch, stream: Any) -> None:
        """Enqueue a kernel. Raises `EngineError` with the kernel and its launch configuration."""
        function = self._functions.get(launch.kernel) or self._function(launch)
        self._launched = launch
        try:
            function.prepared_async_call(
                launch.grid, launch.block, stream, *launch.arguments, shared_size=launch.shared
            )
        except self.cuda.Error as exc:
            raise EngineError(f"CUDA cannot launch {launch}: {exc}") from exc

    def wait(self, what: Any) -> None:
        """Wait for a stream or an event. Raises `EngineError` if enqueued work has failed."""
        try:
            what.synchronize()
        except self.cuda.Error as exc:
            after = f" after {self._launched}" if self._launched else ""
            raise EngineError(f"the GPU failed{after}: {exc}; its context is lost: restart the program") from exc

    def close(self) -> None:
        """Unload the kernels and release the device; a second call does nothing.

        Memory that is still allocated keeps the context alive until it is freed.
        """
        self._functions.clear()
        with self.current():
            self._modules.clear()

    def _function(self, launch: Launch) -> Any:
        """Look a kernel up and prepare it for its arguments and shared memory."""
        self.load(launch.family)
        function = self._call(f"find {launch.kernel}", self._modules[launch.family].get_function, launch.kernel)
        function.prepare(launch.signature)
        if launch.shared > 48 << 10:
            # Kernels must request more than the default limit of 48 KiB.
            attribute = self.cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call(f"reserve shared memory for {launch}", function.set_attribute, attribute, launch.shared)
        self._functions[launch.kernel] = function
        return function

    def _call(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except self.cuda.Error as exc:
            raise EngineError(f"CUDA cannot {what}: {exc}") from exc


class Resources:
    """Owns related allocations and releases them together, in reverse order, also if creating them fails midway."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._releases: list[Callable[[], Any]] = []

    def __enter__(self) -> Resources:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.close()

    def device(self, size: int, what: str) -> int:
        """Allocate device memory that this object owns, and return its address: see `Gpu.allocate`."""
        memory = self.gpu.allocate(size, what)
        self._releases.append(memory.free)
        return int(memory)

    def own(self, resource: _T, release: Callable[[], Any]) -> _T:
        """Take ownership of a resource, which ``release`` frees, and return it."""
        self._releases.append(release)
        return resource

    def close(self) -> None:
        """Release everything, in the device's context; a second call does nothing."""
        releases, self._releases = self._releases, []
        with self.gpu.current():
            for release in reversed(releases):
                try:
                    release()
                except self.gpu.cuda.Error:
                    # A lost context has already freed its memory, and its failure was already raised.
                    continue


def _size(size: int) -> str:
    """A readable number of bytes."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
