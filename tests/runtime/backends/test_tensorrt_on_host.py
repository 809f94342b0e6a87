"""The TensorRT executor with real pycuda on the stand-in driver: its buffers, copies and stream are the driver's.

TensorRT itself is a stand-in: a module with the members that the executor calls, whose engine launches a kernel of
stand_in.cpp on the stream's handle, as TensorRT launches its own, and knows nothing of pycuda.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from adedge.benchmarks.latency import Contender, measure_latency
from adedge.console import note
from adedge.errors import EngineError
from adedge.runtime.backends.tensorrt import Libraries, TensorRTBackend
from adedge.runtime.cuda.driver import Gpu, load_cuda
from adedge.runtime.cuda.inspector import CudaInspector
from adedge.runtime.cuda.kernel_cache import Compiler
from adedge.runtime.host_inspector import HostInspector
from adedge.runtime.inspection import make_inspector
from adedge.runtime.pipeline import Stream, run
from adedge.runtime.sinks import ListSink
from adedge.runtime.sources import ArraySource
from adedge.specs import Dssim, InputSpec, ScoreSpec, Uniform

pytestmark = pytest.mark.usefixtures("pycuda")

SPEC = InputSpec(height=24, width=32, channels=1, color="gray")
SCORE = ScoreSpec(comparison=Dssim(), filters=(Uniform(size=4),))
OUT_OF_MEMORY, INVALID_VALUE = 2, 1


class Kernel:
    """identity_and_inverse through the driver's C interface."""

    def __init__(self, library: Path) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        assert self.driver.cuModuleLoadData(ctypes.byref(self.module), f"host:{library}".encode()) == 0
        name = b"identity_and_inverse"
        assert self.driver.cuModuleGetFunction(ctypes.byref(self.function), self.module, name) == 0

    def launch(self, stream: int, addresses: Sequence[int], size: int) -> bool:
        packed = ctypes.create_string_buffer(struct.pack("PPPi", *addresses, size))
        length = ctypes.c_size_t(28)
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(packed), 2, ctypes.addressof(length), 0)
        handle = ctypes.c_void_p(stream)
        return bool(self.driver.cuLaunchKernel(self.function, 1, 1, 1, 1, 1, 1, 0, handle, None, extra) == 0)

    def close(self) -> None:
        assert self.driver.cuModuleUnload(self.module) == 0


class Context:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.shape = kernel, (0,)
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return 1 <= shape[0] <= 4 and shape[1:] == SPEC.shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        return self.kernel.launch(stream, list(self.addresses.values()), int(np.prod(self.shape)))


def tensorrt(kernel: Kernel, profiles: Sequence[tuple[int, int, int]]) -> Any:
    """The module: its runtime gives an engine of "frame" -> "image_a", "image_b"."""
    names = ["frame", "image_a", "image_b"]
    engine = SimpleNamespace(
        num_io_tensors=3,
        num_optimization_profiles=len(profiles),
        device_memory_size_v2=1000,
        get_tensor_name=lambda index: names[index],
        get_tensor_mode=lambda name: "in" if name == "frame" else "out",
        get_tensor_dtype=lambda name: "FLOAT",
        get_tensor_shape=lambda name: (-1, *SPEC.shape),
        get_tensor_profile_shape=lambda name, index: [(n, *SPEC.shape) for n in profiles[index]],
        create_execution_context=lambda strategy=None: Context(kernel),
    )
    logger = type(
        "ILogger", (), {"__init__": lambda self: None, "INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3}
    )

    class Runtime:
        """A class, not a namespace: logger_of keeps modules in a cache, so they have to be hashable."""

        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            return engine

    class TensorRT:
        __name__ = "tensorrt"
        __version__ = "10.3.0"
        TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
        DataType = SimpleNamespace(FLOAT="FLOAT")
        ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
        ILogger = logger

    module: Any = TensorRT()
    module.Runtime = Runtime
    return module


@pytest.fixture
def backends(driver: Any, stand_in: Path, host_compiler: Compiler, tmp_path: Path) -> Iterator[Any]:
    """Makes backends on one GPU, and closes them after the test."""
    gpu = Gpu(load_cuda("a test"), compiler=host_compiler, cache=tmp_path)
    made: list[Any] = []
    with gpu.current():
        kernel = Kernel(stand_in)

    def make(profiles: Sequence[tuple[int, int, int]] = ((1, 4, 4),)) -> TensorRTBackend:
        libraries = Libraries(trt=tensorrt(kernel, profiles), cuda=gpu.cuda)
        made.append(TensorRTBackend(b"plan", libraries, batch=(1, 4), gpu=gpu))
        return cast(TensorRTBackend, made[-1])

    yield make
    for backend in made:
        backend.close()
    made.clear()
    with gpu.current():
        kernel.close()
    gpu.close()


@pytest.mark.parametrize("profiles", [[(1, 4, 4)], [(1, 1, 1), (2, 4, 4)]], ids=["one profile", "two profiles"])
def test_frames_go_in_and_results_come_out_for_every_n(backends: Any, driver: Any, profiles: Any) -> None:
    backend = backends(profiles)
    frames = np.random.default_rng(0).random((4, *SPEC.shape), dtype=np.float32)
    driver.reset()
    for n in (4, 1, 3, 3):
        backend.input[:n] = frames[:n] * n
        backend.run(n)
        np.testing.assert_array_equal(backend.outputs[0][:n], frames[:n] * n)
        np.testing.assert_array_equal(backend.outputs[1][:n], 1 - frames[:n] * n)
    one = 4 * int(np.prod(SPEC.shape))
    assert driver.counts(
        "copies_htod", "bytes_htod", "copies_dtoh", "bytes_dtoh", "allocations", "pageable_copies"
    ) == {
        "copies_htod": 4,
        "bytes_htod": 11 * one,
        "copies_dtoh": 8,
        "bytes_dtoh": 22 * one,
        "allocations": 0,
        "pageable_copies": 0,
    }


def test_another_thread_may_run_it(backends: Any) -> None:
    backend = backends()
    backend.input[:] = 0.25
    worker = threading.Thread(target=backend.run, args=(4,))
    worker.start()
    worker.join()
    assert (backend.outputs[1] == 0.75).all()


@pytest.mark.parametrize("after", range(3))
def test_memory_that_runs_out_leaks_nothing(backends: Any, driver: Any, after: int) -> None:
    before = driver.live()
    driver.fail("cuMemAlloc_v2", OUT_OF_MEMORY, after=after, times=2)
    with pytest.raises(EngineError, match=r"the tensor .* needs 12\.0 KiB of GPU memory, of which .* are free"):
        backends()
    assert driver.live().get("allocations", 0) == before.get("allocations", 0)


def test_a_refused_copy_is_one_sentence_and_the_next_frame_goes_on(backends: Any, driver: Any) -> None:
    backend = backends()
    driver.fail("cuMemcpyDtoHAsync_v2", INVALID_VALUE)
    with pytest.raises(EngineError, match="CUDA failed while running the engine: .*invalid argument"):
        backend.run(1)
    backend.run(1)


def inspected(inspector: Any) -> list[float]:
    pictures = [np.random.default_rng(seed).integers(0, 256, (30, 40), np.uint8) for seed in range(5)]
    sink = ListSink()
    run([Stream(ArraySource(pictures), [sink])], inspector, policy="every", batch=2)
    inspector.close()
    return [verdict.score for verdict in sink.verdicts]


def chosen(backend: TensorRTBackend, *, host_scoring: bool = False) -> Any:
    """What `adedge run` inspects with."""
    return make_inspector(backend, SPEC, SCORE, threshold=0.5, maps="never", host_scoring=host_scoring, notify=note)


def test_adedge_run_scores_on_the_gpu_as_on_the_processor(backends: Any, driver: Any) -> None:
    backend = backends()
    on_gpu, on_host = chosen(backend), chosen(backend, host_scoring=True)
    assert isinstance(on_gpu, CudaInspector)
    assert isinstance(on_host, HostInspector)
    np.testing.assert_allclose(inspected(on_gpu), inspected(on_host), atol=1e-4)
    # Two slots: the second batch of each size is the first of its slot, so a graph comes with longer runs only.
    assert driver.count("launches preprocess") == 3


def test_adedge_run_falls_back_with_one_note(
    backends: Any, host_compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = backends()

    def refuse(source: Path, architecture: str) -> bytes:
        raise EngineError("nvcc cannot compile")

    backend.gpu._compiler = Compiler("none", (13, 0), refuse)
    inspector = chosen(backend)
    assert isinstance(inspector, HostInspector)
    assert len(inspected(inspector)) == 5
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("preprocessing and scoring on the processor: nvcc cannot compile") == 1


def test_the_report_times_what_adedge_run_does(backends: Any, driver: Any) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (30, 40), np.uint8) for seed in range(3)]
    contender = Contender(name="tensorrt/fp16", backend=backends())
    found = measure_latency([contender], images, SPEC, SCORE, frames=8, warmup=2)["tensorrt/fp16"]
    assert found.frame.p50 > found.network.p50 > 0
    assert driver.count("graph_launches") > 0
    assert driver.count("pageable_copies") == 0
