"""How each kernel in runtime/kernels is launched: grids, blocks and arguments, planned from shapes and addresses alone.

Nothing here touches a GPU: a plan is data (`adedge.runtime.cuda.driver.Launch`), the same for pycuda, for the
benchmark's own launches and for tests. What a kernel computes, and what its launch has to look like,
is written in its source; each function here names it. Addresses are integers; arrays are contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adedge.errors import DataError
from adedge.runtime.cuda.driver import Launch
from adedge.scoring import gaussian_weights
from adedge.specs import Dssim, Filter, Gaussian, InputSpec, Opening, ScoreSpec, Uniform

ROWS = (256, 128, 64, 32, 16, 8)
"""Rows of a picture that a block may take: many read less twice, few give more blocks."""

PIXELS_A_BLOCK = 4096
"""Of a map, reduced by one block."""


@dataclass(frozen=True)
class Picture:
    """A frame in device memory: uint8 (height, width, channels), BGR or grey, rows one after the other.

    With ``nv12`` it is uint8 (height * 3 / 2, width) as in `adedge.runtime.sources.Frame`; ``channels`` is then 1.
    """

    address: int
    height: int
    width: int
    channels: int
    nv12: bool = False

    @property
    def pitch(self) -> int:
        """Bytes of a row."""
        return self.width * self.channels


def preprocess_launch(spec: InputSpec, picture: Picture, target: int, *, n: int = 1, stride: int = 0) -> Launch:
    """preprocess.cu: whole frames, resized, into ``target``, float32 (n, channels, height, width) as the spec says.

    ``n`` frames of the picture's size, each ``stride`` bytes after the one before.
    """
    channels = () if picture.nv12 else (picture.channels,)
    return Launch(
        "preprocess",
        "preprocess_nv12" if picture.nv12 else "preprocess",
        grid=(_ceil(spec.width, 32), _ceil(spec.height, 8), n),
        block=(32, 8, 1),
        signature="PqiiiPiiiiffffff" if picture.nv12 else "PqiiiiPiiiiffffff",
        arguments=(
            *(picture.address, stride, picture.pitch, picture.height, picture.width, *channels),
            *(target, spec.height, spec.width, spec.channels, int(spec.color == "rgb")),
            *_scales_and_biases(spec),
        ),
    )


def tiles_launch(spec: InputSpec, picture: Picture, origins: int, n: int, target: int) -> Launch:
    """preprocess.cu: n tiles of a frame into ``target``, float32 (n, channels, tile, tile).

    ``origins`` (n, 2) int32 are the rows and columns of the tiles' upper left pixels.
    """
    return Launch(
        "preprocess",
        "preprocess_tiles_nv12" if picture.nv12 else "preprocess_tiles",
        grid=(_ceil(spec.width, 32), _ceil(spec.height, 8), n),
        block=(32, 8, 1),
        signature="PiiPPiiiffffff",
        arguments=(
            *(picture.address, picture.pitch, picture.height if picture.nv12 else picture.channels, origins, target),
            *(spec.height, spec.channels, int(spec.color == "rgb")),
            *_scales_and_biases(spec),
        ),
    )


def _scales_and_biases(spec: InputSpec) -> tuple[float, ...]:
    """x = pixel * scale_i + bias_i: three scales and three biases; a grey network uses the first of each."""
    std = spec.std or (1.0,) * spec.channels
    mean = spec.mean or (0.0,) * spec.channels
    scales = [spec.scale / value for value in std]
    biases = [-m / value for m, value in zip(mean, std, strict=True)]
    return (*scales, *[0.0] * (3 - spec.channels), *biases, *[0.0] * (3 - spec.channels))


def dssim_launch(
    comparison: Dssim, a: int, b: int, maps: int, shape: tuple[int, int, int, int], multiprocessors: int
) -> Launch:
    """dssim.cu: the maps (n, height, width) of two batches of ``shape`` (n, channels, height, width), all float32.

    Raises `DataError` for a window that no kernel is made for.
    """
    if comparison.window not in range(3, 16, 2):
        raise DataError(f"the DSSIM kernels have windows of 3 to 15 pixels, not {comparison.window}")
    n, channels, height, width = shape
    parts = 1 if width <= 256 else _ceil(width, 240)
    columns = 8 * _ceil(_ceil(width, parts), 8)
    whole = parts == 1 and comparison.window // 2 <= width
    reached = width if whole else columns + comparison.window - 1
    rows = _rows_a_block(n * parts, height, multiprocessors, [rows for rows in ROWS if rows <= 64])
    return Launch(
        "dssim",
        f"dssim{comparison.window}",
        grid=(parts, _ceil(height, rows), n),
        block=(32 * _ceil(max(columns, reached), 32), 1, 1),
        signature="PPPiiiif",
        arguments=(a, b, maps, channels, height, width, rows, comparison.data_range),
    )


def uniform_launch(
    size: int, map_: int, filtered: int, shape: tuple[int, int, int], multiprocessors: int, reduction: Reduction | None
) -> Launch:
    """filters.cu: the mean over ``size`` x ``size`` windows of maps of ``shape`` (n, height, width), float32.

    With a ``reduction`` the filtered maps are reduced as well, into `uniform_blocks` partial results for each.
    Raises `DataError` for a window that the kernel cannot hold.
    """
    if not 2 <= size <= 256:
        raise DataError(f"the uniform filter's kernel takes windows of 2 to 256 pixels, not {size}")
    n, height, width = shape
    rows = _uniform_rows(size, shape, multiprocessors)
    arguments: tuple[int, ...] = (map_, filtered, height, width, size, rows)
    if reduction is not None:
        arguments += (reduction.partial, reduction.margin, int(reduction.mean))
    return Launch(
        "filters",
        "uniform" if reduction is None else "uniform_reduce",
        grid=(_ceil(width, 256), _ceil(height, rows), n),
        block=(256, 1, 1),
        signature="PPiiii" if reduction is None else "PPiiiiPii",
        arguments=arguments,
    )


def uniform_blocks(size: int, shape: tuple[int, int, int], multiprocessors: int) -> int:
    """How many partial results a map has after a uniform filter that reduces."""
    _, height, width = shape
    return _ceil(width, 256) * _ceil(height, _uniform_rows(size, shape, multiprocessors))


def _uniform_rows(size: int, shape: tuple[int, int, int], multiprocessors: int) -> int:
    """A block first sums a window's rows, so it should walk down about as many."""
    n, height, width = shape
    fitting = [rows for rows in ROWS if size / 2 <= rows <= 2 * size] or [8]
    return _rows_a_block(n * _ceil(width, 256), height, multiprocessors, fitting)


def gaussian_launch(weights: int, radius: int, map_: int, filtered: int, shape: tuple[int, int, int]) -> Launch:
    """filters.cu: maps of ``shape`` weighted by 2 ``radius`` + 1 float32 ``weights`` along both sides.

    Raises `DataError` for a radius that the kernel cannot hold.
    """
    if not 1 <= radius <= 128:
        raise DataError(f"the Gaussian's kernel reaches 1 to 128 pixels, not {radius}: choose a sigma up to 32")
    n, height, width = shape
    return Launch(
        "filters",
        "gaussian",
        grid=(_ceil(width, 256), _ceil(height, 8), n),
        block=(256, 1, 1),
        signature="PPiiPi",
        arguments=(map_, filtered, height, width, weights, radius),
    )


def opening_launches(size: int, map_: int, between: int, filtered: int, shape: tuple[int, int, int]) -> list[Launch]:
    """filters.cu: opening of maps of ``shape`` with an ellipse; ``between`` has room for them."""
    if size == 3:
        return [_pixels("filters", "opening3", shape, "PPii", (map_, filtered, *shape[1:]))]
    return [
        _pixels("filters", "erode", shape, "PPiii", (map_, between, *shape[1:], size)),
        _pixels("filters", "dilate", shape, "PPiii", (between, filtered, *shape[1:], size)),
    ]


def copy_launch(map_: int, copied: int, shape: tuple[int, int, int]) -> Launch:
    """reduce.cu: maps of ``shape`` (n, height, width) as they are, from one place to another."""
    count = math.prod(shape)
    return Launch(
        "reduce",
        "copy_maps",
        grid=(_ceil(count, 256), 1, 1),
        block=(256, 1, 1),
        signature="PPq",
        arguments=(map_, copied, count),
    )


class Reduction:
    """How maps become scores: the maximum or mean over the pixels at least ``margin`` from the border.

    ``partial`` is where the blocks' results are kept, (n, blocks) float32.
    """

    def __init__(self, spec: ScoreSpec, partial: int) -> None:
        self.mean = spec.reduce == "mean"
        self.margin = spec.margin
        self.partial = partial

    def begin(self, map_: int, shape: tuple[int, int, int]) -> Launch:
        """reduce.cu: partial results of maps of ``shape`` (n, height, width), `reduction_blocks` for each."""
        n, height, width = shape
        return Launch(
            "reduce",
            "reduce_partial",
            grid=(reduction_blocks(height, width), n, 1),
            block=(256, 1, 1),
            signature="PiiPii",
            arguments=(map_, height, width, self.partial, self.margin, int(self.mean)),
        )

    def finish(self, blocks: int, scores: int, shape: tuple[int, int, int]) -> Launch:
        """reduce.cu: ``scores`` (n,) from ``blocks`` partial results for each map of ``shape``."""
        n, height, width = shape
        pixels = (height - 2 * self.margin) * (width - 2 * self.margin)
        return _finish(self.partial, blocks, scores, n, float(pixels), self.mean)


def reduction_blocks(height: int, width: int) -> int:
    """How many partial results `Reduction.begin` leaves of a map."""
    return _ceil(height * width, PIXELS_A_BLOCK)


def largest_launch(values: int, count: int, score: int, n: int = 1) -> Launch:
    """reduce.cu: the largest of ``count`` float32 values, ``n`` times; NaN where one is. With count 1, a copy."""
    return _finish(values, count, score, n, 1.0, mean=False)


def _finish(partial: int, blocks: int, scores: int, n: int, pixels: float, mean: bool) -> Launch:
    return Launch(
        "reduce",
        "reduce_finish",
        grid=(n, 1, 1),
        block=(256, 1, 1),
        signature="PifiP",
        arguments=(partial, blocks, pixels, int(mean), scores),
    )


def merge_launch(
    tiles: int, origins: int, n: int, tile: int, merged: int, shape: tuple[int, int], *, first: bool
) -> Launch:
    """reduce.cu: raise a frame's map of ``shape`` to the maps of n tiles; the ``first`` time it is begun anew.

    ``origins`` (n, 2) int32 are the tiles' rows and columns.
    """
    return _pixels(
        "reduce", "merge_maximum", (1, *shape), "PPiiPiii", (tiles, origins, n, tile, merged, *shape, int(first))
    )


class ScorePlan:
    """Everything a `ScoreSpec` says, as launches for batches of at most ``batch`` pictures of ``shape`` (C, H, W).

    ``families`` are the sources whose kernels it launches, ``scratch_bytes`` the device memory that it needs, and
    ``constants`` float32 values that have to lie at that memory's beginning.

    Raises `DataError` where a kernel does not do what the spec asks, or the network's outputs are not what it compares.
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
        self._planes = _aligned(self.constants.nbytes)
        self._partial = self._planes + 2 * _aligned(plane)
        self._plane = _aligned(plane)
        self.scratch_bytes = self._partial + _aligned(4 * batch * blocks)
        # What is refused is refused now, not with the first frame. The addresses only have to differ.
        self.launches([-1] * len(outputs), batch, -2, -3, 0)

    def _blocks(self, step: Filter, n: int) -> int:
        if not isinstance(step, Uniform):
            return 0
        return uniform_blocks(step.size, (n, *self._shape[1:]), self._multiprocessors)

    def launches(self, outputs: Sequence[int], n: int, maps: int, scores: int, scratch: int) -> list[Launch]:
        """From a network's outputs for n pictures to ``maps`` (n, H, W) and ``scores`` (n,), float32.

        Addresses all; ``scratch`` has `scratch_bytes`, `constants` at its beginning.
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
        """The maps alone; a last uniform filter serves the ``reduction`` as well, where one is given."""
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
            # Each filter reads one place and writes another; the last writes the result.
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
                    between = next(place for place in (*spare, maps) if place not in (source, target))
                    plan += opening_launches(step.size, source, between, target, shape)
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
        given = ", ".join(map(str, outputs)) or "nothing"
        raise DataError(
            f"the network gives {given} for frames of {shape}, which this detector's score is not taken from"
        )
    if min(height, width) <= 2 * spec.margin:
        raise DataError(f"a margin of {spec.margin} pixels leaves nothing of maps of {height} x {width}")


def _weights(step: Gaussian) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A Gaussian's weights as its kernel takes them, which reaches one pixel at least."""
    weights = gaussian_weights(step.sigma).astype(np.float32)
    return np.pad(weights, 1) if len(weights) == 1 else weights


def _rows_a_block(columns: int, height: int, multiprocessors: int, fitting: Sequence[int]) -> int:
    """The most rows that still give two blocks for every multiprocessor, else the fewest."""
    enough = (rows for rows in fitting if columns * _ceil(height, rows) >= 2 * multiprocessors)
    return next(enough, fitting[-1])


def _pixels(
    family: str, kernel: str, shape: tuple[int, int, int], signature: str, arguments: tuple[int | float, ...]
) -> Launch:
    """A kernel with one thread for each pixel of n maps."""
    n, height, width = shape
    grid = (_ceil(width, 32), _ceil(height, 8), n)
    return Launch(family, kernel, grid=grid, block=(32, 8, 1), signature=signature, arguments=arguments)


def _aligned(size: int) -> int:
    """Bytes rounded up to what an allocation of its own would be aligned to."""
    return -(-size // 256) * 256


def _ceil(length: int, step: int) -> int:
    """How many steps cover a length."""
    return -(-length // step)
