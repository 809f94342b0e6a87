"""The TensorRT executor's logic on stand-ins for tensorrt and pycuda: order, buffers, contexts, refusals.

The stand-in's stream runs nothing before `synchronize`, its device memory is apart from the host's, copies need
page-locked contiguous host memory and a current context. None of this is a GPU; what it shows is that a plan is driven
in the right order with the right addresses.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from adedge.errors import EngineError, MissingDependency
from adedge.runtime.backends.tensorrt import (
    Layer,
    Libraries,
    Profile,
    ScratchMemory,
    TensorRTBackend,
    layers_from_inspector,
    load_libraries,
    logger_of,
    machine_info,
    profile_for,
    title,
)
from adedge.runtime.cuda.driver import Gpu

SHAPE = (2, 4, 5)


class FakeCuda:
    """The part of pycuda.driver that the executor uses."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    host_alloc_flags = type("host_alloc_flags", (), {"DEVICEMAP": 2})

    def __init__(self) -> None:
        self.current = threading.local()
        self.memory: dict[int, np.ndarray] = {}
        self.page_locked: set[int] = set()
        self.fail: set[str] = set()
        self.allocations = 0
        self.Device = lambda index: self
        self.Stream = lambda: FakeStream(self)

    def retain_primary_context(self) -> FakeCuda:
        return self

    def compute_capability(self) -> tuple[int, int]:
        return 8, 7

    def name(self) -> str:
        return "Orin"

    def push(self) -> None:
        self.current.depth = getattr(self.current, "depth", 0) + 1

    def pop(self) -> None:
        self.current.depth -= 1

    def _needs_context(self, what: str) -> None:
        if getattr(self.current, "depth", 0) != 1 or what in self.fail:
            raise self.Error(f"{what} failed")

    def mem_get_info(self) -> tuple[int, int]:
        return 3 << 20, 64 << 20

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: type, mem_flags: int) -> np.ndarray:
        self._needs_context("pagelocked_empty")
        array = np.full(shape, np.nan, dtype)
        self.page_locked.add(array.ctypes.data)
        return array

    def mem_alloc(self, size: int) -> FakeMemory:
        if "memory" in self.fail:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        self._needs_context("mem_alloc")
        self.allocations += 1
        address = 1000 * self.allocations
        self.memory[address] = np.full(size // 4, np.nan, np.float32)
        return FakeMemory(self, address)

    def memcpy_htod_async(self, target: int, host: np.ndarray, stream: FakeStream) -> None:
        self._check_copy("memcpy_htod_async", host)
        stream.queue.append(lambda: self._put(target, host))

    def memcpy_dtoh_async(self, host: np.ndarray, origin: int, stream: FakeStream) -> None:
        self._check_copy("memcpy_dtoh_async", host)
        stream.queue.append(lambda: self._get(host, origin))

    def _check_copy(self, what: str, host: np.ndarray) -> None:
        self._needs_context(what)
        assert host.flags.c_contiguous
        assert host.ctypes.data in self.page_locked

    def _put(self, address: int, host: np.ndarray) -> None:
        self.memory[address][: host.size] = host.ravel()

    def _get(self, host: np.ndarray, address: int) -> None:
        host[:] = self.memory[address][: host.size].reshape(host.shape)


class FakeMemory:
    def __init__(self, cuda: FakeCuda, address: int) -> None:
        self.cuda, self.address = cuda, address

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        del self.cuda.memory[self.address]


class FakeStream:
    """Runs what was enqueued when someone waits for it, not before."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.queue: list[Callable[[], None]] = []
        self.handle = 77
        cuda.stream = self  # type: ignore[attr-defined]

    def synchronize(self) -> None:
        self.cuda._needs_context("synchronize")
        for work in self.queue:
            work()
        self.queue.clear()


class FakeTensorRT:
    """A module whose engine computes a = -frame and b = mean of frame, for 1 to 4 frames at once."""

    def __init__(self, cuda: FakeCuda, least: int = 1) -> None:
        self.cuda, self.least = cuda, least
        self.names = ["frame", "a", "b"]
        self.dtype = "FLOAT"
        self.opens = self.sets_up = self.takes_addresses = self.starts = True
        self.executed: list[int] = []
        self.profiles: list[tuple[int, int, int]] = [(least, 4, 4)]
        self.contexts: list[FakeContext] = []
        self.runtimes: list[Any] = []
        module: Any = ModuleType("tensorrt")
        module.__version__ = "10.3.0"
        module.TensorIOMode = type("TensorIOMode", (), {"INPUT": "in", "OUTPUT": "out"})
        module.DataType = type("DataType", (), {"FLOAT": "FLOAT"})
        module.ILogger = type(
            "ILogger", (), {"__init__": lambda s: None, "ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2, "INFO": 3}
        )
        module.Runtime = lambda logger: self._runtime(module, logger)
        self.module: ModuleType = module

    def _runtime(self, module: Any, logger: Any) -> Any:
        fake = self

        class Runtime:
            DLA_core = -1
            engine_host_code_allowed = False

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                if not fake.opens:
                    logger.log(module.ILogger.ERROR, "Version tag does not match")
                    return None
                return FakeEngine(fake)

        self.runtimes.append(Runtime())
        return self.runtimes[-1]


class FakeEngine:
    def __init__(self, fake: FakeTensorRT) -> None:
        self.fake = fake
        self.num_io_tensors = len(fake.names)

    def get_tensor_name(self, index: int) -> str:
        return self.fake.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name.startswith("frame") else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return self.fake.dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if name == "b" else (-1, *SHAPE)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.fake.profiles)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(frames, *SHAPE) for frames in self.fake.profiles[index]]

    device_memory_size = 4000

    def create_execution_context_without_device_memory(self) -> Any:
        self.fake.contexts.append(FakeContext(self.fake))
        return self.fake.contexts[-1]

    def create_execution_context(self, strategy: str | None = None) -> Any:
        assert strategy in (None, "USER_MANAGED")
        return self.create_execution_context_without_device_memory() if self.fake.sets_up else None


class FakeContext:
    def __init__(self, fake: FakeTensorRT) -> None:
        self.fake, self.n = fake, -1
        self.profile = 0
        self.device_memory = 0
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.n = shape[0]
        least, _, most = self.fake.profiles[self.profile]
        return least <= shape[0] <= most and tuple(shape[1:]) == SHAPE

    def set_optimization_profile_async(self, index: int, handle: int) -> bool:
        assert handle == 77
        self.profile = index
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.n,) if name == "b" else (self.n, *SHAPE)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.fake.takes_addresses

    def execute_async_v3(self, handle: int) -> bool:
        assert handle == 77
        n, memory, size = self.n, self.fake.cuda.memory, int(np.prod(SHAPE))

        def work() -> None:
            self.fake.executed.append(n)
            frames = memory[self.addresses["frame"]][: n * size].reshape(n, size)
            memory[self.addresses["a"]][: n * size] = -frames.ravel()
            memory[self.addresses["b"]][:n] = frames.mean(axis=1)

        self.fake.cuda.stream.queue.append(work)  # type: ignore[attr-defined]
        return self.fake.starts


def backend_on(fake: FakeTensorRT, **options: Any) -> TensorRTBackend:
    libraries = Libraries(trt=fake.module, cuda=fake.cuda)
    return TensorRTBackend(b"plan", libraries, **{"batch": (fake.least, 4), **options})


@pytest.fixture
def fake() -> FakeTensorRT:
    return FakeTensorRT(FakeCuda())


def test_frames_go_in_and_results_come_out_for_every_n(fake: FakeTensorRT) -> None:
    backend = backend_on(fake)
    frames = np.random.default_rng(0).random((4, *SHAPE), dtype=np.float32)
    assert (backend.batch, backend.input.shape, [o.shape for o in backend.outputs]) == (
        4,
        (4, *SHAPE),
        [(4, *SHAPE), (4,)],
    )
    for n in (4, 1, 3, 3):
        backend.input[:n] = frames[:n] * n
        for output in backend.outputs:
            output[:] = np.nan
        backend.run(n)
        np.testing.assert_array_equal(backend.outputs[0][:n], -frames[:n] * n)
        np.testing.assert_allclose(backend.outputs[1][:n], (frames[:n] * n).mean(axis=(1, 2, 3)), rtol=1e-6)
        assert np.isnan(backend.outputs[0][n:]).all()
    assert fake.executed == [4, 1, 3, 3]


def test_nothing_is_allocated_after_loading(fake: FakeTensorRT) -> None:
    backend = backend_on(fake)
    before = (fake.cuda.allocations, len(fake.cuda.page_locked))
    for n in (1, 2, 4):
        backend.run(n)
    assert (fake.cuda.allocations, len(fake.cuda.page_locked)) == before == (3, 3)


def test_fewer_frames_than_the_plan_takes_are_padded() -> None:
    fake = FakeTensorRT(FakeCuda(), least=3)
    backend = backend_on(fake)
    backend.input[:] = 2
    backend.run(1)
    assert fake.executed == [3]
    np.testing.assert_array_equal(backend.outputs[1], [2, 0, 0, 0])


def test_another_thread_may_run_it(fake: FakeTensorRT) -> None:
    backend = backend_on(fake)
    backend.input[:] = 1
    worker = threading.Thread(target=backend.run, args=(4,))
    worker.start()
    worker.join()
    np.testing.assert_array_equal(backend.outputs[1], [1, 1, 1, 1])


def test_closing_frees_the_device_memory_and_keeps_the_results_readable(fake: FakeTensorRT) -> None:
    backend = backend_on(fake)
    backend.run(1)
    backend.close()
    backend.close()
    assert fake.cuda.memory == {}
    assert backend.outputs[1][0] == 0
    with pytest.raises(EngineError, match="closed"):
        backend.run(1)


def test_dla_core_and_trust_reach_the_runtime(fake: FakeTensorRT) -> None:
    backend_on(fake)
    backend_on(fake, dla_core=1, trusted_code=True)
    settings = [(runtime.DLA_core, runtime.engine_host_code_allowed) for runtime in fake.runtimes]
    assert settings == [(-1, False), (1, True)]


def test_a_batch_runs_in_the_profile_that_was_tuned_nearest_to_it(fake: FakeTensorRT) -> None:
    fake.profiles = [(1, 1, 1), (2, 4, 4)]
    backend = backend_on(fake)
    backend.input[:] = 3
    for n in (1, 4, 2, 1):
        backend.run(n)
        np.testing.assert_array_equal(backend.outputs[1][:n], np.full(n, 3))
    assert [context.profile for context in fake.contexts] == [0, 1]
    assert fake.executed == [1, 4, 2, 1]
    # Both contexts compute in one block, which is not one of the tensors' and goes with the engine.
    scratch = {context.device_memory for context in fake.contexts}
    assert len(scratch) == 1
    assert scratch <= set(fake.cuda.memory)
    backend.close()
    assert fake.cuda.memory == {}


@pytest.mark.parametrize(
    ("limits", "n", "chosen"),
    [
        ([(1, 1, 1), (1, 8, 8)], 1, 0),
        ([(1, 1, 1), (1, 8, 8)], 2, 1),
        ([(1, 8, 8), (1, 2, 4)], 3, 1),
        ([(4, 8, 8), (2, 4, 4)], 1, 1),
        ([(4, 4, 4), (1, 8, 8)], 3, 1),
    ],
)
def test_profiles_are_chosen_by_what_they_were_tuned_for(
    limits: list[tuple[int, int, int]], n: int, chosen: int
) -> None:
    assert profile_for([Profile(*limit) for limit in limits], n) == chosen


def test_no_profile_takes_more_than_the_largest() -> None:
    with pytest.raises(EngineError, match="a batch of 9 frames exceeds this plan's maximum of 8"):
        profile_for([Profile(1, 1, 1), Profile(1, 8, 8)], 9)


def test_engines_share_scratch_memory_as_large_as_the_largest_needs(fake: FakeTensorRT) -> None:
    gpu = Gpu(fake.cuda)
    scratch = ScratchMemory(gpu)
    small, large = FakeContext(fake), FakeContext(fake)
    with gpu.current():
        scratch.attach(small, 400)
        scratch.attach(large, 800)
        assert small.device_memory == large.device_memory
        assert [memory.nbytes for memory in fake.cuda.memory.values()] == [800]
        scratch.close()
    assert fake.cuda.memory == {}


def test_contexts_of_newer_versions_are_told_the_size_too(fake: FakeTensorRT) -> None:
    fake.module.ExecutionContextAllocationStrategy = type("Strategy", (), {"USER_MANAGED": "USER_MANAGED"})  # type: ignore[attr-defined]
    fake.profiles = [(1, 1, 1), (1, 4, 4)]
    given: list[tuple[int, int]] = []
    try:
        FakeContext.set_device_memory = lambda self, address, size: given.append((address, size))  # type: ignore[attr-defined]
        FakeEngine.device_memory_size_v2 = 8000  # type: ignore[attr-defined]
        backend_on(fake)
    finally:
        del FakeContext.set_device_memory, FakeEngine.device_memory_size_v2  # type: ignore[attr-defined]
    assert [size for _, size in given] == [8000, 8000]


DETAILED = {"Name": "Conv_0", "LayerType": "CaskConvolution"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["Conv_0 + Relu", "Reformat"], (Layer(name="Conv_0 + Relu"), Layer(name="Reformat"))),
        (
            [
                {
                    **DETAILED,
                    "Outputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
                },
                {**DETAILED, "Outputs": [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}]},
            ],
            (
                Layer(name="Conv_0", kind="CaskConvolution", precision="int8"),
                Layer(name="Conv_0", kind="CaskConvolution", precision="fp16"),
            ),
        ),
        (
            [
                {**DETAILED, "Outputs": [{"Format": "Row major linear", "DataType": "Half"}]},
                {**DETAILED, "Outputs": []},
            ],
            (
                Layer(name="Conv_0", kind="CaskConvolution", precision="fp16"),
                Layer(name="Conv_0", kind="CaskConvolution"),
            ),
        ),
    ],
    ids=["names", "up to 10", "from 11"],
)
def test_the_inspectors_json_is_read_in_both_forms(layers: list[Any], expected: tuple[Layer, ...]) -> None:
    for bindings in ({"Bindings": ["frame", "map"]}, {"I/O Tensors": [{"Name": "frame"}]}):
        assert layers_from_inspector(json.dumps({"Layers": layers, **bindings})) == expected


def test_layers_are_counted_by_precision(fake: FakeTensorRT) -> None:
    int8 = {**DETAILED, "Outputs": [{"DataType": "Int8"}]}
    text = json.dumps({"Layers": [{**DETAILED, "Outputs": [{"DataType": "Half"}]}, int8, "Reformat", int8]})
    fake.module.LayerInformationFormat = type("LayerInformationFormat", (), {"JSON": "JSON"})  # type: ignore[attr-defined]
    backend = backend_on(fake)
    inspector = type(
        "EngineInspector", (), {"get_engine_information": lambda self, form: text if form == "JSON" else ""}
    )
    backend._engine.create_engine_inspector = inspector
    assert backend.layer_counts() == {"int8": 2, "fp16": 1, "unknown": 1}


@pytest.mark.parametrize("text", ["", "[]", '{"Layer": []}', "Layers: none"])
def test_an_answer_that_is_no_inspectors_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="not understood"):
        layers_from_inspector(text)


def test_tensorrts_messages_reach_pythons_logging(fake: FakeTensorRT, caplog: pytest.LogCaptureFixture) -> None:
    logger, log = logger_of(fake.module)
    with caplog.at_level(logging.DEBUG, logger="adedge.runtime.backends.tensorrt"):
        for severity, text in enumerate(["broken", "failed", "slow", "built", "tried"]):
            logger.log(severity, text)
    levels = [logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG]
    assert [(record.levelno, record.message) for record in caplog.records] == list(
        zip(levels, ["broken", "failed", "slow", "built", "tried"], strict=True)
    )
    assert (log.errors, log.warnings) == (["broken", "failed"], ["slow"])


def opens_not(fake: FakeTensorRT) -> None:
    fake.opens = False


def sets_up_not(fake: FakeTensorRT) -> None:
    fake.sets_up = False


def takes_no_addresses(fake: FakeTensorRT) -> None:
    fake.takes_addresses = False


def is_half(fake: FakeTensorRT) -> None:
    fake.dtype = "HALF"


def has_two_inputs(fake: FakeTensorRT) -> None:
    fake.names = ["frame", "frame2", "a"]


def has_no_device_memory(fake: FakeTensorRT) -> None:
    fake.cuda.fail = {"mem_alloc"}


def has_too_little_memory(fake: FakeTensorRT) -> None:
    fake.cuda.fail = {"memory"}


def has_no_host_memory(fake: FakeTensorRT) -> None:
    fake.cuda.fail = {"pagelocked_empty"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (opens_not, "cannot open the plan: Version tag does not match"),
        (sets_up_not, "cannot set the plan up"),
        (takes_no_addresses, "refuses the memory of tensor 'frame'"),
        (is_half, "is HALF, not FLOAT"),
        (has_two_inputs, "one input is expected"),
        (has_no_device_memory, "cannot allocate 640 bytes for the tensor 'frame': mem_alloc failed"),
        (
            has_too_little_memory,
            "the tensor 'frame' needs 640 bytes of GPU memory, of which 3.0 MiB of 64.0 MiB are free",
        ),
        (has_no_host_memory, "cannot allocate 640 bytes of page-locked memory for an engine's tensor"),
    ],
)
def test_what_cannot_be_loaded_says_why(
    fake: FakeTensorRT, spoil: Callable[[FakeTensorRT], None], message: str
) -> None:
    spoil(fake)
    with pytest.raises(EngineError, match=message):
        backend_on(fake)
    assert fake.cuda.current.depth == 0


def test_a_batch_beyond_the_plans_is_refused(fake: FakeTensorRT) -> None:
    with pytest.raises(EngineError, match="refuses an input of"):
        backend_on(fake, batch=(1, 5))


def test_a_failure_while_running_is_one_sentence(fake: FakeTensorRT) -> None:
    backend = backend_on(fake)
    fake.cuda.fail = {"memcpy_dtoh_async"}
    with pytest.raises(EngineError, match="CUDA failed while running the engine: memcpy_dtoh_async failed"):
        backend.run(1)
    fake.cuda.fail = set()
    fake.starts = False
    with pytest.raises(EngineError, match="failed to start the engine"):
        backend.run(1)
    assert fake.cuda.current.depth == 0


def test_this_machine_is_described(fake: FakeTensorRT) -> None:
    here = machine_info(Libraries(trt=fake.module, cuda=fake.cuda))
    assert (here.library_version, here.gpu, here.compute_capability) == ("10.3.0", "Orin", "8.7")
    assert title(fake.module) == "TensorRT 10.3.0"


def test_missing_packages_and_drivers_are_told_apart(fake: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match=r"JetPack.*pip install -e '\.\[tensorrt\]'"):
        load_libraries("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependency, match=r"pip install -e '\.\[rtx\]'"):
        load_libraries("tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", fake.module)
    pycuda: Any = ModuleType("pycuda")
    pycuda.__path__ = []
    monkeypatch.setitem(sys.modules, "pycuda", pycuda)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    with pytest.raises(MissingDependency, match=r"pip install -e '\.\[cuda\]'"):
        load_libraries("tensorrt")


@pytest.mark.parametrize(("fails", "count", "message"), [(True, 1, "does not start"), (False, 0, "CUDA sees none")])
def test_a_machine_without_a_working_gpu_is_told(
    fake: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, fails: bool, count: int, message: str
) -> None:
    cuda: Any = ModuleType("pycuda.driver")
    cuda.Error = FakeCuda.Error

    def init() -> None:
        if fails:
            raise FakeCuda.Error("cuInit failed: unknown error")

    cuda.init = init
    cuda.Device = type("Device", (), {"count": staticmethod(lambda: count)})
    pycuda: Any = ModuleType("pycuda")
    pycuda.driver = cuda
    for name, module in (("tensorrt", fake.module), ("pycuda", pycuda), ("pycuda.driver", cuda)):
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(EngineError, match=message):
        load_libraries("tensorrt")
