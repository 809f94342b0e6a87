"""Frames as sources deliver them: BGR, grey, and NV12 with its conversion."""

from __future__ import annotations

import numpy as np
import pytest

from adedge.errors import DataError
from adedge.runtime.sources import Frame


def nv12(height: int = 48, width: int = 64) -> np.ndarray:
    """A picture whose left half is black and whose right half is red, in limited range BT.601."""
    image = np.full((height * 3 // 2, width), 16, np.uint8)
    image[:height, width // 2 :] = 81
    image[height:] = 128
    image[height:, width // 2 :: 2], image[height:, width // 2 + 1 :: 2] = 90, 240
    return image


def test_an_nv12_frame_becomes_bgr_once() -> None:
    frame = Frame(0, 0, nv12(), "camera#0", nv12=True)
    assert frame.size == (48, 64)
    assert frame.picture.shape == (48, 64, 3)
    np.testing.assert_allclose(frame.picture[:, :32], 0)
    np.testing.assert_allclose(frame.picture[:, 32:], [[[0, 0, 255]]] * np.ones((48, 32, 1)), atol=2)
    assert frame.picture is frame.picture


@pytest.mark.parametrize("shape", [(24, 32, 3), (24, 32, 1), (24, 32)])
def test_any_other_frame_is_its_own_picture(shape: tuple[int, ...]) -> None:
    frame = Frame(0, 0, np.full(shape, 5, np.uint8), "a.png")
    assert frame.picture is frame.image
    assert frame.size == (24, 32)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((72, 64, 1), np.uint8),
        np.zeros((72, 63), np.uint8),
        np.zeros((73, 64), np.uint8),  # of 49 rows of pixels
        np.zeros((72, 64), np.uint16),
        np.zeros((0, 64), np.uint8),
    ],
    ids=["bgr", "three axes", "odd width", "odd height", "16 bits", "empty"],
)
def test_what_cannot_be_nv12_is_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"frame 7 \(camera#7\) is not NV12.*even width and height"):
        Frame(7, 0, image, "camera#7", nv12=True)
