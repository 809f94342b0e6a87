"""The inspector whose work between a frame and its score is all on the GPU.

A batch of frames passes through a *slot*: page-locked host memory, and device memory for frames, scores and maps. While
the GPU computes in one slot, the host fills the next, whose upload runs on a stream of its own. Preprocessing, network,
scoring and the download of the scores run on the engine's stream and, once a batch of the same sizes came twice, are
replayed as one CUDA graph. Memory is allocated when frames of new sizes come, and kept for when they come again.

Times are taken twice: by CUDA events on the GPU ("upload", "preprocess", "network", "scoring") and by the host's clock
("copy" into page-locked memory, "enqueue", "wait", and "frame" from the first of them to the score).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Normalisation
from adedge.data.pictures import check_frame
from adedge.errors import DataError, EngineError
from adedge.runtime.backends import Array
from adedge.runtime.cuda.driver import Gpu, Launch, Resources
from adedge.runtime.cuda.graph import Graph, TimingEvent
from adedge.runtime.cuda.launches import (
    Picture,
    Reduction,
    ScorePlan,
    largest_launch,
    merge_launch,
    preprocess_launch,
    reduction_blocks,
    tiles_launch,
)
from adedge.runtime.inspector import Judge, Maps, check_shape
from adedge.runtime.sources import Frame
from adedge.runtime.tiling import tile_grid
from adedge.runtime.verdict import Verdict
from adedge.specs import InputSpec, ScoreSpec

log = logging.getLogger(__name__)


class DeviceEngine(Protocol):
    """An engine that is run between two places in device memory: what `TensorRTBackend` is besides a `Backend`."""

    gpu: Gpu
    stream: Any
    batch: int
    device_input: int
    device_outputs: tuple[int, ...]
    shape_changes: int

    @property
    def input(self) -> Array:
        """Host twin of the input: only its shape is asked for."""

    @property
    def outputs(self) -> tuple[Array, ...]:
        """Host twins of the outputs: only their shapes are asked for."""

    def enqueue(self, n: int) -> None:
        """Enqueue the network for n frames on ``stream``; the context is current."""


Sizes = tuple[tuple[tuple[int, ...], bool], ...]
"""The shapes of a batch's frames as they lie in memory, and whether they are NV12."""

LAYOUTS = 4
"""For so many different sizes of its frames a slot keeps what it made: several cameras give batches in turns."""


@dataclass
class _Layout:
    """What a slot needs for a batch of frames of certain sizes; ``resources`` own it.

    ``places`` are where the host writes the frames, ``scores`` and ``maps`` where it reads the results (page-locked
    all), ``map_addresses`` where the maps are on the device, ``steps`` what one batch enqueues, and ``events`` the time
    stamps that it takes: one at the start, then three for each run of the engine.
    """

    resources: Resources
    host: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    places: list[NDArray[np.uint8]] = field(default_factory=list)
    address: int = 0
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    maps: list[NDArray[np.float32]] = field(default_factory=list)
    map_addresses: list[int] = field(default_factory=list)
    steps: list[Callable[[], None]] = field(default_factory=list)
    events: list[TimingEvent] = field(default_factory=list)
    graph: Graph | None = None
    runs: int = 0
    shape_changes: int = -1
    capturing: bool = False

    def close(self) -> None:
        """Give all of it back."""
        if self.graph is not None:
            self.graph.close()
            self.graph = None
        # The steps hold the layout; without them the page-locked memory goes with the last that reads it.
        self.steps.clear()
        self.resources.close()


@dataclass
class _Slot:
    """One batch on its way through the GPU: ``frames`` in ``layout``, one of ``layouts``.

    ``fixed`` owns what every batch needs.
    """

    fixed: Resources
    uploaded: Any
    done: Any
    upload_events: tuple[TimingEvent, TimingEvent]
    layout: _Layout
    layouts: dict[Sizes, _Layout] = field(default_factory=dict)
    frames: Sequence[Frame] = ()
    started_ns: int = 0
    copied_ns: int = 0
    enqueued_ns: int = 0

    def close_layouts(self) -> None:
        """Give back all that depends on the frames' sizes."""
        for layout in self.layouts.values():
            layout.close()
        self.layouts.clear()


class CudaInspector:
    """An engine on the GPU with what surrounds it there: frames in, verdicts out. See `adedge.runtime.pipeline`.

    ``slots`` batches are under way at once. ``maps`` says which maps are downloaded; ``graph`` whether CUDA graphs are
    tried; ``zero_copy`` whether the GPU reads frames where the host wrote them, which by default it does where both
    share one memory. ``graph_disabled_reason`` says why no graph is used, None where nothing stands against it.

    Equals `adedge.runtime.host_inspector.HostInspector` on the same engine's outputs, within the kernels' tolerances.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        spec: InputSpec,
        score: ScoreSpec,
        *,
        threshold: float,
        normalisation: Normalisation | None = None,
        slots: int = 2,
        maps: Maps = "always",
        graph: bool = True,
        zero_copy: bool | None = None,
    ) -> None:
        """Compiles and loads the kernels.

        Raises `EngineError` where the engine's input is not of the spec's shape, a kernel cannot be compiled or loaded,
        or memory is short; `DataError` where the kernels do not do what the specs ask.
        """
        check_shape(engine.input.shape, spec)
        if slots < 1:
            raise EngineError(f"{slots} slots hold no frame: give 1 or more")
        self.batch = engine.batch
        self.slots = slots
        self.graph_disabled_reason: str | None = None if graph else "switched off"
        self._engine = engine
        self._gpu = engine.gpu
        self._spec = spec
        self._score = score
        self._judge = Judge(threshold=threshold, normalisation=normalisation)
        self._maps: Maps = maps
        self._zero_copy = self._gpu.integrated if zero_copy is None else zero_copy
        outputs = [output.shape[1:] for output in engine.outputs]
        self._plan = ScorePlan(score, spec.shape, engine.batch, outputs, self._gpu.multiprocessors)
        self._under_way: deque[_Slot] = deque()
        self._next = 0
        self._slots: list[_Slot] = []
        with self._gpu.current(), Resources(self._gpu) as self._resources:
            try:
                for family in ("preprocess", *self._plan.families):
                    self._gpu.load(family)
                self._upload_stream: Any = self._gpu.stream()
                self._scratch = self._resources.device(self._plan.scratch_bytes, "scoring")
                if self._plan.constants.size:
                    self._gpu.cuda.memcpy_htod(self._scratch, self._plan.constants)
                if spec.tiling is not None:
                    plane = spec.height * spec.width
                    self._tile_maps = self._resources.device(4 * engine.batch * plane, "tiles' maps")
                for _ in range(slots):
                    self._slots.append(self._slot())
            except BaseException:
                self._close_slots()
                raise

    def inspect(self, frames: Sequence[Frame]) -> Iterator[Verdict]:
        """The verdicts on up to ``batch`` frames, in order: `submit` and `collect`."""
        self.submit(frames)
        return self.collect()

    def submit(self, frames: Sequence[Frame]) -> None:
        """Copy up to ``batch`` frames into a slot and enqueue all that is to be done with them.

        Raises `DataError` where a frame is not uint8 of 1 or 3 channels, or smaller than a tile; `EngineError` where
        all slots are taken, memory is short, or the GPU fails.
        """
        if not 1 <= len(frames) <= self.batch:
            raise EngineError(f"{len(frames)} frames do not fit into a batch of 1 to {self.batch}: pass them in parts")
        if len(self._under_way) == self.slots:
            raise EngineError(f"all {self.slots} slots are taken: collect the verdicts of the first")
        slot = self._slots[self._next]
        slot.started_ns = time.monotonic_ns()
        with self._gpu.current():
            try:
                self._fill(slot, frames)
                slot.copied_ns = time.monotonic_ns()
                self._upload(slot)
                self._compute(slot.layout)
                slot.done.record(self._engine.stream)
            except self._gpu.cuda.Error as exc:
                raise EngineError(f"the GPU failed on frame {frames[0].index} ({frames[0].name}): {exc}") from exc
        slot.enqueued_ns = time.monotonic_ns()
        self._next = (self._next + 1) % self.slots
        self._under_way.append(slot)

    def collect(self) -> Iterator[Verdict]:
        """The verdicts on the frames submitted first. Raises `EngineError` where the GPU failed or a score is NaN."""
        if not self._under_way:
            raise EngineError("no frame was submitted")
        slot = self._under_way.popleft()
        waiting_ns = time.monotonic_ns()
        with self._gpu.current():
            self._gpu.wait(slot.done)
            finished_ns = time.monotonic_ns()
            timings_ms = self._times(slot)
        timings_ms["wait"] = (finished_ns - waiting_ns) / 1e6
        timings_ms["frame"] = (finished_ns - slot.started_ns) / 1e6
        for index, frame in enumerate(slot.frames):
            score = float(slot.layout.scores[index])
            yield self._judge.verdict(frame, score, self._map_of(slot, index, score), timings_ms)

    def close(self) -> None:
        """Give back all that was allocated; the engine stays. A second call does nothing."""
        with self._gpu.current():
            with suppress(self._gpu.cuda.Error):  # what failed was raised where it ran
                self._engine.stream.synchronize()
            self._close_slots()
            self._upload_stream = None
        self._resources.close()

    def _slot(self) -> _Slot:
        """Everything a slot needs whatever the size of the frames."""
        gpu = self._gpu
        with Resources(gpu) as resources:
            events = TimingEvent(), TimingEvent()
            for event in events:
                resources.owned(event, event.close)
            return _Slot(
                fixed=resources,
                uploaded=gpu.event(),
                done=gpu.event(),
                upload_events=events,
                layout=_Layout(Resources(gpu)),
            )

    def _close_slots(self) -> None:
        for slot in self._slots:
            slot.close_layouts()
            slot.fixed.close()
        self._slots.clear()

    def _fill(self, slot: _Slot, frames: Sequence[Frame]) -> None:
        """Copy the frames into the slot's page-locked memory, one after the other."""
        for frame in frames:
            check_frame(frame.image)
        sizes = tuple((frame.image.shape, frame.nv12) for frame in frames)
        if sizes not in slot.layouts:
            for frame in frames:
                self._check_tiles(frame)
            slot.layouts[sizes] = self._new_layout(slot, frames)
        # Those used last are at the end, and go last.
        slot.layout = slot.layouts[sizes] = slot.layouts.pop(sizes)
        slot.frames = frames
        for frame, place in zip(frames, slot.layout.places, strict=True):
            np.copyto(place, frame.image)

    def _check_tiles(self, frame: Frame) -> None:
        """Raises `DataError` where a frame is smaller than a tile."""
        if self._spec.tiling is not None:
            try:
                tile_grid(frame.size, self._spec.tiling)
            except DataError as error:
                raise DataError(f"frame {frame.index} ({frame.name}): {error}") from error

    def _new_layout(self, slot: _Slot, frames: Sequence[Frame]) -> _Layout:
        """A layout for a slot that may have too many, or for a GPU that has no memory left beside them."""
        if len(slot.layouts) == LAYOUTS:
            slot.layouts.pop(next(iter(slot.layouts))).close()
        try:
            return self._layout(frames)
        except EngineError:
            if not slot.layouts:
                raise
            slot.close_layouts()
            return self._layout(frames)

    def _layout(self, frames: Sequence[Frame]) -> _Layout:
        """Memory for frames of these sizes, and the steps that a batch of them takes."""
        gpu = self._gpu
        starts = np.cumsum([0, *(_aligned(frame.image.size) for frame in frames)]).tolist()
        layout = _Layout(Resources(gpu))
        try:
            layout.host = gpu.pinned((starts[-1],), np.uint8, "frames", mapped=self._zero_copy)
            layout.places = [
                layout.host[start : start + frame.image.size].reshape(frame.image.shape)
                for start, frame in zip(starts, frames, strict=False)
            ]
            layout.address = (
                gpu.mapped_address(layout.host)
                if self._zero_copy
                else layout.resources.device(layout.host.nbytes, "frames")
            )
            pictures = [
                Picture(layout.address + start, *frame.size, frame.image[0, 0].size, frame.nv12)
                for start, frame in zip(starts, frames, strict=False)
            ]
            self._plan_steps(layout, pictures)
        except BaseException:
            layout.close()
            raise
        return layout

    def _plan_steps(self, layout: _Layout, pictures: Sequence[Picture]) -> None:
        """Memory for the results, and everything that is enqueued between the upload and the end."""
        tiled = self._spec.tiling is not None
        shapes = [(p.height, p.width) if tiled else self._spec.shape[1:] for p in pictures]
        starts = np.cumsum([0, *(4 * height * width for height, width in shapes)]).tolist()
        maps = layout.resources.device(starts[-1], "maps")
        scores = layout.resources.device(4 * len(pictures), "scores")
        layout.map_addresses = [maps + start for start in starts[:-1]]
        layout.maps = [] if self._maps == "never" else [self._gpu.pinned(shape, np.float32, "maps") for shape in shapes]
        layout.scores = self._gpu.pinned((len(pictures),), np.float32, "scores")
        layout.events.clear()
        layout.steps = [self._record(layout)]
        if tiled:
            for index, picture in enumerate(pictures):
                self._plan_tiles(layout, picture, layout.map_addresses[index], scores + 4 * index)
        else:
            self._plan_whole(layout, pictures, maps, scores)
        layout.steps.append(partial(self._download, layout.scores, scores))
        if self._maps == "always":
            layout.steps += [
                partial(self._download, *pair) for pair in zip(layout.maps, layout.map_addresses, strict=True)
            ]

    def _plan_whole(self, layout: _Layout, pictures: Sequence[Picture], maps: int, scores: int) -> None:
        """Each picture is one input of the network."""
        n, target = len(pictures), self._engine.device_input
        if len({replace(p, address=0) for p in pictures}) == 1:
            stride = pictures[1].address - pictures[0].address if n > 1 else 0
            preprocess = [preprocess_launch(self._spec, pictures[0], target, n=n, stride=stride)]
        else:
            size = 4 * int(np.prod(self._spec.shape))
            preprocess = [preprocess_launch(self._spec, p, target + i * size) for i, p in enumerate(pictures)]
        scoring = self._plan.launches(self._engine.device_outputs, n, maps, scores, self._scratch)
        self._plan_network(layout, preprocess, n, scoring)

    def _plan_tiles(self, layout: _Layout, picture: Picture, merged: int, score: int) -> None:
        """The tiles of one picture in as few equal runs of the engine as do, merged as they come into its own map.

        The last run may be short of tiles. It computes what the run before left in its place, which nobody reads: an
        engine that is told another shape twice a frame could not be replayed as a graph.
        """
        tiling, shape = self._spec.tiling, (picture.height, picture.width)
        assert tiling is not None
        grid = np.array(tile_grid(shape, tiling), np.int32)
        origins = layout.resources.device(grid.nbytes, "tiles")
        self._gpu.cuda.memcpy_htod(origins, grid)
        own_scores = self._score.reduce == "output"
        blocks = len(grid) if own_scores else reduction_blocks(*shape)
        partials = layout.resources.device(4 * blocks, "scores")
        size = -(-len(grid) // -(-len(grid) // self.batch))
        for first in range(0, len(grid), size):
            n = min(size, len(grid) - first)
            where = origins + 8 * first
            scoring = self._plan.map_launches(self._engine.device_outputs, n, self._tile_maps, self._scratch)
            if own_scores:
                scoring.append(largest_launch(self._engine.device_outputs[1], 1, partials + 4 * first, n))
            scoring.append(merge_launch(self._tile_maps, where, n, tiling.tile, merged, shape, first=first == 0))
            if first + n == len(grid):
                whole = (1, *shape)
                reduction = Reduction(self._score, partials)
                scoring += (
                    [largest_launch(partials, len(grid), score)]
                    if own_scores
                    else [reduction.begin(merged, whole), reduction.finish(blocks, score, whole)]
                )
            preprocess = [tiles_launch(self._spec, picture, where, n, self._engine.device_input)]
            self._plan_network(layout, preprocess, size, scoring)

    def _plan_network(self, layout: _Layout, preprocess: Sequence[Launch], n: int, scoring: Sequence[Launch]) -> None:
        """One run of the engine, with what comes before and after it, and a time stamp after each of the three."""
        layout.steps += [self._launch(launch) for launch in preprocess]
        layout.steps.append(self._record(layout))
        layout.steps.append(partial(self._engine.enqueue, n))
        layout.steps.append(self._record(layout))
        layout.steps += [self._launch(launch) for launch in scoring]
        layout.steps.append(self._record(layout))

    def _launch(self, launch: Launch) -> Callable[[], None]:
        return partial(self._gpu.launch, launch, self._engine.stream)

    def _record(self, layout: _Layout) -> Callable[[], None]:
        """A step that takes the time on the GPU."""
        event = TimingEvent()
        layout.events.append(layout.resources.owned(event, event.close))
        return lambda: event.record(self._engine.stream.handle, captured=layout.capturing)

    def _download(self, host: NDArray[Any], address: int, stream: Any = None) -> None:
        self._gpu.cuda.memcpy_dtoh_async(host, address, stream or self._engine.stream)

    # One batch

    def _upload(self, slot: _Slot) -> None:
        """Copy the frames to the device on a stream of their own, which the engine's stream waits for."""
        if self._zero_copy:
            return
        stream = self._upload_stream
        slot.upload_events[0].record(stream.handle)
        self._gpu.cuda.memcpy_htod_async(slot.layout.address, slot.layout.host, stream)
        slot.upload_events[1].record(stream.handle)
        slot.uploaded.record(stream)
        self._engine.stream.wait_for_event(slot.uploaded)

    def _compute(self, layout: _Layout) -> None:
        """Enqueue a batch's steps: as they are at first, from then on as a graph where that can be had.

        A graph holds for the shapes that the engine was given last. One is captured after the same batch ran without:
        TensorRT allocates in a first run, which a capture forbids, and pictures of ever new sizes would be captured in
        vain.
        """
        stream = self._engine.stream.handle
        known = layout.runs > 0 and layout.shape_changes == self._engine.shape_changes
        if known and layout.graph is None and self.graph_disabled_reason is None:
            layout.graph = self._captured(layout)
        if known and layout.graph is not None:
            layout.graph.launch(stream)
            return
        _enqueue(layout)
        if layout.graph is not None:
            layout.graph.close()
            layout.graph = None
        layout.runs += 1
        layout.shape_changes = self._engine.shape_changes

    def _captured(self, layout: _Layout) -> Graph | None:
        """The layout's steps as a graph; None, and the obstacle kept, where one of them cannot be captured."""
        layout.capturing = True
        try:
            return Graph(self._engine.stream.handle, partial(_enqueue, layout))
        except (EngineError, self._gpu.cuda.Error) as error:
            self.graph_disabled_reason = str(error)
            log.info("going on without a CUDA graph: %s", self.graph_disabled_reason)
            return None
        finally:
            layout.capturing = False

    def _times(self, slot: _Slot) -> dict[str, float]:
        """Milliseconds by the GPU's clock, and by the host's until everything was enqueued."""
        events = slot.layout.events
        stages = [
            sum(events[run + stage + 1].ms_since(events[run + stage]) for run in range(0, len(events) - 1, 3))
            for stage in range(3)
        ]
        times = dict(zip(("preprocess", "network", "scoring"), stages, strict=True))
        times["upload"] = 0.0 if self._zero_copy else slot.upload_events[1].ms_since(slot.upload_events[0])
        times["copy"] = (slot.copied_ns - slot.started_ns) / 1e6
        times["enqueue"] = (slot.enqueued_ns - slot.copied_ns) / 1e6
        return times

    def _map_of(self, slot: _Slot, index: int, score: float) -> NDArray[np.float32] | None:
        """A frame's map, where somebody wants it."""
        if self._maps == "never" or (self._maps == "rejects" and not score > self._judge.threshold):
            return None
        if self._maps == "rejects":
            # On the stream of uploads: the engine's is busy with the next batch.
            with self._gpu.current():
                self._download(slot.layout.maps[index], slot.layout.map_addresses[index], self._upload_stream)
                self._gpu.wait(self._upload_stream)
        return slot.layout.maps[index]


def _enqueue(layout: _Layout) -> None:
    """All steps of a batch, one after the other."""
    for step in layout.steps:
        step()


def _aligned(size: int) -> int:
    """Bytes of a frame, rounded up so that the next one starts as aligned as an allocation of its own."""
    return -(-size // 256) * 256
