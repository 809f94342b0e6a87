"""Plans the scoring of a `ScoreSpec` as kernel launches: comparison, filters and reduction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adedge.errors import DataError
from adedge.runtime.cuda.driver import Launch, aligned
from adedge.runtime.cuda.launches import (
    Reduction,
    copy_launch,
    dssim_launch,
    gaussian_launch,
    largest_launch,
    opening_launches,
    reduction_blocks,
    uniform_blocks,
    uniform_launch,
)
from adedge.scoring import gaussian_weights
from adedge.specs import Dssim, Filter, Gaussian, Opening, ScoreSpec, Uniform


class ScorePlan:
    """A `ScoreSpec` as kernel launches, for batches of at most ``batch`` pictures of ``shape`` (C, H, W).

    ``families`` are the sources of the kernels, ``scratch_bytes`` is the required device memory, and ``constants`` are
    float32 values that must be stored at its beginning.

    Raises `DataError` if a kernel does not support the spec, or if the network's outputs do not match it.
    """

    def __init__(
        self,
        spec: ScoreSpec,
        shape: tuple[int, int, int],
        batch: int,
        outputs: Sequence[tuple[int, ...]],
        multiprocessors: int,
    ) -> None:
        """``outputs``: shapes of the network's outputs, without the batch."""
        self._spec = spec
        self._shape = shape
        self._multiprocessors = multiprocessors
        _check_outputs(spec, shape, outputs)
        self.families: tuple[str, ...] = ("dssim",) if isinstance(spec.comparison, Dssim) else ()
        self.families += ("filters", "reduce") if spec.filters else ("reduce",)
        weights = [_weights(step) for step in spec.filters if isinstance(step, Gaussian)]
        self.constants = np.concatenate([np.zeros(0, np.float32), *weights])
        plane = 4 * batch * shape[1] * shape[2]
        blocks = max(
            reduction_blocks(*shape[1:]), *(self._blocks(step, n) for step in spec.filters for n in (1, batch)), 1
        )
        self._planes = aligned(self.constants.nbytes)
        self._partial = self._planes + 2 * aligned(plane)
        self._plane = aligned(plane)
        self.scratch_bytes = self._partial + aligned(4 * batch * blocks)
        # Plan once now, so that an unsupported spec fails before the first frame. The addresses only have to differ.
        self.launches([-1] * len(outputs), batch, -2, -3, 0)

    def _blocks(self, step: Filter, n: int) -> int:
        if not isinstance(step, Uniform):
            return 0
        return uniform_blocks(step.size, (n, *self._shape[1:]), self._multiprocessors)

    def launches(self, outputs: Sequence[int], n: int, maps: int, scores: int, scratch: int) -> list[Launch]:
        """Launches that compute ``maps`` (n, H, W) and ``scores`` (n,), float32, from the network's outputs.

        All of them are addresses; ``scratch`` has `scratch_bytes`, with `constants` at its beginning.
        """
        shape = (n, *self._shape[1:])
        reduction = None if self._spec.reduce == "output" else Reduction(self._spec, scratch + self._partial)
        filters = self._spec.filters
        fused = reduction is not None and bool(filters) and isinstance(filters[-1], Uniform)
        plan = self.map_launches(outputs, n, maps, scratch, reduction if fused else None)
        if reduction is None:
            return [*plan, largest_launch(outputs[1], 1, scores, n)]
        if fused:
            return [*plan, reduction.finish(self._blocks(filters[-1], n), scores, shape)]
        return [*plan, reduction.begin(maps, shape), reduction.finish(reduction_blocks(*shape[1:]), scores, shape)]

    def map_launches(
        self, outputs: Sequence[int], n: int, maps: int, scratch: int, reduction: Reduction | None = None
    ) -> list[Launch]:
        """Launches for the maps alone; a uniform filter at the end also performs the ``reduction``, if given."""
        shape = (n, *self._shape[1:])
        filters, comparison = self._spec.filters, self._spec.comparison
        plan: list[Launch] = []
        if isinstance(comparison, Dssim):
            source = scratch + self._planes if filters else maps
            whole = (n, *self._shape)
            plan.append(dssim_launch(comparison, outputs[0], outputs[1], source, whole, self._multiprocessors))
        elif filters:
            source = outputs[0]
        else:
            return [copy_launch(outputs[0], maps, shape)]
        weights = scratch
        for index, step in enumerate(filters):
            last = index + 1 == len(filters)
            # Filters cannot work in place: they alternate between two scratch maps, and the last writes the result.
            spare = [scratch + self._planes, scratch + self._planes + self._plane]
            target = maps if last else next(place for place in spare if place != source)
            match step:
                case Uniform():
                    plan.append(
                        uniform_launch(
                            step.size, source, target, shape, self._multiprocessors, reduction if last else None
                        )
                    )
                case Gaussian():
                    radius = len(_weights(step)) // 2
                    plan.append(gaussian_launch(weights, radius, source, target, shape))
                    weights += 4 * (2 * radius + 1)
                case Opening():
                    eroded = next(place for place in (*spare, maps) if place not in (source, target))
                    plan += opening_launches(step.size, source, eroded, target, shape)
            source = target
        return plan


def _check_outputs(spec: ScoreSpec, shape: tuple[int, int, int], outputs: Sequence[tuple[int, ...]]) -> None:
    channels, height, width = shape
    if isinstance(spec.comparison, Dssim):
        fits = list(outputs[:2]) == [(channels, height, width)] * 2
    else:
        fits = bool(outputs) and outputs[0] in ((height, width), (1, height, width))
        if spec.reduce == "output":
            fits = fits and len(outputs) > 1 and outputs[1] in ((), (1,))
    if not fits:
        shapes = ", ".join(map(str, outputs)) or "nothing"
        raise DataError(
            f"the network outputs {shapes} for frames of {shape}, which does not match this detector's score: "
            "export the detector again"
        )
    if min(height, width) <= 2 * spec.margin:
        raise DataError(
            f"a margin of {spec.margin} pixels leaves nothing of maps of {height} x {width}: choose a smaller margin"
        )


def _weights(step: Gaussian) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The weights of a Gaussian, padded to the kernel's minimum radius of one pixel."""
    weights = gaussian_weights(step.sigma).astype(np.float32)
    return np.pad(weights, 1) if len(weights) == 1 else weights
