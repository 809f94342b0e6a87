"""Several cameras on one engine: what forms a batch, how long a frame waits, and whose sink gets which verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from adedge.errors import SourceError, UsageError
from adedge.runtime.backends import FakeBackend
from adedge.runtime.cameras import Camera, run_cameras
from adedge.runtime.host_inspector import HostInspector
from adedge.runtime.sinks import ListSink
from adedge.runtime.sources import ArraySource, Frame
from adedge.runtime.statistics import Statistics
from adedge.specs import InputSpec, ReadyMap, ScoreSpec

GREY = InputSpec(height=16, width=16, channels=1, color="gray")


def inspector(batch: int = 4) -> tuple[HostInspector, FakeBackend]:
    backend = FakeBackend(lambda x: (x.copy(),), GREY.shape, batch)
    return HostInspector(backend, GREY, ScoreSpec(comparison=ReadyMap()), threshold=0.5), backend


def pictures(*levels: int) -> list[np.ndarray]:
    return [np.full((16, 16), level, np.uint8) for level in levels]


class Gated(ArraySource):
    """Gives its frames when it is told to."""

    live = True

    def __init__(self, images: list[np.ndarray]) -> None:
        super().__init__(images)
        self.gate = threading.Semaphore(0)

    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            self.gate.acquire()
            yield Frame(frame.index, time.monotonic_ns(), frame.image, frame.name)


class Losing(ArraySource):
    def __iter__(self) -> Iterator[Frame]:
        yield from super().__iter__()
        raise SourceError("the camera is gone")


def test_each_cameras_verdicts_reach_its_own_sink_in_order() -> None:
    ready, backend = inspector()
    levels = [(10, 20, 30), (110, 120, 130), (210, 220, 230)]
    cameras = [Camera(ArraySource(pictures(*row)), [ListSink()]) for row in levels]
    run_cameras(cameras, ready, wait_ms=2000)
    for camera, row in zip(cameras, levels, strict=True):
        sink = camera.sinks[0]
        assert isinstance(sink, ListSink)
        np.testing.assert_allclose([verdict.score * 255 for verdict in sink.verdicts], row, atol=1e-3)
        assert sink.closed
        assert camera.statistics.frames == 3
    assert sum(backend.calls) == 9
    # Sources that can wait are always ready together: one batch for each round.
    assert backend.calls == [3, 3, 3]


def test_no_more_frames_than_the_engine_takes() -> None:
    ready, backend = inspector(batch=2)
    cameras = [Camera(ArraySource(pictures(10, 20)), [ListSink()]) for _ in range(3)]
    run_cameras(cameras, ready, wait_ms=2000)
    assert sum(backend.calls) == 6
    assert max(backend.calls) == 2


def test_a_frame_does_not_wait_longer_than_the_bound() -> None:
    ready, backend = inspector()
    silent, speaking = Gated(pictures(1)), Gated(pictures(2))
    cameras = [Camera(silent, [ListSink()]), Camera(speaking, [ListSink()])]
    stop = threading.Event()
    thread = threading.Thread(target=run_cameras, args=(cameras, ready), kwargs={"wait_ms": 20.0, "stop": stop})
    thread.start()
    speaking.gate.release()
    deadline = time.monotonic() + 10
    while not backend.calls and time.monotonic() < deadline:
        time.sleep(0.005)
    assert backend.calls == [1]  # the other camera has given nothing, and is still open
    silent.gate.release()
    stop.set()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_lost_camera_ends_the_run_after_what_came_before() -> None:
    ready, _ = inspector()
    cameras = [Camera(Losing(pictures(10, 20)), [ListSink()]), Camera(ArraySource(pictures(30)), [ListSink()])]
    with pytest.raises(SourceError, match="the camera is gone"):
        run_cameras(cameras, ready, wait_ms=50)
    assert [camera.statistics.frames for camera in cameras] == [2, 1]
    assert all(isinstance(camera.sinks[0], ListSink) and camera.sinks[0].closed for camera in cameras)


class Endless(ArraySource):
    """A camera that never lacks a frame."""

    live = True

    def __iter__(self) -> Iterator[Frame]:
        while True:
            for frame in super().__iter__():
                yield Frame(frame.index, time.monotonic_ns(), frame.image, frame.name)


def test_a_lost_camera_is_noticed_though_another_goes_on() -> None:
    ready, _ = inspector()
    cameras = [Camera(Losing(pictures(10)), [ListSink()]), Camera(Endless(pictures(30)), [])]
    with pytest.raises(SourceError, match="the camera is gone"):
        run_cameras(cameras, ready, wait_ms=1)
    assert cameras[0].statistics.frames == 1


def test_stopping_ends_the_run_though_every_camera_goes_on() -> None:
    ready, backend = inspector()
    stop = threading.Event()
    cameras = [Camera(Endless(pictures(level)), []) for level in (10, 20)]
    thread = threading.Thread(
        target=run_cameras, args=(cameras, ready), kwargs={"wait_ms": 5.0, "stop": stop}, daemon=True
    )
    thread.start()
    deadline = time.monotonic() + 10
    while not backend.calls and time.monotonic() < deadline:
        time.sleep(0.005)
    stop.set()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_verdict_names_its_camera_and_all_are_counted_together() -> None:
    ready, _ = inspector()
    sink, together, seen = ListSink(), Statistics(), []
    cameras = [Camera(ArraySource(pictures(10, 200)), [sink]), Camera(ArraySource(pictures(220)), [sink])]
    run_cameras(cameras, ready, wait_ms=2000, statistics=together, watch=lambda counts: seen.append(counts.frames))
    assert [(verdict.camera, verdict.frame_id) for verdict in sink.verdicts] == [(0, 0), (1, 0), (0, 1)]
    assert (together.frames, together.rejects) == (3, 2)
    assert [camera.statistics.rejects for camera in cameras] == [1, 1]
    assert seen == [2, 3]


def test_without_a_camera_there_is_nothing_to_run() -> None:
    with pytest.raises(UsageError, match="no camera"):
        run_cameras([], inspector()[0], wait_ms=5.0)
