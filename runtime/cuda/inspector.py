"""The inspector that runs everything between a frame and its score on the GPU.

A batch of frames occupies a *slot*: page-locked host memory, and device memory for frames, scores and maps. While the
GPU computes in one slot, the host fills the next, whose upload runs on a separate stream. Preprocessing, network,
scoring and the download of the scores run on the engine's stream; once a batch with the same frame sizes has occurred
twice, they are replayed as one CUDA graph. Memory is allocated when frames of new sizes arrive, and cached.

Times are measured with two clocks: CUDA events on the GPU ("upload", "preprocess", "network", "scoring") and the
host's clock ("copy" into page-locked memory, "enqueue", "wait", and "frame" from the start of the copy to the score).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.data.pictures import check_frame
from adedge.errors import DataError, EngineError
from adedge.manifest import Normalisation
from adedge.runtime.cuda.driver import Resources
from adedge.runtime.cuda.graph import Graph, TimingEvent
from adedge.runtime.cuda.layout import DeviceEngine, Layout, LayoutPlanner
from adedge.runtime.inspector import Judge, Maps, check_shape
from adedge.runtime.sources import Frame
from adedge.runtime.tiling import tile_grid
from adedge.runtime.verdict import Verdict
from adedge.specs import InputSpec, ScoreSpec

log = logging.getLogger(__name__)

Sizes = tuple[tuple[tuple[int, ...], bool], ...]
"""The shapes of a batch's frames in memory, and whether each is NV12."""

LAYOUTS = 4
"""Layouts that a slot caches: cameras that share an engine alternate between batches of different sizes."""


@dataclass
class _Slot:
    """One batch on its way through the GPU: ``frames`` in ``layout``, one of the cached ``layouts``.

    ``fixed`` owns what a slot needs for any batch.
    """

    fixed: Resources
    uploaded: Any
    done: Any
    upload_events: tuple[TimingEvent, TimingEvent]
    layout: Layout
    layouts: dict[Sizes, Layout] = field(default_factory=dict)
    frames: Sequence[Frame] = ()
    started_ns: int = 0
    copied_ns: int = 0
    enqueued_ns: int = 0

    def close_layouts(self) -> None:
        """Release all memory that depends on the frames' sizes."""
        for layout in self.layouts.values():
            layout.close()
        self.layouts.clear()


class CudaInspector:
    """Runs an engine, its preprocessing and its scoring on the GPU: frames in, verdicts out.

    ``slots`` is the number of batches in flight; ``maps`` selects which maps are downloaded; ``graph`` enables CUDA
    graphs; ``zero_copy`` lets the GPU read frames where the host wrote them, by default if both share memory.
    ``graph_disabled_reason`` tells why no graph is used; it is None as long as nothing prevents one.

    Equals `adedge.runtime.host_inspector.HostInspector` for the same engine outputs, within the kernels' tolerances.
    Used by `adedge.runtime.pipeline`.
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

        Raises `EngineError` if the engine's input does not match the spec, a kernel cannot be compiled or loaded, or
        memory is short; `DataError` if the kernels do not support the specs.
        """
        check_shape(engine.input.shape, spec)
        if slots < 1:
            raise EngineError(f"an inspector requires at least 1 slot, not {slots}")
        self.batch = engine.batch
        self.slots = slots
        self.graph_disabled_reason: str | None = None if graph else "switched off"
        self._engine = engine
        self._gpu = engine.gpu
        self._spec = spec
        self._judge = Judge(threshold=threshold, normalisation=normalisation, margin=score.margin)
        self._maps: Maps = maps
        self._zero_copy = self._gpu.integrated if zero_copy is None else zero_copy
        self._in_flight: deque[_Slot] = deque()
        self._next = 0
        self._slots: list[_Slot] = []
        with self._gpu.current(), Resources(self._gpu) as self._resources:
            try:
                self._planner = LayoutPlanner(
                    engine, spec, score, self._resources, maps=maps, zero_copy=self._zero_copy
                )
                self._upload_stream: Any = self._gpu.stream()
                for _ in range(slots):
                    self._slots.append(self._new_slot())
            except BaseException:
                self._close_slots()
                raise

    def inspect(self, frames: Sequence[Frame]) -> Iterator[Verdict]:
        """Inspect up to ``batch`` frames: `submit`, then `collect`."""
        self.submit(frames)
        return self.collect()

    def submit(self, frames: Sequence[Frame]) -> None:
        """Copy up to ``batch`` frames into a slot and enqueue all of their work.

        Raises `DataError` if a frame is not uint8 with 1 or 3 channels, or is smaller than a tile; `EngineError` if
        all slots are taken, memory is short, or the GPU fails.
        """
        if not 1 <= len(frames) <= self.batch:
            raise EngineError(f"{len(frames)} frames do not fit into a batch of 1 to {self.batch}: pass them in parts")
        if len(self._in_flight) == self.slots:
            raise EngineError(f"all {self.slots} slots are taken: collect the verdicts of the first batch")
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
        self._in_flight.append(slot)

    def collect(self) -> Iterator[Verdict]:
        """Yield the verdicts on the batch submitted first. Raises `EngineError` if the GPU failed or a score is NaN."""
        if not self._in_flight:
            raise EngineError("no frame was submitted: call submit() first")
        slot = self._in_flight.popleft()
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
        """Release all memory; the engine stays open. A second call does nothing."""
        with self._gpu.current():
            with suppress(self._gpu.cuda.Error):  # failures were raised by the calls that caused them
                self._engine.stream.synchronize()
            self._close_slots()
            self._upload_stream = None
        self._resources.close()

    def _new_slot(self) -> _Slot:
        """Create what a slot needs for frames of any size."""
        gpu = self._gpu
        with Resources(gpu) as resources:
            events = TimingEvent(), TimingEvent()
            for event in events:
                resources.own(event, event.close)
            return _Slot(
                fixed=resources,
                uploaded=gpu.event(),
                done=gpu.event(),
                upload_events=events,
                layout=Layout(Resources(gpu)),
            )

    def _close_slots(self) -> None:
        for slot in self._slots:
            slot.close_layouts()
            slot.fixed.close()
        self._slots.clear()

    def _fill(self, slot: _Slot, frames: Sequence[Frame]) -> None:
        """Copy the frames into the slot's page-locked memory."""
        for frame in frames:
            check_frame(frame.image)
        sizes = tuple((frame.image.shape, frame.nv12) for frame in frames)
        if sizes not in slot.layouts:
            for frame in frames:
                self._check_tiles(frame)
            slot.layouts[sizes] = self._new_layout(slot, frames)
        # Move the layout to the end: the least recently used one comes first and is dropped first.
        slot.layout = slot.layouts[sizes] = slot.layouts.pop(sizes)
        slot.frames = frames
        for frame, host_frame in zip(frames, slot.layout.host_frames, strict=True):
            np.copyto(host_frame, frame.image)

    def _check_tiles(self, frame: Frame) -> None:
        """Raise `DataError` if a frame is smaller than a tile."""
        if self._spec.tiling is not None:
            try:
                tile_grid(frame.size, self._spec.tiling)
            except DataError as error:
                raise DataError(f"frame {frame.index} ({frame.name}): {error}") from error

    def _new_layout(self, slot: _Slot, frames: Sequence[Frame]) -> Layout:
        """Allocate a layout; drop the slot's least recently used one if it has too many, all if memory is short."""
        if len(slot.layouts) == LAYOUTS:
            slot.layouts.pop(next(iter(slot.layouts))).close()
        try:
            return self._planner.layout(frames)
        except EngineError:
            if not slot.layouts:
                raise
            slot.close_layouts()
            return self._planner.layout(frames)

    def _upload(self, slot: _Slot) -> None:
        """Copy the frames to the device on the upload stream, and make the engine's stream wait for it."""
        if self._zero_copy:
            return
        stream = self._upload_stream
        slot.upload_events[0].record(stream.handle)
        self._gpu.cuda.memcpy_htod_async(slot.layout.address, slot.layout.host, stream)
        slot.upload_events[1].record(stream.handle)
        slot.uploaded.record(stream)
        self._engine.stream.wait_for_event(slot.uploaded)

    def _compute(self, layout: Layout) -> None:
        """Enqueue a batch: step by step the first time, later as a graph if one can be captured.

        A graph is valid only for the engine's current input shape. It is captured once the same batch has run without
        one: TensorRT allocates in its first run, which a capture forbids, and capturing frames that always have new
        sizes would be wasted.
        """
        stream = self._engine.stream.handle
        repeated = layout.runs > 0 and layout.shape_changes == self._engine.shape_changes
        if repeated and layout.graph is None and self.graph_disabled_reason is None:
            layout.graph = self._capture(layout)
        if repeated and layout.graph is not None:
            layout.graph.launch(stream)
            return
        layout.enqueue()
        layout.discard_graph()
        layout.runs += 1
        layout.shape_changes = self._engine.shape_changes

    def _capture(self, layout: Layout) -> Graph | None:
        """Capture the layout's steps as a graph; if that fails, store the reason and return None."""
        layout.capturing = True
        try:
            return Graph(self._engine.stream.handle, layout.enqueue)
        except (EngineError, self._gpu.cuda.Error) as error:
            self.graph_disabled_reason = str(error)
            log.info("continuing without a CUDA graph: %s", self.graph_disabled_reason)
            return None
        finally:
            layout.capturing = False

    def _times(self, slot: _Slot) -> dict[str, float]:
        """Milliseconds on the GPU's clock, and on the host's until everything was enqueued."""
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
        """The map of a frame, if it is needed."""
        if self._maps == "never" or (self._maps == "rejects" and not score > self._judge.threshold):
            return None
        if self._maps == "rejects":
            # Use the upload stream: the engine's stream is busy with the next batch.
            layout = slot.layout
            with self._gpu.current():
                self._gpu.cuda.memcpy_dtoh_async(layout.maps[index], layout.map_addresses[index], self._upload_stream)
                self._gpu.wait(self._upload_stream)
        return slot.layout.maps[index]
