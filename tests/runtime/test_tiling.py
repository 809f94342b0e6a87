"""Tiles cover every pixel, lie inside the frame, and merge to the maximum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adedge.errors import DataError
from adedge.runtime.tiling import cut_tiles, merge_maximum, tile_origins
from adedge.specs import Tiling


@st.composite
def sides(draw: st.DrawFn) -> tuple[int, int, int]:
    """(length, tile, stride) that fit together."""
    tile = draw(st.integers(1, 40))
    return draw(st.integers(tile, 150)), tile, draw(st.integers(1, tile))


@given(sides())
def test_tiles_cover_every_pixel_and_lie_inside(side: tuple[int, int, int]) -> None:
    length, tile, stride = side
    origins = tile_origins(length, tile, stride)
    covered = {pixel for origin in origins for pixel in range(origin, origin + tile)}
    assert covered == set(range(length))


@given(sides())
def test_only_the_last_tile_is_moved_and_none_is_superfluous(side: tuple[int, int, int]) -> None:
    length, tile, stride = side
    origins = tile_origins(length, tile, stride)
    assert list(origins[:-1]) == [stride * index for index in range(len(origins) - 1)]
    assert len(origins) == -(-(length - tile) // stride) + 1  # the fewest tiles at most a stride apart
    assert len(set(origins)) == len(origins)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(256, (0,)), (257, (0, 1)), (320, (0, 64)), (400, (0, 64, 128, 144))],
)
def test_origins_of_known_frames(length: int, expected: tuple[int, ...]) -> None:
    assert tile_origins(length, 256, 64) == expected


def test_tiles_are_views_row_by_row() -> None:
    frame = np.arange(40 * 50 * 3, dtype=np.uint16).astype(np.uint8).reshape(40, 50, 3)
    tiles, origins = cut_tiles(frame, Tiling(tile=32, stride=16))
    assert origins == [(0, 0), (0, 16), (0, 18), (8, 0), (8, 16), (8, 18)]
    for tile, (top, left) in zip(tiles, origins, strict=True):
        assert np.shares_memory(tile, frame)
        np.testing.assert_array_equal(tile, frame[top : top + 32, left : left + 32])


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_merging_equals_the_maximum_pixel_by_pixel(height: int, width: int, stride: int, seed: int) -> None:
    _, origins = cut_tiles(np.zeros((height, width), np.uint8), Tiling(tile=8, stride=stride))
    maps = np.random.default_rng(seed).normal(size=(len(origins), 8, 8)).astype(np.float32)
    merged = np.full((height, width), -np.inf, np.float32)
    merge_maximum(merged, maps, origins)
    for row in range(height):
        for column in range(width):
            seen = [
                tile_map[row - top, column - left]
                for tile_map, (top, left) in zip(maps, origins, strict=True)
                if 0 <= row - top < 8 and 0 <= column - left < 8
            ]
            assert merged[row, column] == max(seen)


def test_cutting_and_merging_gives_the_frame_back() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    tiles, origins = cut_tiles(frame, Tiling(tile=16, stride=7))
    merged = np.full((37, 53), -np.inf, np.float32)
    merge_maximum(merged, [tile.astype(np.float32) for tile in tiles], origins)
    np.testing.assert_array_equal(merged, frame)


def test_frames_smaller_than_a_tile_are_refused() -> None:
    with pytest.raises(DataError, match="a frame of 300 × 200 pixels is smaller than a tile of 256 × 256"):
        cut_tiles(np.zeros((200, 300, 3), np.uint8), Tiling(tile=256, stride=64))
    with pytest.raises(DataError, match="a frame side of 9 pixels is shorter than a tile of 10"):
        tile_origins(9, 10, 1)


@pytest.mark.parametrize("stride", [0, 11])
def test_strides_that_leave_gaps_are_refused(stride: int) -> None:
    with pytest.raises(DataError, match=f"a stride of {stride} does not cover"):
        tile_origins(20, 10, stride)


def test_a_tile_beyond_the_frame_is_refused() -> None:
    with pytest.raises(DataError, match=r"at row 0, column 9 is not inside \(8, 16\)"):
        merge_maximum(np.zeros((8, 16), np.float32), np.zeros((2, 8, 8), np.float32), [(0, 0), (0, 9)])
