"""Opening a GPU, allocating, launching and failing: `adedge.runtime.cuda.driver` with pycuda on the stand-in driver."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from adedge.errors import EngineError, MissingDependency
from adedge.runtime.cuda.driver import Gpu, Launch, Resources, load_cuda
from adedge.runtime.cuda.kernel_cache import Compiler

pytestmark = pytest.mark.usefixtures("pycuda")

OUT_OF_MEMORY, INVALID_IMAGE, LAUNCH_FAILED = 2, 200, 719


def scale(address: int, factor: float, n: int, **changes: Any) -> Launch:
    plan = {"grid": (1, 1, 1), "block": (32, 1, 1), "signature": "Pfi", "arguments": (address, factor, n)}
    return Launch("stand_in", "scale", **{**plan, **changes})


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of kernels with one family; what it holds is compiled into stand_in.cpp's kernels."""
    (tmp_path / "stand_in.cu").write_text("// see stand_in.cpp\n")
    return tmp_path


@pytest.fixture
def compiler(stand_in: Path) -> Compiler:
    return Compiler("host", (13, 0), lambda source, architecture: f"host:{stand_in}".encode() + b"\0")


@pytest.fixture
def gpu(driver: Any, compiler: Compiler, sources: Path) -> Iterator[Gpu]:
    gpu = Gpu(load_cuda("a test"), compiler=compiler, cache=sources / "cache", kernels=sources)
    yield gpu
    gpu.close()


def test_the_device_is_described(driver: Any) -> None:
    driver.device(capability=(11, 0), integrated=True)
    gpu = Gpu(load_cuda("a test"))
    assert (gpu.compute_capability, gpu.architecture, gpu.integrated) == ((11, 0), "sm_110", True)
    assert gpu.name == "Host driver (no GPU)"


def test_a_kernel_runs_on_a_stream(gpu: Gpu, driver: Any) -> None:
    with gpu.current(), Resources(gpu) as resources:
        stream, host = gpu.stream(), gpu.pinned((4,), np.float32, "a test")
        host[:] = [1, 2, 3, 4]
        address = resources.device(host.nbytes, "a test")
        gpu.cuda.memcpy_htod_async(address, host, stream)
        gpu.launch(scale(address, 3.0, 4), stream)
        gpu.cuda.memcpy_dtoh_async(host, address, stream)
        assert host.tolist() == [1, 2, 3, 4]
        gpu.wait(stream)
        assert host.tolist() == [3, 6, 9, 12]
        del stream, host
        resources.close()
    assert driver.counts("launches scale", "modules_loaded") == {"launches scale": 1, "modules_loaded": 1}


def test_a_family_is_compiled_and_loaded_once(gpu: Gpu, driver: Any) -> None:
    with gpu.current():
        stream = gpu.stream()
        for _ in range(3):
            gpu.launch(scale(0, 1.0, 0), stream)
        gpu.wait(stream)
        del stream
    assert driver.count("modules_loaded") == 1


def test_memory_that_is_mapped_is_seen_by_both(gpu: Gpu) -> None:
    with gpu.current():
        stream, host = gpu.stream(), gpu.pinned((2,), np.float32, "a test", mapped=True)
        host[:] = [1, 2]
        gpu.launch(scale(gpu.mapped_address(host), 5.0, 2), stream)
        gpu.wait(stream)
        assert host.tolist() == [5, 10]
        plain = gpu.pinned((2,), np.float32, "a test")
        with pytest.raises(EngineError, match="cannot map host memory"):
            gpu.mapped_address(plain)
        del stream, host, plain


def test_another_thread_may_use_it(gpu: Gpu) -> None:
    got: list[float] = []

    def work() -> None:
        with gpu.current():
            stream, host = gpu.stream(), gpu.pinned((1,), np.float32, "a test", mapped=True)
            host[0] = 2
            gpu.launch(scale(gpu.mapped_address(host), 2.0, 1), stream)
            gpu.wait(stream)
            got.append(float(host[0]))
            del stream, host

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert got == [4.0]


def test_memory_that_is_not_there_says_what_was_asked_and_what_is_free(gpu: Gpu, driver: Any) -> None:
    driver.device(size=3 << 20)
    with (
        gpu.current(),
        pytest.raises(
            EngineError,
            match=r"the frames needs 4\.0 MiB of GPU memory, of which 3\.0 MiB of 3\.0 MiB are free: use a smaller",
        ),
    ):
        gpu.allocate(4 << 20, "the frames")


def test_page_locked_memory_that_is_not_there(gpu: Gpu, driver: Any) -> None:
    driver.fail("cuMemHostAlloc", OUT_OF_MEMORY)
    with (
        gpu.current(),
        pytest.raises(EngineError, match=r"allocate 1\.0 KiB of page-locked memory for frames: .*out of memory"),
    ):
        gpu.pinned((256,), np.float32, "frames")


def test_what_was_made_before_a_failure_is_given_back(gpu: Gpu, driver: Any) -> None:
    driver.fail("cuMemAlloc_v2", OUT_OF_MEMORY, after=2, times=2)
    with pytest.raises(EngineError, match="the third needs 4 bytes"), gpu.current(), Resources(gpu) as resources:
        for name in ("the first", "the second", "the third"):
            resources.device(4, name)
    assert driver.live().get("allocations", 0) == 0
    assert driver.counts("allocations", "frees") == {"allocations": 2, "frees": 2}


def test_a_refused_launch_names_the_kernel_and_how_it_was_launched(gpu: Gpu) -> None:
    refused = scale(0, 1.0, 0, grid=(7, 5, 3), block=(1024, 2, 1), shared=64)
    with (
        gpu.current(),
        pytest.raises(
            EngineError,
            match=r"cannot launch scale \(grid 7x5x3, block 1024x2x1, 64 bytes of shared memory\): .*invalid",
        ),
    ):
        gpu.launch(refused, gpu.stream())


def test_more_shared_memory_than_usual_is_asked_for(gpu: Gpu) -> None:
    with gpu.current():
        stream = gpu.stream()
        gpu.launch(scale(0, 1.0, 0, shared=64 << 10), stream)
        gpu.wait(stream)
        del stream


def test_a_failed_kernel_is_named_when_it_is_waited_for(gpu: Gpu, driver: Any) -> None:
    driver.fail("execute scale", LAUNCH_FAILED)
    with gpu.current():
        stream = gpu.stream()
        gpu.launch(scale(0, 1.0, 0), stream)
        with pytest.raises(
            EngineError, match=r"failed after scale \(grid 1x1x1.*unspecified launch failure.*restart the program"
        ):
            gpu.wait(stream)
        driver.reset()
        del stream


def test_too_few_arguments_are_found_before_the_launch() -> None:
    with pytest.raises(EngineError, match="scale takes 3 arguments, not 2"):
        Launch("stand_in", "scale", (1, 1, 1), (1, 1, 1), "Pfi", (0, 1.0))


def test_a_kernel_that_is_not_in_its_family(gpu: Gpu) -> None:
    with gpu.current(), pytest.raises(EngineError, match="cannot find unknown: .*named symbol not found"):
        gpu.launch(Launch("stand_in", "unknown", (1, 1, 1), (1, 1, 1), "", ()), gpu.stream())


def test_a_driver_older_than_the_compiler_is_told_before_it_refuses(
    driver: Any, compiler: Compiler, sources: Path
) -> None:
    driver.device(cuda=12040)
    gpu = Gpu(load_cuda("a test"), compiler=compiler, cache=sources / "cache", kernels=sources)
    with (
        gpu.current(),
        pytest.raises(EngineError, match=r"supports CUDA up to 12\.4, but the kernels would be compiled by host"),
    ):
        gpu.load("stand_in")


def test_code_that_the_driver_refuses(driver: Any, sources: Path) -> None:
    nonsense = Compiler("host", (13, 0), lambda source, architecture: b"\x7fELF\0")
    gpu = Gpu(load_cuda("a test"), compiler=nonsense, cache=sources / "cache", kernels=sources)
    with (
        gpu.current(),
        pytest.raises(EngineError, match=r"load the kernels of stand_in\.cu, compiled by host for sm_87: "),
    ):
        gpu.load("stand_in")


def test_a_machine_without_a_gpu(driver: Any) -> None:
    driver.enable(False)
    with pytest.raises(EngineError, match="executing an engine needs an NVIDIA GPU, and CUDA sees none"):
        load_cuda("executing an engine")


def test_a_driver_that_does_not_start(driver: Any) -> None:
    driver.fail("cuInit", 803)
    with pytest.raises(EngineError, match=r"does not start .*unsupported display driver.*nvidia-smi"):
        load_cuda("executing an engine")


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("libcuda.so.1: cannot open shared object file", "needs the NVIDIA driver, which this machine lacks"),
        ("/x/_driver.so: undefined symbol: cuEventElapsedTime_v2", "newer NVIDIA driver .*'cuEventElapsedTime_v2'"),
    ],
    ids=["no driver", "old driver"],
)
def test_drivers_that_pycuda_cannot_load(monkeypatch: pytest.MonkeyPatch, message: str, sentence: str) -> None:
    class Finder:
        """Makes the import of pycuda's driver module fail as a missing or old libcuda does."""

        @staticmethod
        def find_spec(name: str, path: object, target: object = None) -> None:
            if name == "pycuda.driver":
                raise ImportError(message)

    pycuda: Any = ModuleType("pycuda")
    pycuda.__path__ = []
    monkeypatch.setitem(sys.modules, "pycuda", pycuda)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(EngineError, match=sentence):
        load_cuda("executing an engine")


def test_without_pycuda_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(MissingDependency, match=r"executing an engine needs .*pip install -e '\.\[cuda\]'"):
        load_cuda("executing an engine")
