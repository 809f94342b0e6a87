"""Plans the launches of the kernels in runtime/kernels: grids, blocks and arguments from shapes and addresses alone.

Nothing here touches a GPU: a plan is data (`adedge.runtime.cuda.driver.Launch`), shared by pycuda, the benchmark's own
launches and the tests. Each function names the source file that documents what its kernel computes and how it must be
launched. Addresses are integers; arrays are contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adedge.errors import DataError
from adedge.runtime.cuda.driver import Launch
from adedge.specs import Dssim, InputSpec, ScoreSpec

ROWS = (256, 128, 64, 32, 16, 8)
"""Rows that a block may process: more rows mean fewer repeated reads, fewer rows mean more blocks."""

PIXELS_PER_BLOCK = 4096
"""Pixels of a map that one block reduces."""


@dataclass(frozen=True)
class Picture:
    """A frame in device memory: uint8 (height, width, channels), BGR or grey, without padding between rows.

    With ``nv12`` it is uint8 (height * 3 / 2, width), as in `adedge.runtime.sources.Frame`; ``channels`` is then 1.
    """

    address: int
    height: int
    width: int
    channels: int
    nv12: bool = False

    @property
    def pitch(self) -> int:
        """Bytes per row."""
        return self.width * self.channels


def preprocess_launch(spec: InputSpec, picture: Picture, target: int, *, n: int = 1, stride: int = 0) -> Launch:
    """preprocess.cu: resize whole frames into ``target``, float32 (n, channels, height, width) as in the spec.

    The ``n`` frames have the picture's size and start ``stride`` bytes apart.
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
    """preprocess.cu: cut n tiles of a frame into ``target``, float32 (n, channels, tile, tile).

    ``origins`` (n, 2) int32 are the row and column of each tile's upper left pixel.
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
    """Three scales and three biases for pixel * scale_i + bias_i; a grey network uses the first of each."""
    std = spec.std or (1.0,) * spec.channels
    mean = spec.mean or (0.0,) * spec.channels
    scales = [spec.scale / value for value in std]
    biases = [-m / value for m, value in zip(mean, std, strict=True)]
    return (*scales, *[0.0] * (3 - spec.channels), *biases, *[0.0] * (3 - spec.channels))


def dssim_launch(
    comparison: Dssim, a: int, b: int, maps: int, shape: tuple[int, int, int, int], multiprocessors: int
) -> Launch:
    """dssim.cu: maps (n, height, width) from two batches of ``shape`` (n, channels, height, width), all float32.

    Raises `DataError` if no kernel supports the window.
    """
    if comparison.window not in range(3, 16, 2):
        raise DataError(f"the DSSIM kernels support odd windows of 3 to 15 pixels, not {comparison.window}")
    n, channels, height, width = shape
    parts = 1 if width <= 256 else _ceil(width, 240)
    columns = 8 * _ceil(_ceil(width, parts), 8)
    whole = parts == 1 and comparison.window // 2 <= width
    reached = width if whole else columns + comparison.window - 1
    rows = _rows_per_block(n * parts, height, multiprocessors, [rows for rows in ROWS if rows <= 64])
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
    """filters.cu: mean over ``size`` x ``size`` windows of maps of ``shape`` (n, height, width), float32.

    A ``reduction`` also reduces the filtered maps, to `uniform_blocks` partial results per map. Raises `DataError` if
    the kernel does not support the size.
    """
    if not 2 <= size <= 256:
        raise DataError(f"the uniform filter's kernel supports windows of 2 to 256 pixels, not {size}")
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
    """Number of partial results per map from a uniform filter that reduces."""
    _, height, width = shape
    return _ceil(width, 256) * _ceil(height, _uniform_rows(size, shape, multiprocessors))


def _uniform_rows(size: int, shape: tuple[int, int, int], multiprocessors: int) -> int:
    """Rows per block: about as many as the window has, because each block first sums one window."""
    n, height, width = shape
    candidates = [rows for rows in ROWS if size / 2 <= rows <= 2 * size] or [8]
    return _rows_per_block(n * _ceil(width, 256), height, multiprocessors, candidates)


def gaussian_launch(weights: int, radius: int, map_: int, filtered: int, shape: tuple[int, int, int]) -> Launch:
    """filters.cu: separable Gaussian of maps of ``shape``, with 2 ``radius`` + 1 float32 ``weights``.

    Raises `DataError` if the kernel does not support the radius.
    """
    if not 1 <= radius <= 128:
        raise DataError(
            f"the Gaussian kernel supports radii of 1 to 128 pixels, not {radius}: choose a sigma of at most 32"
        )
    n, height, width = shape
    return Launch(
        "filters",
        "gaussian",
        grid=(_ceil(width, 256), _ceil(height, 8), n),
        block=(256, 1, 1),
        signature="PPiiPi",
        arguments=(map_, filtered, height, width, weights, radius),
    )


def opening_launches(size: int, map_: int, eroded: int, filtered: int, shape: tuple[int, int, int]) -> list[Launch]:
    """filters.cu: opening of maps of ``shape`` with an ellipse; ``eroded`` has room for the intermediate maps."""
    if size == 3:
        return [_pixels("filters", "opening3", shape, "PPii", (map_, filtered, *shape[1:]))]
    return [
        _pixels("filters", "erode", shape, "PPiii", (map_, eroded, *shape[1:], size)),
        _pixels("filters", "dilate", shape, "PPiii", (eroded, filtered, *shape[1:], size)),
    ]


def copy_launch(map_: int, copied: int, shape: tuple[int, int, int]) -> Launch:
    """reduce.cu: copy maps of ``shape`` (n, height, width)."""
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
    """Reduces maps to scores: the maximum or mean over the pixels at least ``margin`` pixels inside the border.

    ``partial`` is the address of the blocks' results, (n, blocks) float32.
    """

    def __init__(self, spec: ScoreSpec, partial: int) -> None:
        self.mean = spec.reduce == "mean"
        self.margin = spec.margin
        self.partial = partial

    def begin(self, map_: int, shape: tuple[int, int, int]) -> Launch:
        """reduce.cu: reduce maps of ``shape`` (n, height, width) to `reduction_blocks` partial results per map."""
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
        """reduce.cu: ``scores`` (n,) from ``blocks`` partial results per map of ``shape``."""
        n, height, width = shape
        pixels = (height - 2 * self.margin) * (width - 2 * self.margin)
        return _finish(self.partial, blocks, scores, n, float(pixels), self.mean)


def reduction_blocks(height: int, width: int) -> int:
    """Number of partial results per map from `Reduction.begin`."""
    return _ceil(height * width, PIXELS_PER_BLOCK)


def largest_launch(values: int, count: int, score: int, n: int = 1) -> Launch:
    """reduce.cu: the largest of ``count`` float32 values, for ``n`` groups; NaN propagates. Count 1 is a copy."""
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
    """reduce.cu: merge the maps of n tiles into a frame's map of ``shape`` by maximum; ``first`` initialises the map.

    ``origins`` (n, 2) int32 are the row and column of each tile's upper left pixel.
    """
    return _pixels(
        "reduce", "merge_maximum", (1, *shape), "PPiiPiii", (tiles, origins, n, tile, merged, *shape, int(first))
    )


def _rows_per_block(columns: int, height: int, multiprocessors: int, candidates: Sequence[int]) -> int:
    """The most rows that still give each multiprocessor two blocks, else the fewest."""
    sufficient = (rows for rows in candidates if columns * _ceil(height, rows) >= 2 * multiprocessors)
    return next(sufficient, candidates[-1])


def _pixels(
    family: str, kernel: str, shape: tuple[int, int, int], signature: str, arguments: tuple[int | float, ...]
) -> Launch:
    """Launch a kernel with one thread per pixel of n maps."""
    n, height, width = shape
    grid = (_ceil(width, 32), _ceil(height, 8), n)
    return Launch(family, kernel, grid=grid, block=(32, 8, 1), signature=signature, arguments=arguments)


def _ceil(length: int, step: int) -> int:
    """Number of steps that cover a length."""
    return -(-length // step)
