"""Several sources on one engine: what forms a batch, how long a frame waits, and whose sink gets which verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

import numpy as np
import pytest

from adedge.errors import OutputError, SourceError, UsageError
from adedge.runtime.backends import FunctionBackend
from adedge.runtime.host_inspector import HostInspector
from adedge.runtime.pipeline import Stream, run
from adedge.runtime.sinks import ListSink
from adedge.runtime.sources import ArraySource, Frame
from adedge.runtime.statistics import Statistics
from adedge.runtime.verdict import Verdict
from adedge.specs import InputSpec, ReadyMap, ScoreSpec

GREY = InputSpec(height=16, width=16, channels=1, color="gray")


def inspector(batch: int = 4, *, before: Callable[[], object] = int) -> tuple[HostInspector, FunctionBackend]:
    """The map is the frame. ``before`` is called before each batch of frames that are not black."""

    def network(x: np.ndarray) -> tuple[np.ndarray]:
        if x.any():  # not the backend's own trial on zeros
            before()
        return (x.copy(),)

    backend = FunctionBackend(network, GREY.shape, batch)
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
    cameras = [Stream(ArraySource(pictures(*row)), [ListSink()]) for row in levels]
    run(cameras, ready, wait_ms=2000)
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
    cameras = [Stream(ArraySource(pictures(10, 20)), [ListSink()]) for _ in range(3)]
    run(cameras, ready, wait_ms=2000)
    assert sum(backend.calls) == 6
    assert max(backend.calls) == 2


def test_a_frame_does_not_wait_longer_than_the_bound() -> None:
    ready, backend = inspector()
    silent, speaking = Gated(pictures(1)), Gated(pictures(2))
    cameras = [Stream(silent, [ListSink()]), Stream(speaking, [ListSink()])]
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(cameras, ready), kwargs={"wait_ms": 20.0, "stop": stop})
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
    cameras = [Stream(Losing(pictures(10, 20)), [ListSink()]), Stream(ArraySource(pictures(30)), [ListSink()])]
    with pytest.raises(SourceError, match="the camera is gone"):
        run(cameras, ready, wait_ms=50)
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
    cameras = [Stream(Losing(pictures(10)), [ListSink()]), Stream(Endless(pictures(30)), [])]
    with pytest.raises(SourceError, match="the camera is gone"):
        run(cameras, ready, wait_ms=1)
    assert cameras[0].statistics.frames == 1


def test_stopping_ends_the_run_though_every_camera_goes_on() -> None:
    ready, backend = inspector()
    stop = threading.Event()
    cameras = [Stream(Endless(pictures(level)), []) for level in (10, 20)]
    thread = threading.Thread(target=run, args=(cameras, ready), kwargs={"wait_ms": 5.0, "stop": stop}, daemon=True)
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
    cameras = [Stream(ArraySource(pictures(10, 200)), [sink]), Stream(ArraySource(pictures(220)), [sink])]
    run(cameras, ready, wait_ms=2000, statistics=together, watch=lambda counts: seen.append(counts.frames))
    assert [(verdict.camera, verdict.frame_id) for verdict in sink.verdicts] == [(0, 0), (1, 0), (0, 1)]
    assert (together.frames, together.rejects) == (3, 2)
    assert [camera.statistics.rejects for camera in cameras] == [1, 1]
    assert seen == [2, 3]


def test_without_a_camera_there_is_nothing_to_run() -> None:
    with pytest.raises(UsageError, match="no source"):
        run([], inspector()[0], wait_ms=5.0)


class TwoSlots:
    """Keeps two batches under way on the same host inspector; ``most`` is how many ever were, ``left`` are now."""

    slots = 2

    def __init__(self, batch: int = 4, *, before: Callable[[], object] = int) -> None:
        self.batch = batch
        self.most = 0
        self._inspector, self.backend = inspector(batch, before=before)
        self._under_way: list[Sequence[Frame]] = []

    @property
    def left(self) -> int:
        return len(self._under_way)

    def submit(self, frames: Sequence[Frame]) -> None:
        self._under_way.append(frames)
        self.most = max(self.most, self.left)
        assert self.left <= self.slots

    def collect(self) -> Iterator[Verdict]:
        return self._inspector.inspect(self._under_way.pop(0))

    def close(self) -> None:
        pass


class Live(ArraySource):
    live = True


class Closing(ArraySource):
    closed = False

    def close(self) -> None:
        super().close()
        self.closed = True


def telling(count: int, when: int, event: threading.Event) -> Callable[[], Iterator[np.ndarray]]:
    """``count`` pictures; sets the event when the source has handed over ``when`` of them."""

    def frames() -> Iterator[np.ndarray]:
        for number, picture in enumerate(pictures(*range(1, count + 1))):
            if number == when:
                event.set()
            yield picture
        event.set()

    return frames


def frame_ids(sink: ListSink, camera: int | None) -> list[int]:
    return [verdict.frame_id for verdict in sink.verdicts if verdict.camera == camera]


def test_latest_keeps_the_newest_frame_of_each_source_and_counts_what_each_dropped() -> None:
    exhausted = [threading.Event(), threading.Event()]
    ready, _ = inspector(before=lambda: [event.wait(timeout=10) for event in exhausted])
    sink, counts = ListSink(), (10, 5)
    streams = [
        Stream(ArraySource(telling(count, count, event)), [sink])
        for count, event in zip(counts, exhausted, strict=True)
    ]
    together = run(streams, ready, policy="latest", wait_ms=2000)
    for camera, count in enumerate(counts):
        judged = frame_ids(sink, camera)
        assert len(judged) in (1, 2), "the first that was waiting, perhaps, and the newest"
        assert judged[-1] == count - 1
        assert streams[camera].statistics.dropped == count - len(judged) > 0
    assert together.dropped == sum(stream.statistics.dropped for stream in streams)
    assert together.frames + together.dropped == 15


def test_every_drops_no_frame_of_a_camera() -> None:
    ready, _ = inspector(before=lambda: time.sleep(0.002))
    sink = ListSink()
    streams = [Stream(Live(pictures(*range(1, 21))), [sink]) for _ in range(2)]
    together = run(streams, ready, policy="every")
    assert (together.frames, together.dropped) == (40, 0)
    assert frame_ids(sink, 0) == frame_ids(sink, 1) == list(range(20))


def test_without_a_policy_a_camera_drops_and_a_file_waits() -> None:
    exhausted = threading.Event()
    ready, _ = inspector(before=lambda: exhausted.wait(timeout=10))
    camera = Stream(Live(telling(10, 10, exhausted)), [ListSink()])
    file = Stream(ArraySource(pictures(*range(1, 8))), [ListSink()])
    run([camera, file], ready, wait_ms=2000)
    assert (file.statistics.frames, file.statistics.dropped) == (7, 0)
    assert camera.statistics.dropped == 10 - camera.statistics.frames >= 8


def test_max_frames_bounds_all_sources_together() -> None:
    ready, backend = inspector()
    sink = ListSink()
    streams = [Stream(ArraySource(pictures(*range(1, 10))), [sink]) for _ in range(3)]
    assert run(streams, ready, wait_ms=2000, max_frames=7).frames == 7
    assert backend.calls == [3, 3, 1]
    assert sorted(len(frame_ids(sink, camera)) for camera in range(3)) == [2, 2, 3]


def test_a_batch_of_more_frames_than_sources_has_as_many_of_each() -> None:
    ready, backend = inspector()
    sink = ListSink()
    streams = [Stream(ArraySource(pictures(*range(1, 5))), [sink]) for _ in range(2)]
    run(streams, ready, batch=4, wait_ms=2000)
    assert backend.calls == [4, 4]
    of_frames = [(verdict.camera, verdict.frame_id) for verdict in sink.verdicts]
    assert of_frames == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]


def test_a_batch_that_sources_cannot_share_equally_is_full_all_the_same() -> None:
    ready, backend = inspector()
    run([Stream(ArraySource(pictures(1, 2, 3)), []) for _ in range(2)], ready, batch=3, wait_ms=2000)
    assert backend.calls == [3, 3]


def test_a_single_source_fills_its_batches_however_long_it_takes() -> None:
    def slowly() -> Iterator[np.ndarray]:
        for picture in pictures(*range(1, 7)):
            time.sleep(0.01)
            yield picture

    ready, backend = inspector()
    run([Stream(ArraySource(slowly), [])], ready, policy="every", batch=3, wait_ms=0)
    assert backend.calls == [3, 3]


def test_a_batch_of_fewer_frames_than_sources_serves_all_by_turns() -> None:
    ready, backend = inspector(before=lambda: time.sleep(0.005))
    streams = [Stream(ArraySource(lambda: repeat(pictures(1)[0])), []) for _ in range(3)]
    run(streams, ready, batch=1, max_frames=30)
    assert backend.calls == [1] * 30
    assert min(stream.statistics.frames for stream in streams) >= 5


def test_latest_has_no_more_frames_for_a_batch_than_there_are_sources() -> None:
    streams = [Stream(Closing(pictures(1)), [ListSink()]) for _ in range(2)]
    with pytest.raises(UsageError, match="a batch of 3 frames from 2 source.* needs the policy 'every'"):
        run(streams, inspector()[0], policy="latest", batch=3)
    for stream in streams:
        assert isinstance(stream.source, Closing)
        assert isinstance(stream.sinks[0], ListSink)
        assert (stream.source.closed, stream.sinks[0].closed) == (True, True)
    again = [Stream(ArraySource(pictures(1)), []) for _ in range(2)]
    assert run(again, inspector()[0], policy="latest", batch=2).frames == 2


@pytest.mark.parametrize("sources", [1, 3])
def test_several_batches_are_under_way_where_sources_can_wait(sources: int) -> None:
    # When a source hands over its fourth frame, two wait behind the one that is judged.
    ahead = [threading.Event() for _ in range(sources)]
    ready = TwoSlots(before=lambda: [event.wait(timeout=10) for event in ahead])
    sink = ListSink()
    streams = [Stream(ArraySource(telling(6, 3, event)), [sink]) for event in ahead]
    run(streams, ready, wait_ms=2000)
    assert (ready.most, ready.left) == (2, 0)
    assert ready.backend.calls == [sources] * 6
    for camera in range(sources):
        assert frame_ids(sink, camera if sources > 1 else None) == list(range(6))


def test_one_batch_is_under_way_where_a_source_is_live() -> None:
    ready = TwoSlots()
    run([Stream(Live(pictures(*range(1, 30))), []), Stream(ArraySource(pictures(*range(1, 30))), [])], ready)
    assert ready.most == 1


def test_a_source_that_fails_while_batches_are_under_way_loses_none_of_them() -> None:
    failing = threading.Event()
    ready = TwoSlots(before=lambda: failing.wait(timeout=10))
    sinks = [ListSink(), ListSink()]
    lost = Stream(Losing(telling(3, 3, failing)), [sinks[0]])
    other = Stream(Endless(pictures(50)), [sinks[1]])
    together = Statistics()
    with pytest.raises(SourceError, match="the camera is gone"):
        run([lost, other], ready, policy="every", wait_ms=2000, statistics=together)
    assert (ready.most, ready.left) == (2, 0)
    assert frame_ids(sinks[0], 0) == [0, 1, 2]
    assert len(sinks[1].verdicts) >= 3
    assert together.frames == lost.statistics.frames + other.statistics.frames == sum(len(s.verdicts) for s in sinks)
    assert all(sink.closed for sink in sinks)


def test_all_is_closed_though_the_first_sink_cannot_be() -> None:
    class BadClose(ListSink):
        def close(self) -> None:
            raise OutputError("cannot be finished")

    good, sources = ListSink(), [Closing(pictures(1)) for _ in range(2)]
    with pytest.raises(OutputError, match="cannot be finished"):
        run([Stream(sources[0], [BadClose()]), Stream(sources[1], [good])], inspector()[0])
    assert good.closed
    assert all(source.closed for source in sources)


def test_stopping_judges_what_waits_of_every_source() -> None:
    ready, _ = inspector()
    stop, sink = threading.Event(), ListSink()

    def watch(statistics: Statistics) -> None:
        if statistics.frames >= 6:
            stop.set()

    sources = [ArraySource(lambda: repeat(pictures(7)[0])) for _ in range(2)]
    together = run([Stream(source, [sink]) for source in sources], ready, wait_ms=2000, stop=stop, watch=watch)
    assert 6 <= together.frames <= 6 + 2 * 2, "two of each source wait at most"
    for camera in range(2):
        judged = frame_ids(sink, camera)
        assert judged == list(range(len(judged)))
