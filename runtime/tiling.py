"""Cut large frames into overlapping tiles, and merge the tiles' anomaly maps into one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError
from adedge.specs import Tiling

Origin = tuple[int, int]  # row and column of a tile's upper left pixel


def tile_origins(length: int, tile: int, stride: int) -> tuple[int, ...]:
    """Where tiles start along one side of a frame, in pixels, ascending.

    Every ``stride`` pixels as long as the tile fits; the last tile is shifted inwards to end at the border. Raises
    `DataError` if the side is shorter than a tile, or if the stride exceeds the tile.

    >>> tile_origins(400, 256, 64)
    (0, 64, 128, 144)
    """
    if not 0 < stride <= tile:
        raise DataError(f"a stride of {stride} does not cover the frame with tiles of {tile}: give 1 to {tile}")
    last = length - tile
    if last < 0:
        raise DataError(f"a frame side of {length} pixels is shorter than a tile of {tile}: use larger frames")
    return (*range(0, last, stride), last)


def tile_grid(shape: tuple[int, int], tiling: Tiling) -> list[Origin]:
    """The origins of the tiles of a frame of (height, width), row by row.

    Raises `DataError` if the frame is smaller than a tile.
    """
    height, width = shape
    if min(height, width) < tiling.tile:
        raise DataError(
            f"a frame of {width} × {height} pixels is smaller than a tile of {tiling.tile} × {tiling.tile}: "
            "use a camera of higher resolution, or a detector trained with --fit resize"
        )
    return [
        (top, left)
        for top in tile_origins(height, tiling.tile, tiling.stride)
        for left in tile_origins(width, tiling.tile, tiling.stride)
    ]


def cut_tiles(frame: NDArray[np.uint8], tiling: Tiling) -> tuple[list[NDArray[np.uint8]], list[Origin]]:
    """The tiles of a frame (H, W) or (H, W, C), row by row, as views, and the origin of each.

    Raises `DataError` if the frame is smaller than a tile.
    """
    origins = tile_grid(frame.shape[:2], tiling)
    return [frame[top : top + tiling.tile, left : left + tiling.tile] for top, left in origins], origins


def merge_maximum(
    merged: NDArray[np.float32], maps: Sequence[NDArray[np.float32]] | NDArray[np.float32], origins: Sequence[Origin]
) -> None:
    """Merge tiles' maps (n, tile, tile) into a frame's map (H, W), in place, by the maximum at each pixel.

    Raises `DataError` if a tile reaches beyond the frame.
    """
    for tile_map, (top, left) in zip(maps, origins, strict=True):
        height, width = tile_map.shape
        region = merged[top : top + height, left : left + width]
        if region.shape != tile_map.shape or min(top, left) < 0:
            raise DataError(
                f"the tile of {width} × {height} pixels at row {top}, column {left} is not inside {merged.shape}"
            )
        np.maximum(region, tile_map, out=region)
