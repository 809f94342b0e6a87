"""The stand-in for libcuda keeps the rules of a real one: a test on a double that allows everything shows nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adedge.errors import EngineError
from adedge.runtime.cuda.graph import Graph, TimingEvent

pytestmark = pytest.mark.usefixtures("pycuda")


@pytest.fixture
def cuda(driver: Any) -> Iterator[Any]:
    """pycuda's driver module with the primary context current."""
    import pycuda.driver as cuda

    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        yield cuda
    finally:
        context.pop()


@pytest.fixture
def scale(cuda: Any, stand_in: Path) -> Iterator[Any]:
    """Launches the kernel scale(float *x, float factor, int n)."""
    module = cuda.module_from_buffer(f"host:{stand_in}".encode() + b"\0")
    held = [module.get_function("scale"), module]
    del module

    def launch(*arguments: Any, signature: str = "Pfi", shared_size: int = 0) -> None:
        held[0].prepare(signature)
        held[0].prepared_async_call(*arguments, shared_size=shared_size)

    yield launch
    held.clear()


def host(cuda: Any, values: Any) -> np.ndarray:
    array: np.ndarray = cuda.pagelocked_empty((len(values),), np.float32)
    array[:] = values
    return array


def test_without_a_test_there_is_no_device(loaded_driver: Any) -> None:
    import pycuda.driver as cuda

    with pytest.raises(cuda.Error, match="no CUDA-capable device"):
        cuda.init()


def test_pytorch_beside_it_sees_no_gpu_and_does_not_complain(loaded_driver: Any) -> None:
    """Tests that train run in the same process."""
    torch = pytest.importorskip("torch", reason="asks PyTorch for a GPU")
    assert not torch.cuda.is_available()


def test_work_on_a_stream_waits_until_somebody_waits_for_it(cuda: Any, driver: Any, scale: Any) -> None:
    given, got, stream = host(cuda, [1, 2, 3]), host(cuda, [0, 0, 0]), cuda.Stream()
    memory = cuda.mem_alloc(12)
    cuda.memcpy_htod_async(memory, given, stream)
    scale((1, 1, 1), (32, 1, 1), stream, int(memory), 2.0, 3)
    cuda.memcpy_dtoh_async(got, memory, stream)
    assert got.tolist() == [0, 0, 0]
    given[:] = 5  # page-locked memory is read when the copy runs
    stream.synchronize()
    assert got.tolist() == [10, 10, 10]
    assert driver.counts("launches", "launches scale", "copies_htod", "copies_dtoh", "bytes_dtoh") == {
        "launches": 1,
        "launches scale": 1,
        "copies_htod": 1,
        "copies_dtoh": 1,
        "bytes_dtoh": 12,
    }
    memory.free()


def test_pageable_memory_is_read_at_the_call_and_counted(cuda: Any, driver: Any) -> None:
    given, stream, memory = np.ones(3, np.float32), cuda.Stream(), cuda.mem_alloc(12)
    got = host(cuda, [0, 0, 0])
    cuda.memcpy_htod_async(memory, given, stream)
    given[:] = 5
    cuda.memcpy_dtoh_async(got, memory, stream)
    stream.synchronize()
    assert got.tolist() == [1, 1, 1]
    assert driver.count("pageable_copies") == 1
    memory.free()


def test_a_stream_waits_for_anothers_event_and_for_nothing_else(cuda: Any, scale: Any) -> None:
    upload, compute, ready = cuda.Stream(), cuda.Stream(), cuda.Event()
    given, got, memory = host(cuda, [4]), host(cuda, [0]), cuda.mem_alloc(4)
    cuda.memcpy_htod_async(memory, given, upload)
    ready.record(upload)
    scale((1, 1, 1), (1, 1, 1), upload, int(memory), 100.0, 1)  # after the event
    compute.wait_for_event(ready)
    cuda.memcpy_dtoh_async(got, memory, compute)
    compute.synchronize()
    assert got.tolist() == [4]
    upload.synchronize()
    memory.free()


def test_without_the_event_the_copy_comes_too_early(cuda: Any) -> None:
    upload, compute = cuda.Stream(), cuda.Stream()
    given, got, memory = host(cuda, [4]), host(cuda, [0]), cuda.mem_alloc(4)
    cuda.memcpy_htod_async(memory, given, upload)
    cuda.memcpy_dtoh_async(got, memory, compute)
    compute.synchronize()
    assert np.isnan(got[0])
    upload.synchronize()
    memory.free()


def test_fresh_memory_is_not_a_number_and_a_write_beside_it_is_found(cuda: Any, driver: Any, scale: Any) -> None:
    memory, got = cuda.mem_alloc(12), host(cuda, [0, 0, 0])
    cuda.memcpy_dtoh(got, memory)
    assert np.isnan(got).all()
    scale((1, 1, 1), (1, 1, 1), cuda.Stream(), int(memory), 2.0, 4)
    memory.free()
    assert driver.count("overruns") == 1
    driver.reset()


def test_memory_ends(cuda: Any, driver: Any) -> None:
    driver.device(size=1000)
    memory = cuda.mem_alloc(600)
    with pytest.raises(cuda.MemoryError, match="out of memory"):
        cuda.mem_alloc(500)
    assert cuda.mem_get_info() == (400, 1000)
    memory.free()
    cuda.mem_alloc(1000).free()


def test_a_copy_beyond_an_allocation_is_refused(cuda: Any) -> None:
    memory, stream = cuda.mem_alloc(8), cuda.Stream()
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        cuda.memcpy_htod_async(memory, host(cuda, [1, 2, 3]), stream)
    memory.free()


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [
        ((0, 1, 1), (32, 1, 1), 0),
        ((1, 1, 1), (1025, 1, 1), 0),
        ((1, 65536, 1), (1, 1, 1), 0),
        ((1, 1, 1), (1, 1, 1), 49153),
    ],
)
def test_limits_of_a_launch(cuda: Any, scale: Any, grid: Any, block: Any, shared: int) -> None:
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        scale(grid, block, cuda.Stream(), 0, 1.0, 0, shared_size=shared)


def test_missing_arguments_are_refused(cuda: Any, scale: Any) -> None:
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        scale((1, 1, 1), (1, 1, 1), cuda.Stream(), 0, 1.0, signature="Pf")


def test_a_failed_kernel_fails_every_later_call(cuda: Any, driver: Any, scale: Any) -> None:
    stream, memory = cuda.Stream(), cuda.mem_alloc(4)
    driver.fail("execute scale", 719)
    scale((1, 1, 1), (1, 1, 1), stream, int(memory), 1.0, 1)
    with pytest.raises(cuda.Error, match="unspecified launch failure"):
        stream.synchronize()
    with pytest.raises(cuda.Error, match="unspecified launch failure"):
        cuda.mem_alloc(4)
    driver.reset()
    memory.free()


def test_no_call_without_a_context(driver: Any) -> None:
    import pycuda.driver as cuda

    cuda.init()
    with pytest.raises(cuda.Error, match="invalid device context"):
        cuda.mem_alloc(4)


def test_an_unknown_image_and_function_are_refused(cuda: Any, stand_in: Path) -> None:
    with pytest.raises(cuda.LogicError, match="device kernel image is invalid"):
        cuda.module_from_buffer(b"\x7fELF no cubin\0")
    module = cuda.module_from_buffer(f"host:{stand_in}".encode() + b"\0")
    with pytest.raises(cuda.LogicError, match="named symbol not found"):
        module.get_function("unknown")


def test_a_captured_graph_runs_as_often_as_it_is_launched(cuda: Any, driver: Any, scale: Any) -> None:
    stream, memory = cuda.Stream(), cuda.mem_alloc(4)
    given, got, events = host(cuda, [3]), host(cuda, [0]), [TimingEvent(), TimingEvent()]

    def work() -> None:
        events[0].record(stream.handle, captured=True)
        cuda.memcpy_htod_async(memory, given, stream)
        scale((1, 1, 1), (1, 1, 1), stream, int(memory), 2.0, 1)
        cuda.memcpy_dtoh_async(got, memory, stream)
        events[1].record(stream.handle, captured=True)

    graph = Graph(stream.handle, work)
    stream.synchronize()
    assert (got[0], driver.count("launches")) == (0, 0)
    for value in (3, 7):
        given[0] = value
        graph.launch(stream.handle)
        stream.synchronize()
        assert got[0] == 2 * value
        assert events[1].ms_since(events[0]) >= 0
    assert driver.counts("launches", "graph_launches", "event_records") == {
        "launches": 2,
        "graph_launches": 2,
        "event_records": 4,
    }
    for thing in (graph, *events):
        thing.close()
        thing.close()
    memory.free()


@pytest.mark.parametrize("forbidden", ["wait", "allocate", "pageable"])
def test_what_cannot_be_captured_leaves_the_stream_usable(cuda: Any, driver: Any, forbidden: str) -> None:
    stream, memory, given = cuda.Stream(), cuda.mem_alloc(4), host(cuda, [3])

    def work() -> None:
        cuda.memcpy_htod_async(memory, given, stream)
        if forbidden == "wait":
            stream.synchronize()
        elif forbidden == "allocate":
            cuda.mem_alloc(4)
        else:
            cuda.memcpy_htod_async(memory, np.zeros(1, np.float32), stream)

    with pytest.raises(cuda.Error, match="not permitted when stream is capturing"):
        Graph(stream.handle, work)
    assert driver.live().get("graphs", 0) == 0
    cuda.memcpy_htod_async(memory, given, stream)
    stream.synchronize()
    memory.free()


def test_a_spoilt_capture_that_raised_nothing_is_found_at_its_end(cuda: Any) -> None:
    stream = cuda.Stream()

    def work() -> None:
        with suppress(cuda.Error):
            stream.synchronize()

    with pytest.raises(EngineError, match="cuStreamEndCapture failed: .*previous error during capture"):
        Graph(stream.handle, work)
    stream.synchronize()


def test_events_without_a_time_give_none(cuda: Any) -> None:
    stream, events = cuda.Stream(), [TimingEvent(), TimingEvent()]
    with pytest.raises(EngineError, match="invalid resource handle"):
        events[1].ms_since(events[0])
    for event in events:
        event.record(stream.handle)
    with pytest.raises(EngineError, match="not ready"):
        events[1].ms_since(events[0])
    stream.synchronize()
    for event in events:
        event.close()
