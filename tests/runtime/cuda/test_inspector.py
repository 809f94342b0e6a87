"""The frame loop on the stand-in driver: the same verdicts as on the processor, and what it costs in driver calls.

The engine is a stand-in too, of which both sides know the function: two kernels from stand_in.cpp, enqueued as TensorRT
enqueues its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adedge.errors import DataError, EngineError
from adedge.manifest import Normalisation
from adedge.runtime.backends import FunctionBackend
from adedge.runtime.cuda.driver import Gpu, Resources, load_cuda
from adedge.runtime.cuda.inspector import LAYOUTS, CudaInspector
from adedge.runtime.cuda.kernel_cache import Compiler
from adedge.runtime.host_inspector import HostInspector
from adedge.runtime.pipeline import Stream, run
from adedge.runtime.sinks import ListSink
from adedge.runtime.sources import ArraySource, Frame
from adedge.runtime.statistics import Statistics
from adedge.specs import Dssim, Gaussian, InputSpec, Opening, ReadyMap, ScoreSpec, Tiling, Uniform

pytestmark = pytest.mark.usefixtures("pycuda")

OUT_OF_MEMORY, LAUNCH_FAILED, INVALID_VALUE = 2, 719, 1


class StandInEngine:
    """A network that gives its input and one minus its input ("pair"), the mean of its channels ("map"), or its input
    and the mean of each picture as its own score ("scored").

    ``waits`` makes it do what cannot be captured.
    """

    def __init__(self, gpu: Gpu, library: Path, shape: tuple[int, int, int], batch: int, kind: str) -> None:
        self.gpu, self.batch, self.kind, self.shape = gpu, batch, kind, shape
        self.input = np.zeros((batch, *shape), np.float32)
        outputs = {
            "pair": [(batch, *shape), (batch, *shape)],
            "map": [(batch, *shape[1:])],
            "scored": [(batch, *shape[1:]), (batch,)],
        }[kind]
        self.outputs = tuple(np.zeros(size, np.float32) for size in outputs)
        self.shape_changes = 0
        self.waits = False
        self.frames: list[int] = []
        self._n = batch
        with gpu.current():
            self.resources = Resources(gpu)
            self.stream = gpu.stream()
            self.device_input = self.resources.device(self.input.nbytes, "input")
            self.device_outputs = tuple(self.resources.device(array.nbytes, "output") for array in self.outputs)
            self.module = gpu.cuda.module_from_buffer(f"host:{library}".encode() + b"\0")
            name, signature = {
                "pair": ("identity_and_inverse", "PPPi"),
                "map": ("channel_mean", "PPii"),
                "scored": ("map_and_score", "PPPi"),
            }[kind]
            self.function = self.module.get_function(name)
            self.function.prepare(signature)

    def enqueue(self, n: int) -> None:
        self.frames.append(n)
        if n != self._n:
            self._n, self.shape_changes = n, self.shape_changes + 1
        if self.waits:
            self.stream.synchronize()
        channels, height, width = self.shape
        one = (1, 1, 1)
        if self.kind == "pair":
            size = n * channels * height * width
            self.function.prepared_async_call(one, one, self.stream, self.device_input, *self.device_outputs, size)
            return
        for index in range(n):
            addresses = (
                self.device_input + 4 * index * channels * height * width,
                self.device_outputs[0] + 4 * index * height * width,
            )
            if self.kind == "scored":
                score = self.device_outputs[1] + 4 * index
                self.function.prepared_async_call(one, one, self.stream, *addresses, score, height * width)
            else:
                self.function.prepared_async_call(one, one, self.stream, *addresses, channels, height * width)

    def close(self) -> None:
        del self.function, self.module, self.stream
        self.resources.close()


def pair(x: np.ndarray) -> tuple[np.ndarray, ...]:
    return x.copy(), 1 - x


def channel_mean(x: np.ndarray) -> tuple[np.ndarray, ...]:
    return (x.mean(axis=1),)


def map_and_score(x: np.ndarray) -> tuple[np.ndarray, ...]:
    return x[:, 0].copy(), x.mean(axis=(1, 2, 3))


def kind_of(score: ScoreSpec) -> str:
    if isinstance(score.comparison, Dssim):
        return "pair"
    return "scored" if score.reduce == "output" else "map"


COLOR = InputSpec(height=24, width=32, channels=3, color="rgb", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
GREY = InputSpec(height=24, width=32, channels=1, color="gray")
TILES = InputSpec(height=16, width=16, channels=1, color="gray", resize="tile", tiling=Tiling(tile=16, stride=6))
SSIM = ScoreSpec(comparison=Dssim(), filters=(Uniform(size=8),))
MAP = ScoreSpec(comparison=ReadyMap())


@pytest.fixture
def gpu(driver: Any, host_compiler: Compiler, tmp_path: Path) -> Iterator[Gpu]:
    """A GPU whose compiler makes host code of the real kernels."""
    gpu = Gpu(load_cuda("a test"), compiler=host_compiler, cache=tmp_path)
    yield gpu
    gpu.close()


@pytest.fixture
def inspecting(gpu: Gpu, stand_in: Path) -> Iterator[Callable[..., tuple[CudaInspector, StandInEngine]]]:
    """Makes an inspector and its engine, and closes them after the test."""
    made: list[Any] = []

    def make(
        spec: InputSpec = COLOR, score: ScoreSpec = SSIM, *, batch: int = 4, threshold: float = 0.5, **options: Any
    ) -> tuple[CudaInspector, StandInEngine]:
        engine = StandInEngine(gpu, stand_in, spec.shape, batch, kind_of(score))
        made.append(engine)
        inspector = CudaInspector(engine, spec, score, threshold=threshold, **options)
        made.append(inspector)
        return inspector, engine

    yield make
    for thing in reversed(made):
        thing.close()
    made.clear()


def pictures(count: int, size: tuple[int, ...] = (37, 50, 3), seed: int = 0) -> list[np.ndarray]:
    """Smooth pictures with noise: neighbours differ, and so do the pictures."""
    rng = np.random.default_rng(seed)
    rows = np.linspace(0, 3, size[0])[:, None] + rng.random((count, 1, 1)) * 6
    columns = np.linspace(0, 5, size[1])[None, :]
    waves = 110 + 80 * np.sin(rows + columns)
    waves = waves if len(size) == 2 else waves[..., None]
    noise = rng.integers(-30, 30, (count, *size))
    return list(np.clip(waves + noise, 0, 255).astype(np.uint8))


def frames(images: Sequence[np.ndarray]) -> list[Frame]:
    return [Frame(index, 0, image, f"picture {index}") for index, image in enumerate(images)]


def on_the_processor(spec: InputSpec, score: ScoreSpec, images: Sequence[np.ndarray], batch: int = 4) -> ListSink:
    """What `HostInspector` says, with the same network as a function."""
    function = {"pair": pair, "map": channel_mean, "scored": map_and_score}[kind_of(score)]
    backend = FunctionBackend(function, spec.shape, batch)
    sink = ListSink()
    run(
        [Stream(ArraySource(list(images)), [sink])],
        HostInspector(backend, spec, score, threshold=0.5),
        policy="every",
        batch=batch,
    )
    return sink


# OpenCV rounds a resized pixel to one of 256 values and the kernel does not: half a step of the picture, over the
# smallest std, is what the network's input may differ by. Pictures of the network's own size are not resized.
def same(expected: ListSink, got: ListSink, tolerance: float) -> None:
    assert len(got.verdicts) == len(expected.verdicts)
    for ours, theirs in zip(got.verdicts, expected.verdicts, strict=True):
        assert (ours.frame_id, ours.name) == (theirs.frame_id, theirs.name)
        assert ours.score == pytest.approx(theirs.score, abs=tolerance)
        assert ours.map is not None
        assert theirs.map is not None
        np.testing.assert_allclose(ours.map, theirs.map, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("spec", "score", "size"),
    [
        (COLOR, SSIM, (24, 32, 3)),
        (COLOR, SSIM, (24, 32)),
        (GREY, SSIM, (24, 32, 1)),
        (GREY, ScoreSpec(comparison=Dssim(window=11), reduce="mean", margin=5), (24, 32)),
        (GREY, ScoreSpec(comparison=ReadyMap(), filters=(Gaussian(sigma=1.5), Opening(size=3))), (24, 32)),
        (COLOR, ScoreSpec(comparison=ReadyMap(), filters=(Opening(size=3), Uniform(size=5)), margin=2), (24, 32, 3)),
        (COLOR, MAP, (24, 32, 3)),
        (GREY, ScoreSpec(comparison=ReadyMap(), filters=(Uniform(size=3),), reduce="output"), (24, 32)),
    ],
)
def test_verdicts_are_those_of_the_processor(
    inspecting: Any, spec: InputSpec, score: ScoreSpec, size: tuple[int, ...]
) -> None:
    images, sink = pictures(9, size), ListSink()
    inspector, engine = inspecting(spec, score)
    run([Stream(ArraySource(images), [sink])], inspector, policy="every", batch=4)
    assert engine.frames == [4, 4, 1]
    same(on_the_processor(spec, score, images), sink, 1e-4)


@pytest.mark.parametrize("size", [(37, 50, 3), (11, 200, 3), (24, 16, 1), (1, 1, 3)])
def test_frames_of_other_sizes_are_resized(inspecting: Any, size: tuple[int, ...]) -> None:
    spec = COLOR.model_copy(update={"mean": (), "std": ()})
    images, sink = pictures(3, size), ListSink()
    run([Stream(ArraySource(images), [sink])], inspecting(spec, MAP)[0], policy="every")
    same(on_the_processor(spec, MAP, images, batch=1), sink, 1.01 / 255)


TILED = [ScoreSpec(comparison=Dssim(), filters=(Uniform(size=4),), reduce=reduce) for reduce in ("max", "mean")]
TILED.append(ScoreSpec(comparison=ReadyMap(), reduce="output"))


@pytest.mark.parametrize("score", TILED, ids=["max", "mean", "output"])
@pytest.mark.parametrize("batch", [1, 4])
def test_tiles_are_cut_and_merged_on_the_gpu(inspecting: Any, score: ScoreSpec, batch: int) -> None:
    images, sink = pictures(3, (37, 50)), ListSink()
    inspector, engine = inspecting(TILES, score, batch=batch)
    run([Stream(ArraySource(images), [sink])], inspector, policy="every")
    assert max(engine.frames) <= batch
    same(on_the_processor(TILES, score, images, batch=batch), sink, 1e-4)


def test_tiles_that_do_not_fill_their_runs_are_replayed_as_a_graph_too(inspecting: Any, driver: Any) -> None:
    images, sink = pictures(9, (22, 34)), ListSink()  # 2 x 4 tiles, in runs of 3
    inspector, engine = inspecting(TILES, TILED[0], batch=3)
    run([Stream(ArraySource(images), [sink])], inspector, policy="every")
    assert set(engine.frames) == {3}
    assert inspector.graph_disabled_reason is None
    assert driver.count("graph_launches") > 0
    same(on_the_processor(TILES, TILED[0], images), sink, 1e-4)


def nv12_frames(count: int, height: int, width: int) -> list[Frame]:
    planes = pictures(count, (height * 3 // 2, width))
    return [Frame(index, 0, image, f"camera#{index}", nv12=True) for index, image in enumerate(planes)]


def both(inspector: CudaInspector, spec: InputSpec, score: ScoreSpec, batch: Sequence[Frame]) -> list[ListSink]:
    """What the processor says about a batch, and what the GPU does."""
    function = {"pair": pair, "map": channel_mean, "scored": map_and_score}[kind_of(score)]
    reference = HostInspector(FunctionBackend(function, spec.shape, inspector.batch), spec, score, threshold=0.5)
    sinks = [ListSink(), ListSink()]
    for sink, verdicts in zip(sinks, (reference.inspect(batch), inspector.inspect(batch)), strict=True):
        for frame, verdict in zip(batch, verdicts, strict=True):
            sink.take(verdict, frame)
    return sinks


# Noise in U and V gives saturated colours, which mean and std would spread far beyond the 0 to 1 that DSSIM's tolerance
# is promised for.
@pytest.mark.parametrize("spec", [COLOR.model_copy(update={"mean": (), "std": ()}), GREY], ids=["colour", "grey"])
def test_nv12_frames_are_converted_on_the_gpu(inspecting: Any, driver: Any, spec: InputSpec) -> None:
    inspector, _ = inspecting(spec, SSIM)
    batch = nv12_frames(4, 24, 32)
    for _ in range(3):
        same(*both(inspector, spec, SSIM, batch), 1e-4)
    assert driver.count("graph_launches") > 0


@pytest.mark.parametrize("size", [(38, 50), (2, 2), (12, 200)])
def test_nv12_frames_of_other_sizes_are_resized(inspecting: Any, size: tuple[int, int]) -> None:
    spec = COLOR.model_copy(update={"mean": (), "std": ()})
    same(*both(inspecting(spec, MAP)[0], spec, MAP, nv12_frames(3, *size)), 1.01 / 255)


@pytest.mark.parametrize("score", TILED, ids=["max", "mean", "output"])
def test_nv12_frames_are_cut_into_tiles(inspecting: Any, score: ScoreSpec) -> None:
    inspector, _ = inspecting(TILES, score)
    for _ in range(3):
        same(*both(inspector, TILES, score, nv12_frames(1, 38, 50)), 1e-4)


def test_an_nv12_frame_is_no_grey_one_of_as_many_bytes(inspecting: Any) -> None:
    spec = COLOR.model_copy(update={"mean": (), "std": ()})
    inspector, _ = inspecting(spec, MAP, slots=1)
    frame = nv12_frames(1, 24, 32)[0]
    grey = Frame(0, 0, frame.image, "grey")
    for batch in ([grey], [frame], [grey, frame], [frame, grey], [frame, frame]):
        same(*both(inspector, spec, MAP, batch), 1.01 / 255)


def test_an_nv12_frame_is_uploaded_as_it_is(inspecting: Any, driver: Any) -> None:
    """Half the bytes of BGR, and in the steady state nothing but they."""
    inspector, _ = inspecting(maps="never", batch=1, slots=1)
    batch = nv12_frames(6, 32, 64)
    for frame in batch[:3]:
        list(inspector.inspect([frame]))
    driver.reset()
    for frame in batch[3:]:
        list(inspector.inspect([frame]))
    allocated = driver.counts("allocations", "host_allocations", "events_created", "graphs_instantiated")
    assert set(allocated.values()) == {0}, allocated
    assert driver.counts("bytes_htod", "graph_launches") == {"bytes_htod": 3 * 32 * 64 * 3 // 2, "graph_launches": 3}


def test_sizes_may_change_from_frame_to_frame(inspecting: Any) -> None:
    sizes = [(24, 32, 3), (48, 32, 3), (24, 32), (24, 32, 3), (24, 32, 3), (24, 32, 3), (30, 30, 1)]
    images = [pictures(1, size, seed)[0] for seed, size in enumerate(sizes)]
    spec, sink = COLOR.model_copy(update={"mean": (), "std": ()}), ListSink()
    run([Stream(ArraySource(images), [sink])], inspecting(spec, MAP, slots=1)[0], policy="every")
    same(on_the_processor(spec, MAP, images, batch=1), sink, 1.01 / 255)


def test_a_picture_that_is_not_contiguous(inspecting: Any) -> None:
    images = [np.ascontiguousarray(image)[:, ::-1] for image in pictures(2, (24, 32, 3))]
    sink = ListSink()
    run([Stream(ArraySource(images), [sink])], inspecting()[0], policy="every")
    same(on_the_processor(COLOR, SSIM, images, batch=1), sink, 1e-4)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("zero_copy", [True, False])
def test_in_the_steady_state_nothing_is_allocated_and_a_frame_is_copied_once(
    inspecting: Any, driver: Any, graph: bool, zero_copy: bool
) -> None:
    images = pictures(12, (24, 32, 3))
    inspector, _ = inspecting(graph=graph, zero_copy=zero_copy, maps="never", batch=1)
    run([Stream(ArraySource(images[:6]), [ListSink()])], inspector, policy="every")
    driver.reset()
    statistics = run([Stream(ArraySource(images[6:]), [ListSink()])], inspector, policy="every")
    assert statistics.frames == 6
    counted = driver.counts(
        "allocations",
        "host_allocations",
        "frees",
        "host_frees",
        "events_created",
        "streams_created",
        "graphs_instantiated",
        "modules_loaded",
        "pageable_copies",
        "copies_dtod",
    )
    assert set(counted.values()) == {0}, counted
    assert driver.counts("copies_htod", "copies_dtoh", "bytes_htod", "bytes_dtoh", "graph_launches") == {
        "copies_htod": 0 if zero_copy else 6,
        "copies_dtoh": 6,
        "bytes_htod": 0 if zero_copy else 6 * 24 * 32 * 3,
        "bytes_dtoh": 6 * 4,
        "graph_launches": 6 if graph else 0,
    }
    # One for each verdict: the host waits for nothing else.
    assert driver.count("synchronisations") == 6


@pytest.mark.parametrize(("maps", "expected"), [("never", 0), ("rejects", 2), ("always", 5)])
def test_maps_are_downloaded_where_somebody_wants_them(inspecting: Any, driver: Any, maps: str, expected: int) -> None:
    levels = (20, 230, 40, 250, 60)
    images = [np.full((24, 32), level, np.uint8) for level in levels]
    inspector, _ = inspecting(GREY, MAP, batch=1, maps=maps, threshold=0.5)
    sink = ListSink()
    driver.reset()
    run([Stream(ArraySource(images), [sink])], inspector, policy="every")
    assert driver.count("copies_dtoh") - len(levels) == expected
    present = {"never": [], "rejects": [1, 3], "always": [0, 1, 2, 3, 4]}[maps]
    assert [index for index, verdict in enumerate(sink.verdicts) if verdict.map is not None] == present
    for index in present:
        np.testing.assert_allclose(sink.verdicts[index].map, levels[index] / 255, atol=1e-6)


def test_batches_overlap(inspecting: Any, driver: Any) -> None:
    """Two submitted batches, and nothing has run before somebody waits."""
    images = pictures(4, (24, 32, 3))
    inspector, _ = inspecting(slots=2, batch=2)
    inspector.submit(frames(images[:2]))
    inspector.submit(frames(images[2:]))
    with pytest.raises(EngineError, match="all 2 slots are taken"):
        inspector.submit(frames(images[:1]))
    verdicts = [*inspector.collect(), *inspector.collect()]
    expected = on_the_processor(COLOR, SSIM, images)
    np.testing.assert_allclose([v.score for v in verdicts], [v.score for v in expected.verdicts], atol=1e-4)
    with pytest.raises(EngineError, match="no frame was submitted"):
        next(inspector.collect())


def test_the_graph_is_captured_after_the_same_batch_came_twice(inspecting: Any, driver: Any) -> None:
    inspector, _ = inspecting(batch=4, slots=1)
    images = pictures(4, (24, 32, 3))
    for n in (1, 1, 1, 4, 4, 1, 1):
        list(inspector.inspect(frames(images[:n])))
    assert driver.counts("graphs_instantiated", "graph_launches") == {"graphs_instantiated": 3, "graph_launches": 4}
    assert driver.count("live_executables") == 2  # of 1 and of 4 frames
    assert inspector.graph_disabled_reason is None


def test_batches_of_several_cameras_find_their_memory_again(inspecting: Any, driver: Any) -> None:
    """Two cameras of different sizes: together, or one of them alone."""
    inspector, _ = inspecting(COLOR.model_copy(update={"mean": (), "std": ()}), MAP, batch=2, slots=1)
    wide, high = pictures(1, (24, 40, 3))[0], pictures(1, (50, 32, 3), seed=1)[0]
    mixtures = [[wide, high], [wide], [high]]
    expected = [[v.score for v in inspector.inspect(frames(images))] for images in mixtures]
    driver.reset()
    for _ in range(3):
        got = [[v.score for v in inspector.inspect(frames(images))] for images in mixtures]
        assert got == expected
    counted = driver.counts("allocations", "host_allocations", "frees", "host_frees", "events_created")
    assert set(counted.values()) == {0}, counted


def test_memory_of_sizes_that_no_longer_come_is_given_back(inspecting: Any, driver: Any) -> None:
    inspector, _ = inspecting(COLOR.model_copy(update={"mean": (), "std": ()}), MAP, batch=1, slots=1)
    live = []
    for side in range(20, 40):
        list(inspector.inspect(frames(pictures(1, (side, side, 3)))))
        live.append(driver.counts("live_allocations", "live_host_allocations", "live_events"))
    assert live[LAYOUTS:] == [live[LAYOUTS - 1]] * (20 - LAYOUTS)
    assert live[0] != live[LAYOUTS - 1]


def test_memory_of_other_sizes_makes_room_where_it_is_short(inspecting: Any, driver: Any) -> None:
    inspector, _ = inspecting(COLOR.model_copy(update={"mean": (), "std": ()}), MAP, batch=1, slots=1)
    list(inspector.inspect(frames(pictures(1, (24, 32, 3)))))
    one = driver.counts("live_allocations", "live_host_allocations", "live_events")
    driver.fail("cuMemAlloc_v2", OUT_OF_MEMORY, after=1, times=2)
    assert len(list(inspector.inspect(frames(pictures(1, (30, 32, 3)))))) == 1
    assert driver.counts("live_allocations", "live_host_allocations", "live_events") == one


def test_another_slots_batch_makes_a_graph_stale(inspecting: Any, driver: Any) -> None:
    """Both slots have graphs when the engine is given another shape: neither may be launched again."""
    inspector, engine = inspecting(batch=2, slots=2)
    images = pictures(2, (24, 32, 3))
    sizes = (1, 1, 1, 1, 2, 1, 1, 1, 1)
    expected = [verdict.score for verdict in on_the_processor(COLOR, SSIM, images).verdicts]
    for n in sizes:
        scores = [verdict.score for verdict in inspector.inspect(frames(images[:n]))]
        np.testing.assert_allclose(scores, expected[:n], atol=1e-4)
    assert engine.shape_changes == 3  # to 1, to 2 and back
    # Enqueued twice in each slot before the change, the second time into a graph; then all over again.
    assert engine.frames == [1, 1, 1, 1, 2, 1, 1, 1, 1]


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    inspecting: Any, driver: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="adedge.runtime.cuda.inspector")
    inspector, engine = inspecting(batch=1)
    images, sink = pictures(6, (24, 32, 3)), ListSink()
    engine.waits = True
    run([Stream(ArraySource(images), [sink])], inspector, policy="every")
    assert "not permitted when stream is capturing" in (inspector.graph_disabled_reason or "")
    assert driver.count("graph_launches") == 0
    assert caplog.text.count("continuing without a CUDA graph") == 1
    same(on_the_processor(COLOR, SSIM, images, batch=1), sink, 1e-4)


def test_times_are_taken_on_both_clocks(inspecting: Any) -> None:
    inspector, _ = inspecting(normalisation=Normalisation(mean=0.1, std=0.2, pictures=5))
    sink = ListSink()
    statistics = run([Stream(ArraySource(pictures(8, (24, 32, 3))), [sink])], inspector, policy="every", batch=2)
    for verdict in sink.verdicts:
        times = verdict.timings_ms
        assert set(times) == {
            "copy",
            "enqueue",
            "wait",
            "upload",
            "preprocess",
            "network",
            "scoring",
            "frame",
            "verdict",
        }
        assert min(times.values()) >= 0
        assert times["preprocess"] > 0
        assert times["scoring"] > 0
        assert times["frame"] >= times["copy"] + times["enqueue"] + times["wait"] - 1e-6
        assert verdict.z == pytest.approx((verdict.score - 0.1) / 0.2)
    assert isinstance(statistics, Statistics)
    assert statistics.latency_ms("network", 50) >= 0


def test_a_frame_that_cannot_be_inspected_is_refused_before_anything_runs(inspecting: Any, driver: Any) -> None:
    inspector, engine = inspecting(TILES, ScoreSpec(comparison=Dssim()))
    with pytest.raises(DataError, match=r"frame 0 \(picture 0\): .*smaller than a tile"):
        inspector.submit(frames([np.zeros((10, 40), np.uint8)]))
    with pytest.raises(DataError):
        inspector.submit(frames([np.zeros((20, 40), np.float32)]))
    with pytest.raises(EngineError, match="5 frames do not fit"):
        inspector.submit(frames(pictures(5, (20, 40))))
    assert engine.frames == []
    assert driver.count("launches") == 0
    # And the inspector goes on, also when a frame of the size that it knows is of another type.
    assert len(list(inspector.inspect(frames(pictures(1, (20, 40)))))) == 1
    for _ in range(2):
        with pytest.raises(DataError):
            inspector.submit(frames([np.zeros((20, 40), np.float32)]))
    assert len(list(inspector.inspect(frames(pictures(1, (20, 40)))))) == 1


def test_a_nan_in_the_network_is_an_error(inspecting: Any) -> None:
    spec = GREY.model_copy(update={"scale": 1e38, "mean": (0.0,), "std": (1e-30,)})
    inspector, _ = inspecting(spec, SSIM)
    with pytest.raises(EngineError, match=r"frame 0 \(picture 0\) has the score nan"):
        list(inspector.inspect(frames(pictures(1, (24, 32)))))


@pytest.mark.parametrize("after", range(4))
def test_memory_that_runs_out_leaks_nothing(gpu: Gpu, stand_in: Path, driver: Any, after: int) -> None:
    """Scoring, then frames, maps and scores of the first batch: each in turn does not get its memory."""
    engine = StandInEngine(gpu, stand_in, COLOR.shape, 2, "pair")
    before = driver.counts("live_allocations", "live_host_allocations", "live_events", "live_streams")
    driver.fail("cuMemAlloc_v2", OUT_OF_MEMORY, after=after, times=2)
    made: list[CudaInspector] = []
    try:
        made.append(CudaInspector(engine, COLOR, SSIM, threshold=0.5))
        list(made[0].inspect(frames(pictures(2))))
    except EngineError as error:
        message = str(error)
    assert "of GPU memory, of which" in message
    assert len(made) == (after > 0)
    driver.reset()
    for inspector in made:
        # Once there is enough again, it goes on.
        assert len(list(inspector.inspect(frames(pictures(2))))) == 2
        inspector.close()
    made.clear()
    assert driver.counts(*before) == before
    engine.close()


@pytest.mark.parametrize(
    "refused", ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuEventRecord", "cuStreamWaitEvent"]
)
def test_a_refused_call_is_one_sentence_and_the_next_frame_goes_on(inspecting: Any, driver: Any, refused: str) -> None:
    inspector, _ = inspecting(batch=1)
    driver.fail(refused, INVALID_VALUE)
    with pytest.raises(EngineError, match="invalid argument"):
        list(inspector.inspect(frames(pictures(1, (24, 32, 3)))))
    assert len(list(inspector.inspect(frames(pictures(1, (24, 32, 3)))))) == 1


def test_a_kernel_that_fails_is_named_and_everything_is_given_back(inspecting: Any, driver: Any) -> None:
    inspector, _ = inspecting(batch=1)
    driver.fail("execute identity_and_inverse", LAUNCH_FAILED)
    inspector.submit(frames(pictures(1, (24, 32, 3))))
    with pytest.raises(EngineError, match=r"the GPU failed after .*unspecified launch failure"):
        next(inspector.collect())
    driver.reset()


def test_an_engine_of_another_shape_is_refused(gpu: Gpu, stand_in: Path) -> None:
    engine = StandInEngine(gpu, stand_in, GREY.shape, 1, "pair")
    with pytest.raises(EngineError, match="build the engine again"):
        CudaInspector(engine, COLOR, SSIM, threshold=0.5)
    engine.close()
