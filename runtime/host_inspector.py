"""The inspector that preprocesses and scores on the CPU, wherever its engine runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError
from adedge.manifest import Normalisation
from adedge.runtime.backends import Backend
from adedge.runtime.inspector import Judge, check_shape
from adedge.runtime.preprocess import Preprocessor
from adedge.runtime.scoring import Scorer
from adedge.runtime.sources import Frame
from adedge.runtime.tiling import cut_tiles, merge_maximum
from adedge.runtime.verdict import Verdict
from adedge.scoring import image_scores
from adedge.specs import InputSpec, ScoreSpec


class _BatchResult(NamedTuple):
    """The maps and scores of a batch, and the time (ns) spent in each of the three stages."""

    maps: Sequence[NDArray[np.float32]]
    scores: Sequence[float]
    preprocess_ns: int
    network_ns: int
    scoring_ns: int


class HostInspector:
    """An engine with its preprocessing and scoring: frames in, verdicts out.

    A frame is anomalous if ``score > threshold``. With ``spec.resize`` "tile" a frame keeps its resolution: its tiles
    go through engine and scoring (comparison and filters act within each tile, as in the paper), and their maps are
    merged by maximum. The frame's score is the reduction over the merged map, or the maximum of its tiles' scores if
    the network outputs them.
    """

    def __init__(
        self,
        backend: Backend,
        spec: InputSpec,
        score: ScoreSpec,
        *,
        threshold: float,
        normalisation: Normalisation | None = None,
    ) -> None:
        """Raises `EngineError` if the engine's input does not have the spec's shape."""
        check_shape(backend.input.shape, spec)
        self.batch = backend.batch
        self.slots = 1
        self._backend = backend
        self._spec = spec
        self._score = score
        self._judge = Judge(threshold=threshold, normalisation=normalisation, margin=score.margin)
        self._submitted: Sequence[Frame] = ()
        self._preprocess = Preprocessor(spec, backend.batch)
        self._scorer = Scorer(score, spec.shape, backend.batch)
        self._merged = np.zeros((0, 0), np.float32)

    def submit(self, frames: Sequence[Frame]) -> None:
        """Store the frames for `collect`, which does the work in the calling thread."""
        self._submitted = frames

    def collect(self) -> Iterator[Verdict]:
        """`inspect` the submitted frames."""
        return self.inspect(self._submitted)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def inspect(self, frames: Sequence[Frame]) -> Iterator[Verdict]:
        """The verdicts on up to ``batch`` frames, in order; each is complete at the moment it is yielded.

        Raises `EngineError` if the engine fails or gives a score that is not finite, `DataError` if a frame is smaller
        than a tile.
        """
        if self._spec.tiling is None:
            yield from self._verdicts(frames, self._run_whole(frames))
        else:
            for frame in frames:
                yield from self._verdicts([frame], self._run_tiles(frame))

    def _verdicts(self, frames: Sequence[Frame], result: _BatchResult) -> Iterator[Verdict]:
        stages = result.preprocess_ns, result.network_ns, result.scoring_ns
        timings_ms = dict(zip(("preprocess", "network", "scoring"), (ns / 1e6 for ns in stages), strict=True))
        timings_ms["frame"] = sum(stages) / 1e6
        for frame, anomaly_map, score in zip(frames, result.maps, result.scores, strict=True):
            yield self._judge.verdict(frame, score, anomaly_map, timings_ms)

    def _run_whole(self, frames: Sequence[Frame]) -> _BatchResult:
        """Run frames that are not tiled; converting them from a camera's format counts as preprocessing."""
        started = time.monotonic_ns()
        return self._run([frame.picture for frame in frames], started)

    def _run(self, images: Sequence[NDArray[np.uint8]], started: int) -> _BatchResult:
        """Run at most ``batch`` pictures through preprocessing, which began at ``started``, network and scoring."""
        n = self._preprocess(images, self._backend.input)
        preprocessed = time.monotonic_ns()
        self._backend.run(n)
        executed = time.monotonic_ns()
        maps, scores = self._scorer([output[:n] for output in self._backend.outputs])
        scored = time.monotonic_ns()
        return _BatchResult(
            list(maps), scores.tolist(), preprocessed - started, executed - preprocessed, scored - executed
        )

    def _run_tiles(self, frame: Frame) -> _BatchResult:
        """Run all tiles of a frame, ``batch`` at a time, merging their maps batch by batch to save memory."""
        assert self._spec.tiling is not None
        started = time.monotonic_ns()
        try:
            tiles, origins = cut_tiles(frame.picture, self._spec.tiling)
        except DataError as error:
            raise DataError(f"frame {frame.index} ({frame.name}): {error}") from error
        merged = self._reset_merged(*frame.size)
        scores: list[float] = []
        network_ns = scoring_ns = 0
        preprocess_ns = time.monotonic_ns() - started
        for first in range(0, len(tiles), self.batch):
            part = self._run(tiles[first : first + self.batch], time.monotonic_ns())
            merging = time.monotonic_ns()
            merge_maximum(merged, part.maps, origins[first : first + self.batch])
            scores.extend(part.scores)
            preprocess_ns += part.preprocess_ns
            network_ns += part.network_ns
            scoring_ns += part.scoring_ns + time.monotonic_ns() - merging
        reducing = time.monotonic_ns()
        # np.max propagates NaN, which max() may lose.
        score = float(np.max(scores) if self._score.reduce == "output" else image_scores(self._score, merged[None])[0])
        return _BatchResult([merged], [score], preprocess_ns, network_ns, scoring_ns + time.monotonic_ns() - reducing)

    def _reset_merged(self, height: int, width: int) -> NDArray[np.float32]:
        """The merged map (height, width), filled with -inf; allocated anew only if frames change size."""
        if self._merged.shape != (height, width):
            self._merged = np.empty((height, width), np.float32)
        self._merged.fill(-np.inf)
        return self._merged
