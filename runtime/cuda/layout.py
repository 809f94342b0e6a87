"""What a batch of frames needs on the GPU: page-locked and device memory, and the work between upload and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adedge.runtime.backends import Array
from adedge.runtime.cuda.driver import Gpu, Launch, Resources, aligned
from adedge.runtime.cuda.graph import Graph, TimingEvent
from adedge.runtime.cuda.launches import (
    Picture,
    Reduction,
    largest_launch,
    merge_launch,
    preprocess_launch,
    reduction_blocks,
    tiles_launch,
)
from adedge.runtime.cuda.score_plan import ScorePlan
from adedge.runtime.inspector import Maps
from adedge.runtime.sources import Frame
from adedge.runtime.tiling import tile_grid
from adedge.specs import InputSpec, ScoreSpec


class DeviceEngine(Protocol):
    """An engine that reads and writes device memory: what `TensorRTBackend` adds to a `Backend`."""

    gpu: Gpu
    stream: Any
    batch: int
    device_input: int
    device_outputs: tuple[int, ...]
    shape_changes: int

    @property
    def input(self) -> Array:
        """Host array of the input; only its shape is used."""

    @property
    def outputs(self) -> tuple[Array, ...]:
        """Host arrays of the outputs; only their shapes are used."""

    def enqueue(self, n: int) -> None:
        """Enqueue the network for n frames on ``stream``; the context is current."""


@dataclass
class Layout:
    """Memory and work for a batch of frames of certain sizes; ``resources`` own it.

    The host writes the frames to ``host_frames``, views of ``host`` at ``address`` on the device, and reads the results
    from ``scores`` and ``maps`` (all page-locked); ``map_addresses`` are the maps on the device. ``steps`` enqueue one
    batch. ``events`` record its times: one at the start, then three per run of the engine.
    """

    resources: Resources
    host: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    host_frames: list[NDArray[np.uint8]] = field(default_factory=list)
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

    def enqueue(self) -> None:
        """Enqueue all steps of a batch."""
        for step in self.steps:
            step()

    def discard_graph(self) -> None:
        """Destroy the graph, if there is one."""
        if self.graph is not None:
            self.graph.close()
            self.graph = None

    def close(self) -> None:
        """Release everything."""
        self.discard_graph()
        # The steps reference the layout: without them the page-locked memory is freed with its last reader.
        self.steps.clear()
        self.resources.close()


class LayoutPlanner:
    """Allocates layouts and plans their steps: preprocessing, network, scoring and downloads.

    ``resources`` own what all layouts share: scratch memory for scoring, and the maps of one run of tiles.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        spec: InputSpec,
        score: ScoreSpec,
        resources: Resources,
        *,
        maps: Maps,
        zero_copy: bool,
    ) -> None:
        """Compiles and loads the kernels; the GPU's context must be current.

        Raises `EngineError` if that or an allocation fails, `DataError` if the kernels do not support the specs.
        """
        self._engine = engine
        self._gpu = engine.gpu
        self._spec = spec
        self._score = score
        self._maps: Maps = maps
        self._zero_copy = zero_copy
        outputs = [output.shape[1:] for output in engine.outputs]
        self._score_plan = ScorePlan(score, spec.shape, engine.batch, outputs, self._gpu.multiprocessors)
        for family in ("preprocess", *self._score_plan.families):
            self._gpu.load(family)
        self._scratch = resources.device(self._score_plan.scratch_bytes, "scoring")
        if self._score_plan.constants.size:
            self._gpu.cuda.memcpy_htod(self._scratch, self._score_plan.constants)
        if spec.tiling is not None:
            self._tile_maps = resources.device(4 * engine.batch * spec.height * spec.width, "tiles' maps")

    def layout(self, frames: Sequence[Frame]) -> Layout:
        """Allocate a layout for frames of these sizes. Raises `EngineError` if memory is short."""
        gpu = self._gpu
        starts = np.cumsum([0, *(aligned(frame.image.size) for frame in frames)]).tolist()
        layout = Layout(Resources(gpu))
        try:
            layout.host = gpu.pinned((starts[-1],), np.uint8, "frames", mapped=self._zero_copy)
            layout.host_frames = [
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

    def _plan_steps(self, layout: Layout, pictures: Sequence[Picture]) -> None:
        """Allocate memory for the results, and plan everything that is enqueued after the upload."""
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

    def _plan_whole(self, layout: Layout, pictures: Sequence[Picture], maps: int, scores: int) -> None:
        """Plan a batch in which each picture is one input of the network."""
        n, target = len(pictures), self._engine.device_input
        if len({replace(p, address=0) for p in pictures}) == 1:
            stride = pictures[1].address - pictures[0].address if n > 1 else 0
            preprocess = [preprocess_launch(self._spec, pictures[0], target, n=n, stride=stride)]
        else:
            size = 4 * int(np.prod(self._spec.shape))
            preprocess = [preprocess_launch(self._spec, p, target + i * size) for i, p in enumerate(pictures)]
        scoring = self._score_plan.launches(self._engine.device_outputs, n, maps, scores, self._scratch)
        self._plan_network(layout, preprocess, n, scoring)

    def _plan_tiles(self, layout: Layout, picture: Picture, merged: int, score: int) -> None:
        """Plan the tiles of one picture: as few engine runs of equal size as possible, merged into the picture's map.

        If the last run has fewer tiles, it recomputes leftovers of the run before, and the results are not read:
        changing the engine's input shape twice per frame would rule out a graph.
        """
        tiling, shape = self._spec.tiling, (picture.height, picture.width)
        assert tiling is not None
        grid = np.array(tile_grid(shape, tiling), np.int32)
        origins = layout.resources.device(grid.nbytes, "tiles")
        self._gpu.cuda.memcpy_htod(origins, grid)
        network_scores = self._score.reduce == "output"
        blocks = len(grid) if network_scores else reduction_blocks(*shape)
        partials = layout.resources.device(4 * blocks, "scores")
        size = -(-len(grid) // -(-len(grid) // self._engine.batch))
        for first in range(0, len(grid), size):
            n = min(size, len(grid) - first)
            run_origins = origins + 8 * first
            scoring = self._score_plan.map_launches(self._engine.device_outputs, n, self._tile_maps, self._scratch)
            if network_scores:
                scoring.append(largest_launch(self._engine.device_outputs[1], 1, partials + 4 * first, n))
            scoring.append(merge_launch(self._tile_maps, run_origins, n, tiling.tile, merged, shape, first=first == 0))
            if first + n == len(grid):
                whole = (1, *shape)
                reduction = Reduction(self._score, partials)
                scoring += (
                    [largest_launch(partials, len(grid), score)]
                    if network_scores
                    else [reduction.begin(merged, whole), reduction.finish(blocks, score, whole)]
                )
            preprocess = [tiles_launch(self._spec, picture, run_origins, n, self._engine.device_input)]
            self._plan_network(layout, preprocess, size, scoring)

    def _plan_network(self, layout: Layout, preprocess: Sequence[Launch], n: int, scoring: Sequence[Launch]) -> None:
        """Plan one run of the engine: preprocessing, network and scoring, with a timing event after each."""
        layout.steps += [self._launch(launch) for launch in preprocess]
        layout.steps.append(self._record(layout))
        layout.steps.append(partial(self._engine.enqueue, n))
        layout.steps.append(self._record(layout))
        layout.steps += [self._launch(launch) for launch in scoring]
        layout.steps.append(self._record(layout))

    def _launch(self, launch: Launch) -> Callable[[], None]:
        return partial(self._gpu.launch, launch, self._engine.stream)

    def _record(self, layout: Layout) -> Callable[[], None]:
        """A step that records the time on the GPU."""
        event = TimingEvent()
        layout.events.append(layout.resources.own(event, event.close))
        return lambda: event.record(self._engine.stream.handle, captured=layout.capturing)

    def _download(self, host: NDArray[Any], address: int) -> None:
        self._gpu.cuda.memcpy_dtoh_async(host, address, self._engine.stream)
