"""NV12 frames on the processor, judged by the colours that OpenCV makes of them; test_pipeline.py holds the rest."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from adedge.runtime.backends import FunctionBackend
from adedge.runtime.host_inspector import HostInspector
from adedge.runtime.sources import Frame
from adedge.specs import InputSpec, ReadyMap, ScoreSpec, Tiling

PEAK = ScoreSpec(comparison=ReadyMap(), reduce="max")


def brightest(x: np.ndarray) -> tuple[np.ndarray]:
    return (x.max(axis=1),)


def inspector(spec: InputSpec) -> HostInspector:
    return HostInspector(FunctionBackend(brightest, spec.shape, 4), spec, PEAK, threshold=0.5)


# Limited range BT.601 of luma 100, U 128 and V 200: a red.
BLUE, GREEN, RED = 1.164 * (100 - 16), 1.164 * (100 - 16) - 0.813 * 72, 1.164 * (100 - 16) + 1.596 * 72


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (InputSpec(height=16, width=16, channels=3, color="bgr"), RED),
        (InputSpec(height=16, width=16, channels=1, color="gray"), 0.114 * BLUE + 0.587 * GREEN + 0.299 * RED),
    ],
    ids=["bgr", "gray"],
)
def test_nv12_frames_are_judged_by_their_colours(spec: InputSpec, expected: float) -> None:
    image = np.full((48, 40), 100, np.uint8)
    image[32:, ::2], image[32:, 1::2] = 128, 200
    (verdict,) = inspector(spec).inspect([Frame(0, 0, image, "camera#0", nv12=True)])
    # Colours are rounded to whole grey levels, and grey once more.
    assert verdict.score * 255 == pytest.approx(expected, abs=1)


def test_nv12_frames_are_cut_into_tiles_of_their_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 36), np.uint8)
    spec = InputSpec(height=16, width=16, channels=1, color="gray", resize="tile", tiling=Tiling(tile=16, stride=16))
    (verdict,) = inspector(spec).inspect([Frame(0, 0, image, "camera#0", nv12=True)])
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_YUV2BGR_NV12), cv2.COLOR_BGR2GRAY)
    np.testing.assert_allclose(verdict.map, grey / np.float32(255), atol=1e-6)
