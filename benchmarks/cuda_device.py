"""CUDA device 0 through ctypes on libcuda, so that measuring the kernels requires neither pycuda nor TensorRT."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.errors import EngineError
from adedge.runtime.cuda.driver import Launch
from adedge.runtime.cuda.graph import Graph
from adedge.runtime.cuda.kernel_cache import KERNELS, Compiler, find_compiler, kernel_image

COMPUTE_CAPABILITY, MULTIPROCESSORS = (75, 76), 16  # attributes of cuDeviceGetAttribute


class Device:
    """CUDA device 0: memory, launches and events, with every status checked."""

    def __init__(self, compiler: Compiler | None = None, cache: Path | None = None) -> None:
        """Raises `EngineError` if there is no driver, no GPU, or no compiler."""
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as exc:
            raise EngineError(
                f"this machine has no NVIDIA driver ({exc}): run the benchmark on a machine with a GPU"
            ) from exc
        self._call("cuInit", 0)
        handle, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(handle), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle)
        self._call("cuCtxPushCurrent_v2", self._context)
        self._compiler = compiler or find_compiler()
        self._cache = cache
        self._modules: dict[str, ctypes.c_void_p] = {}
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._memory: list[int] = []
        self._stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self._stream), 0)
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self._events:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, 256, handle)
        self.name = name.value.decode()
        values = [self._attribute(attribute, handle) for attribute in COMPUTE_CAPABILITY]
        self.architecture = "sm_{}{}".format(*values)
        self.multiprocessors = self._attribute(MULTIPROCESSORS, handle)
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self.cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        self.compiler = self._compiler.name

    def _attribute(self, attribute: int, handle: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, handle)
        return value.value

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(result, ctypes.byref(text))
            raise EngineError(f"{name} failed: {(text.value or b'unknown error').decode()} ({result})")

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes, which live until `free`, and return their address."""
        address = ctypes.c_ulonglong()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._memory.append(address.value)
        return address.value

    def upload(self, array: NDArray[Any]) -> int:
        """Copy an array to new device memory and return its address."""
        contiguous = np.ascontiguousarray(array)
        address = self.allocate(contiguous.nbytes)
        self.fill(address, contiguous)
        return address

    def fill(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to a device address."""
        if array.size:
            host, size = array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes)
            self._call("cuMemcpyHtoD_v2", ctypes.c_ulonglong(address), host, size)

    def download(self, address: int, shape: Sequence[int], dtype: type = np.float32) -> NDArray[Any]:
        """Wait for all enqueued work, then copy an array from a device address."""
        array: NDArray[Any] = np.empty(shape, dtype)
        self._call("cuStreamSynchronize", self._stream)
        host, size = array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoH_v2", host, ctypes.c_ulonglong(address), size)
        return array

    def copy(self, target: int, origin: int, size: int) -> None:
        """Enqueue a copy on the device."""
        addresses = ctypes.c_ulonglong(target), ctypes.c_ulonglong(origin)
        self._call("cuMemcpyDtoDAsync_v2", *addresses, ctypes.c_size_t(size), self._stream)

    def free(self) -> None:
        """Free all allocated memory."""
        self._call("cuStreamSynchronize", self._stream)
        for address in self._memory:
            self._call("cuMemFree_v2", ctypes.c_ulonglong(address))
        self._memory.clear()

    def launch(self, launch: Launch) -> None:
        """Enqueue a kernel, which is compiled at its first launch."""
        arguments = ctypes.create_string_buffer(struct.pack(launch.signature, *launch.arguments))
        size = ctypes.c_size_t(struct.calcsize(launch.signature))
        extra = (ctypes.c_void_p * 5)(
            1, ctypes.cast(arguments, ctypes.c_void_p), 2, ctypes.cast(ctypes.pointer(size), ctypes.c_void_p), 0
        )
        function = self._functions.get(launch.kernel) or self._function(launch)
        self._call("cuLaunchKernel", function, *launch.grid, *launch.block, launch.shared, self._stream, None, extra)

    def _function(self, launch: Launch) -> ctypes.c_void_p:
        if launch.family not in self._modules:
            source = KERNELS / f"{launch.family}.cu"
            module = ctypes.c_void_p()
            image = kernel_image(source, self.architecture, self._compiler, self._cache)
            self._call("cuModuleLoadData", ctypes.byref(module), image)
            self._modules[launch.family] = module
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), self._modules[launch.family], launch.kernel.encode())
        if launch.shared > 48 << 10:
            self._call("cuFuncSetAttribute", function, 8, launch.shared)
        self._functions[launch.kernel] = function
        return function

    def capture(self, work: Callable[[], None]) -> Graph:
        """Capture what ``work`` enqueues as one graph, so that timings exclude the host's share of each launch."""
        return Graph(self._stream.value or 0, work)

    def replay(self, graph: Graph) -> None:
        """Enqueue a graph."""
        graph.launch(self._stream.value or 0)

    def milliseconds(self, work: Callable[[], None]) -> float:
        """GPU time of the work that ``work`` enqueues, in ms."""
        self._call("cuEventRecord", self._events[0], self._stream)
        work()
        self._call("cuEventRecord", self._events[1], self._stream)
        self._call("cuEventSynchronize", self._events[1])
        elapsed = ctypes.c_float()
        name = "cuEventElapsedTime_v2" if hasattr(self._library, "cuEventElapsedTime_v2") else "cuEventElapsedTime"
        self._call(name, ctypes.byref(elapsed), *self._events)
        return elapsed.value

    def close(self) -> None:
        """Release all memory, modules, events and the context."""
        self.free()
        for event in self._events:
            self._call("cuEventDestroy_v2", event)
        self._call("cuStreamDestroy_v2", self._stream)
        for module in self._modules.values():
            self._call("cuModuleUnload", module)
        self._call("cuCtxPopCurrent_v2", ctypes.byref(self._context))
        self._call("cuDevicePrimaryCtxRelease_v2", 0)
