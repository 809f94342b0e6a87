"""Frames from memory: numbers and names."""

from __future__ import annotations

import numpy as np

from adedge.runtime.sources import ArraySource


def picture(level: int) -> np.ndarray:
    return np.full((24, 32, 3), level, np.uint8)


def test_array_source_numbers_its_frames() -> None:
    images = [picture(1), picture(2)]
    from_list = ArraySource(images, name="made")
    assert [(frame.index, frame.name) for frame in from_list] == [(0, "made#0"), (1, "made#1")]
    assert from_list.total == 2
    assert [frame.image for frame in ArraySource(lambda: iter(images))] == images
