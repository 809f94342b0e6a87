"""The pipeline on a fake backend whose map is its input: every score can be said beforehand."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from adedge.errors import DataError, EngineError, OutputError, SourceError, UsageError
from adedge.manifest import Normalisation
from adedge.runtime.backends import FunctionBackend
from adedge.runtime.events import Event
from adedge.runtime.host_inspector import HostInspector
from adedge.runtime.pipeline import Stream, run
from adedge.runtime.sinks import ListSink
from adedge.runtime.sources import ArraySource, Frame
from adedge.runtime.statistics import Statistics
from adedge.runtime.verdict import Verdict
from adedge.specs import InputSpec, ReadyMap, ScoreSpec, Tiling

GREY = InputSpec(height=16, width=16, channels=1, color="gray")
PEAK = ScoreSpec(comparison=ReadyMap(), reduce="max")


def identity(x: np.ndarray) -> tuple[np.ndarray]:
    return (x.copy(),)


def inspector(
    function: Callable[[np.ndarray], tuple[np.ndarray, ...]] = identity,
    *,
    batch: int = 4,
    threshold: float = 0.5,
    spec: InputSpec = GREY,
    score: ScoreSpec = PEAK,
    normalisation: Normalisation | None = None,
) -> tuple[HostInspector, FunctionBackend]:
    backend = FunctionBackend(function, spec.shape, batch)
    return HostInspector(backend, spec, score, threshold=threshold, normalisation=normalisation), backend


def pictures(*levels: int) -> list[np.ndarray]:
    return [np.full((16, 16), level, np.uint8) for level in levels]


class LosingSource(ArraySource):
    """Loses its camera after the last picture."""

    closed = False

    def __iter__(self) -> Iterator[Frame]:
        yield from super().__iter__()
        raise SourceError("the camera is gone")

    def close(self) -> None:
        super().close()
        self.closed = True


class FullDisk(ListSink):
    """Takes two verdicts."""

    def take(self, verdict: Verdict, frame: Frame) -> None:
        if len(self.verdicts) == 2:
            raise OutputError("the disk is full")
        super().take(verdict, frame)


class BadClose(ListSink):
    def close(self) -> None:
        super().close()
        raise OutputError("cannot be finished")


def test_every_frame_gets_its_verdict_in_order() -> None:
    levels = (0, 51, 204, 255, 102, 153)
    sink = ListSink()
    ready, _ = inspector(normalisation=Normalisation(mean=0.2, std=0.1, pictures=9))
    statistics = run([Stream(ArraySource(pictures(*levels)), [sink])], ready, policy="every")
    assert [verdict.frame_id for verdict in sink.verdicts] == list(range(6))
    np.testing.assert_allclose([verdict.score for verdict in sink.verdicts], np.array(levels) / 255, atol=1e-6)
    np.testing.assert_allclose([v.z for v in sink.verdicts], (np.array(levels) / 255 - 0.2) / 0.1, atol=1e-4)
    assert [verdict.anomalous for verdict in sink.verdicts] == [False, False, True, True, False, True]
    assert {verdict.camera for verdict in sink.verdicts} == {None}
    assert (statistics.frames, statistics.rejects, statistics.dropped) == (6, 3, 0)
    assert sink.closed


def test_score_equal_to_the_threshold_passes() -> None:
    sink = ListSink()
    run([Stream(ArraySource(pictures(255, 0)), [sink])], inspector(threshold=1.0)[0], policy="every")
    assert [verdict.anomalous for verdict in sink.verdicts] == [False, False]


def test_times_add_up() -> None:
    sink = ListSink()
    run([Stream(ArraySource(pictures(1, 2, 3)), [sink])], inspector()[0], policy="every")
    for verdict in sink.verdicts:
        times = verdict.timings_ms
        assert times["frame"] == pytest.approx(times["preprocess"] + times["network"] + times["scoring"])
        assert times["verdict"] == pytest.approx((verdict.decided_at_ns - verdict.captured_at_ns) / 1e6)
        assert times["verdict"] >= times["frame"] > 0


@pytest.mark.parametrize(("batch", "calls"), [(1, [1] * 7), (3, [3, 3, 1]), (4, [4, 3])])
def test_frames_go_through_the_engine_in_batches(batch: int, calls: list[int]) -> None:
    ready, backend = inspector()
    sink = ListSink()
    levels = (10, 20, 30, 40, 50, 60, 70)
    run([Stream(ArraySource(pictures(*levels)), [sink])], ready, policy="every", batch=batch)
    assert backend.calls == calls
    np.testing.assert_allclose([verdict.score * 255 for verdict in sink.verdicts], levels, atol=1e-3)


@pytest.mark.parametrize(("policy", "batch"), [("every", 5), ("every", 0), ("latest", 2)])
def test_batch_that_does_not_fit(policy: str, batch: int) -> None:
    with pytest.raises(UsageError, match="batch"):
        run([Stream(ArraySource(pictures(1)), [])], inspector()[0], policy=policy, batch=batch)  # type: ignore[arg-type]


def test_latest_judges_the_newest_frame_and_counts_the_dropped() -> None:
    exhausted = threading.Event()

    def frames() -> Iterator[np.ndarray]:
        yield from pictures(*range(10, 20))
        exhausted.set()

    def slow(x: np.ndarray) -> tuple[np.ndarray]:
        if x.any():  # not the backend's own trial on zeros
            exhausted.wait(timeout=10)
        return (x.copy(),)

    sink = ListSink()
    statistics = run([Stream(ArraySource(frames), [sink])], inspector(slow, batch=1)[0], policy="latest")
    judged = [verdict.frame_id for verdict in sink.verdicts]
    assert len(judged) in (1, 2), "the first that was waiting, perhaps, and the newest"
    assert judged[-1] == 9
    assert statistics.dropped == 10 - len(judged)


def test_every_makes_a_source_wait() -> None:
    ahead = []
    sink = ListSink()

    def frames() -> Iterator[np.ndarray]:
        for number, picture in enumerate(pictures(*range(40))):
            ahead.append(number - len(sink.verdicts))
            yield picture

    def slow(x: np.ndarray) -> tuple[np.ndarray]:
        time.sleep(0.002)
        return (x.copy(),)

    statistics = run([Stream(ArraySource(frames), [sink])], inspector(slow)[0], policy="every")
    assert (statistics.frames, statistics.dropped) == (40, 0)
    assert max(ahead) <= 4, "two wait, one is judged, one is being captured"


def test_lost_camera_ends_the_run_after_its_last_frame() -> None:
    source = LosingSource(pictures(1, 2, 3))
    sink, statistics = ListSink(), Statistics()
    with pytest.raises(SourceError, match="the camera is gone"):
        run([Stream(source, [sink])], inspector()[0], policy="every", statistics=statistics)
    assert [verdict.frame_id for verdict in sink.verdicts] == [0, 1, 2]
    assert (statistics.frames, sink.closed, source.closed) == (3, True, True)


def test_failing_sink_ends_the_run_and_closes_the_others() -> None:
    source = LosingSource(pictures(*range(10)))
    first, full, statistics = ListSink(), FullDisk(), Statistics()
    with pytest.raises(OutputError, match="the disk is full"):
        run([Stream(source, [first, full])], inspector()[0], policy="every", statistics=statistics)
    assert [len(first.verdicts), len(full.verdicts), statistics.frames] == [3, 2, 3]
    assert (first.closed, full.closed, source.closed) == (True, True, True)


def test_sink_that_cannot_be_finished_is_reported_after_the_others_are() -> None:
    bad, good = BadClose(), ListSink()
    with pytest.raises(OutputError, match="cannot be finished"):
        run([Stream(ArraySource(pictures(1)), [bad, good])], inspector()[0], policy="every")
    assert good.closed


def test_first_error_is_the_one_that_is_told() -> None:
    with pytest.raises(SourceError, match="the camera is gone"):
        run([Stream(LosingSource(pictures(1)), [BadClose()])], inspector()[0], policy="every")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_score_that_is_no_number_names_the_frame(bad: float) -> None:
    def damaged(x: np.ndarray) -> tuple[np.ndarray]:
        return (np.where(x > 0.5, np.float32(bad), x),)

    sink = ListSink()
    with pytest.raises(EngineError, match=r"frame 1 \(array#1\) has the score (nan|inf)"):
        run([Stream(ArraySource(pictures(20, 200, 20)), [sink])], inspector(damaged)[0], policy="every")
    assert [verdict.frame_id for verdict in sink.verdicts] == [0]


def test_max_frames() -> None:
    sink = ListSink()
    run([Stream(ArraySource(pictures(*range(9))), [sink])], inspector()[0], policy="every", batch=2, max_frames=5)
    assert len(sink.verdicts) == 5


def test_stop_judges_what_waits_and_ends_an_endless_source() -> None:
    stop, sink = threading.Event(), ListSink()

    def endless() -> Iterator[np.ndarray]:
        while True:
            yield pictures(7)[0]

    def watch(statistics: Statistics) -> None:
        if statistics.frames == 5:
            stop.set()

    source = ArraySource(endless)
    statistics = run([Stream(source, [sink])], inspector()[0], policy="every", stop=stop, watch=watch)
    assert 5 <= statistics.frames <= 8
    assert [verdict.frame_id for verdict in sink.verdicts] == list(range(statistics.frames))
    assert sink.closed


def test_stop_judges_the_frame_that_waits_with_latest() -> None:
    started, stop, sink = threading.Event(), threading.Event(), ListSink()

    def frames() -> Iterator[np.ndarray]:
        yield pictures(1)[0]
        started.wait(timeout=10)
        yield pictures(2)[0]
        stop.set()
        yield pictures(3)[0]

    def until_stopped(x: np.ndarray) -> tuple[np.ndarray]:
        if x.any():  # not the backend's own trial on zeros
            started.set()
            stop.wait(timeout=10)
        return (x.copy(),)

    ready, _ = inspector(until_stopped)
    statistics = run([Stream(ArraySource(frames), [sink])], ready, policy="latest", stop=stop)
    assert [verdict.frame_id for verdict in sink.verdicts] == [0, 1]
    assert statistics.dropped == 0


def test_stop_ends_the_wait_for_a_frame_that_never_comes() -> None:
    released, stop, closed = threading.Event(), threading.Event(), []

    class Silent(ArraySource):
        def close(self) -> None:
            released.set()

    def silence() -> Iterator[np.ndarray]:
        closed.append(released.wait(timeout=20))
        yield from ()

    threading.Timer(0.05, stop.set).start()
    statistics = run([Stream(Silent(silence), [])], inspector()[0], policy="latest", stop=stop)
    assert statistics.frames == 0
    assert closed == [True]


@pytest.mark.parametrize("color", ["bgr", "rgb"])
def test_colour_order_of_the_spec(color: str) -> None:
    spec = InputSpec(height=16, width=16, channels=3, color=color)  # type: ignore[arg-type]

    def first_channel(x: np.ndarray) -> tuple[np.ndarray]:
        return (x[:, :1].copy(),)

    blue = np.zeros((16, 16, 3), np.uint8)
    blue[..., 0] = 255
    sink = ListSink()
    run([Stream(ArraySource([blue]), [sink])], inspector(first_channel, spec=spec)[0], policy="every")
    assert sink.verdicts[0].score == pytest.approx(1.0 if color == "bgr" else 0.0, abs=1e-6)


def test_engine_of_another_shape_is_refused() -> None:
    backend = FunctionBackend(identity, (1, 32, 32))
    with pytest.raises(EngineError, match=r"takes frames of \(1, 32, 32\), the bundle says \(1, 16, 16\)"):
        HostInspector(backend, GREY, PEAK, threshold=0.5)


RAMP = np.linspace(0, 0.3, 256, dtype=np.float32).reshape(16, 16)[::-1]


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_tiles_of_a_large_picture_are_merged_by_maximum(reduce: str, batch: int) -> None:
    """Against the plain loop: the map of a tile is its pixels plus a ramp, so overlapping tiles differ."""
    spec = InputSpec(height=16, width=16, channels=1, color="gray", resize="tile", tiling=Tiling(tile=16, stride=6))
    score = ScoreSpec(comparison=ReadyMap(), reduce=reduce, margin=2)  # type: ignore[arg-type]
    ready, backend = inspector(lambda x: (x + RAMP,), spec=spec, score=score, batch=batch)
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in ((37, 50), (37, 50), (20, 16))]
    sink = ListSink()
    run([Stream(ArraySource(images), [sink])], ready, policy="every")
    for image, verdict in zip(images, sink.verdicts, strict=True):
        merged = np.full(image.shape, -np.inf)
        for top in _origins(image.shape[0]):
            for left in _origins(image.shape[1]):
                under = merged[top : top + 16, left : left + 16]
                np.maximum(under, image[top : top + 16, left : left + 16] / 255 + RAMP, out=under)
        assert verdict.map is not None
        np.testing.assert_allclose(verdict.map, merged, atol=1e-5)
        inner = merged[2:-2, 2:-2]
        assert verdict.score == pytest.approx(inner.max() if reduce == "max" else inner.mean(), abs=1e-5)
    assert max(backend.calls) <= batch


def mean_of_the_input(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A map, and a score that no reduction of the map is."""
    return x.copy(), x.mean(axis=(1, 2, 3))


OUTPUT = ScoreSpec(comparison=ReadyMap(), reduce="output")


def test_score_of_the_network_itself() -> None:
    half = np.zeros((16, 16), np.uint8)
    half[:8] = 255
    sink = ListSink()
    run(
        [Stream(ArraySource([*pictures(51), half]), [sink])],
        inspector(mean_of_the_input, score=OUTPUT)[0],
        policy="every",
    )
    np.testing.assert_allclose([verdict.score for verdict in sink.verdicts], [0.2, 0.5], atol=1e-6)
    assert sink.verdicts[1].map is not None
    assert sink.verdicts[1].map.max() == pytest.approx(1)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_score_of_the_network_itself_is_that_of_the_worst_tile(batch: int) -> None:
    spec = InputSpec(height=16, width=16, channels=1, color="gray", resize="tile", tiling=Tiling(tile=16, stride=6))
    image = np.random.default_rng(2).integers(0, 100, (37, 50), np.uint8)
    image[12:28, 6:22] = 200  # one tile exactly
    sink = ListSink()
    ready, _ = inspector(mean_of_the_input, spec=spec, score=OUTPUT, batch=batch)
    run([Stream(ArraySource([image]), [sink])], ready, policy="every")
    assert sink.verdicts[0].score == pytest.approx(200 / 255, abs=1e-6)
    assert sink.verdicts[0].map is not None
    np.testing.assert_allclose(sink.verdicts[0].map, image / 255, atol=1e-6)


def test_a_tile_whose_score_is_no_number_is_not_lost_among_the_others() -> None:
    spec = InputSpec(height=16, width=16, channels=1, color="gray", resize="tile", tiling=Tiling(tile=16, stride=16))

    def damaged(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        level = x.mean(axis=(1, 2, 3))
        return x.copy(), np.where(level > 0.5, np.float32(math.nan), level)

    image = np.zeros((16, 48), np.uint8)
    image[:, 16:32] = 255
    with pytest.raises(EngineError, match="has the score nan"):
        run(
            [Stream(ArraySource([image]), [ListSink()])], inspector(damaged, spec=spec, score=OUTPUT)[0], policy="every"
        )


def test_picture_smaller_than_a_tile_is_named() -> None:
    spec = InputSpec(height=16, width=16, channels=1, color="gray", resize="tile", tiling=Tiling(tile=16, stride=6))
    with pytest.raises(DataError, match=r"frame 1 \(array#1\): .*smaller than a tile"):
        run(
            [Stream(ArraySource([*pictures(1), np.zeros((15, 40), np.uint8)]), [])],
            inspector(spec=spec)[0],
            policy="every",
        )


def _origins(length: int) -> list[int]:
    """Every sixth pixel, and the last tile ends at the border."""
    return sorted({*range(0, length - 16, 6), length - 16})


class LoggingSink(ListSink):
    """Also takes the events, and says in which order all came."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.order: list[str] = []

    def take(self, verdict: Verdict, frame: Frame) -> None:
        super().take(verdict, frame)
        self.order.append("verdict")

    def report(self, event: Event) -> None:
        self.events.append(event)
        self.order.append(f"{event.kind} {event.fault}")


def noise(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 100, (16, 16), np.uint8) for _ in range(count)]


class LiveSource(ArraySource):
    live = True


class HangingSource(LiveSource):
    """Hangs after its pictures, as in a driver that never returns, until ``released`` is set; then gives one more."""

    def __init__(self, images: list[np.ndarray]) -> None:
        super().__init__(images)
        self.released = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        yield from super().__iter__()
        self.released.wait(timeout=30)
        yield Frame(99, time.monotonic_ns(), noise(5)[4], "array#99")

    def close(self) -> None:
        """Does not end the wait: the driver hangs."""


@pytest.mark.fault("a camera driver that hangs inside a read")
@pytest.mark.parametrize("given", [0, 3], ids=["never delivered", "hangs later"])
def test_a_driver_that_hangs_is_noticed_and_its_return_too(given: int) -> None:
    source, sink = HangingSource(noise(given)), LoggingSink()

    def release(event: Event) -> None:
        LoggingSink.report(sink, event)
        source.released.set()

    sink.report = release  # type: ignore[method-assign]
    run([Stream(source, [sink])], inspector()[0], camera_timeout_s=0.3, policy="every")
    assert [event.fault for event in sink.events] == ["silent", "silent"]
    assert [event.kind for event in sink.events] == ["camera_fault", "camera_recovered"]
    assert 0.3 <= sink.events[0].seconds < 2
    assert len(sink.verdicts) == given + 1
    assert sink.order.index("camera_fault silent") == given


@pytest.mark.fault("a camera that is silent, frozen, covered or changes its size")
def test_a_silent_camera_among_others_is_noticed_while_they_go_on() -> None:
    silent, sinks = HangingSource([]), [LoggingSink(), LoggingSink()]
    stop = threading.Event()

    def endless() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(1)
        while True:
            yield rng.integers(0, 100, (16, 16), np.uint8)

    def watch(statistics: Statistics) -> None:
        if sinks[0].events:
            stop.set()
            silent.released.set()

    streams = [Stream(silent, [sinks[0]]), Stream(LiveSource(endless), [sinks[1]])]
    run(streams, inspector()[0], camera_timeout_s=0.2, stop=stop, watch=watch)
    assert next((event.camera, event.fault) for event in sinks[0].events) == (0, "silent")
    assert sinks[1].events == []


@pytest.mark.fault("a camera that is silent, frozen, covered or changes its size")
def test_a_silent_camera_stops_the_run_if_it_shall() -> None:
    source, sink = HangingSource(noise(2)), LoggingSink()
    threading.Timer(5, source.released.set).start()
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"array delivers no frame for 0\.\d s.*--on-camera-fault stop"):
        run([Stream(source, [sink])], inspector()[0], camera_timeout_s=0.2, on_camera_fault="stop", policy="every")
    assert time.monotonic() - started < 5
    assert sink.order == ["verdict", "verdict", "camera_fault silent"]
    assert sink.closed
    source.released.set()


@pytest.mark.fault("a camera that is silent, frozen, covered or changes its size")
@pytest.mark.parametrize(("policy", "anomalous"), [("warn", [False] * 4), ("reject", [False, False, True, False])])
def test_a_covered_camera(policy: str, anomalous: list[bool]) -> None:
    images = noise(4)
    images[2] = np.zeros((16, 16), np.uint8)
    sink = LoggingSink()
    statistics = run(
        [Stream(LiveSource(images), [sink])],
        inspector()[0],
        policy="every",
        on_camera_fault=policy,  # type: ignore[arg-type]
    )
    assert [verdict.fault for verdict in sink.verdicts] == [None, None, "constant", None]
    assert [verdict.anomalous for verdict in sink.verdicts] == anomalous
    assert statistics.rejects == sum(anomalous)
    assert [(event.kind, event.fault) for event in sink.events] == [
        ("camera_fault", "constant"),
        ("camera_recovered", "constant"),
    ]


@pytest.mark.fault("a camera that is silent, frozen, covered or changes its size")
def test_a_covered_camera_stops_the_run_before_its_frame_is_judged() -> None:
    images = noise(4)
    images[2] = np.zeros((16, 16), np.uint8)
    sink = LoggingSink()
    with pytest.raises(SourceError, match="without content.*--on-camera-fault stop"):
        run([Stream(LiveSource(images), [sink])], inspector()[0], policy="every", on_camera_fault="stop")
    assert [verdict.frame_id for verdict in sink.verdicts] == [0, 1]
    assert [event.fault for event in sink.events] == ["constant"]


def test_files_are_not_watched() -> None:
    sink = LoggingSink()
    images = [*pictures(*[7] * 20), *noise(1)]
    run(
        [Stream(ArraySource(images), [sink])],
        inspector()[0],
        policy="every",
        on_camera_fault="stop",
        camera_timeout_s=0.001,
    )
    assert len(sink.verdicts) == 21
    assert sink.events == []


def test_events_are_logged_and_sinks_without_them_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="adedge.runtime.pipeline"):
        run([Stream(LiveSource(pictures(0)), [ListSink()])], inspector()[0], policy="every")
    assert "array delivers a picture without content" in caplog.text
