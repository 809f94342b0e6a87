"""Scores on a CPU with OpenCV: `adedge.scoring` again, fast enough for a line, in memory that is allocated once.

SSIM takes five windowed moments of two images a and b. Written in s = a + b and d = a - b it takes four, since
4 a b = s^2 - d^2 and 2 (a^2 + b^2) = s^2 + d^2; with m the windowed mean, v the windowed sample variance

    SSIM = (m(s)^2 - m(d)^2 + 2 C1) (v(s) - v(d) + 2 C2) / ((m(s)^2 + m(d)^2 + 2 C1) (v(s) + v(d) + 2 C2))

v = m(x^2) - m(x)^2 is a small difference of large numbers where s is bright and flat, so the moments of s are float64
up to there. d is small where the score has to be exact, and float32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError
from adedge.scoring import dssim_constants, ellipse, gaussian_weights, image_scores, inside_margin, own_scores
from adedge.specs import Dssim, Filter, Gaussian, Opening, ScoreSpec, Uniform

Plane = NDArray[np.float32]

BORDER = cv2.BORDER_REFLECT  # SciPy's "reflect": the edge pixel is repeated


class Scorer:
    """Executes a `ScoreSpec` on batches of at most ``batch`` pictures of ``shape`` (channels, height, width).

    Agrees with `adedge.scoring` within 1e-4 on every pixel of images that span the data range (1e-5 is usual at
    window 7). One thread does the work: OpenCV does not share these filters out, whatever cv2.setNumThreads says.
    Raises `DataError` where the spec's margin leaves no pixel.
    """

    def __init__(self, spec: ScoreSpec, shape: tuple[int, int, int], batch: int) -> None:
        self._spec = spec
        plane = shape[1:]
        self._maps = np.zeros((batch, *plane), np.float32)
        self._between = np.zeros(plane, np.float32)
        self._compare: Callable[..., None]
        self._shapes: list[tuple[int, ...]]
        if isinstance(spec.comparison, Dssim):
            self._compare = _DssimPlanes(spec.comparison, self._between.shape)
            self._inputs, self._shapes = 2, [shape]
        else:
            self._compare = _copy
            self._inputs, self._shapes = 1, [self._between.shape, (1, *plane)]
        self._steps = [_step(step) for step in spec.filters]
        inside_margin(self._maps, spec.margin)

    def __call__(self, outputs: Sequence[Plane]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Network outputs, float32 (n, ...) with n <= batch -> anomaly maps (n, height, width) and scores (n,).

        The maps are a view of the scorer's memory, valid until the next call. A NaN in a picture makes its score NaN.
        Raises `DataError` where number, shapes or dtype of the outputs are not what the spec compares.
        """
        n = self._check(outputs)
        maps = self._maps[:n]
        for target, *images in zip(maps, *outputs[: self._inputs], strict=True):
            # Filters go to and fro between two planes; the last one writes to the map.
            planes = [target, self._between]
            if len(self._steps) % 2:
                planes.reverse()
            self._compare(*images, planes[0])
            for step in self._steps:
                step(*planes)
                planes.reverse()
        return maps, own_scores(outputs) if self._spec.reduce == "output" else image_scores(self._spec, maps)

    def _check(self, outputs: Sequence[Plane]) -> int:
        """Number of pictures in a batch of outputs that fit."""
        used = outputs[: self._inputs]
        batches = {len(output) for output in used}
        if (
            len(used) < self._inputs
            or len(batches) > 1
            or max(batches) > len(self._maps)
            or any(output.dtype != np.float32 or output.shape[1:] not in self._shapes for output in used)
        ):
            given = ", ".join(f"{output.dtype} {output.shape}" for output in outputs) or "nothing"
            wanted = ", ".join(map(str, ("n", *self._shapes[0])))
            raise DataError(
                f"the score is taken from {self._inputs} output(s) of float32 ({wanted}), n <= {len(self._maps)}, "
                f"but the network gave {given}"
            )
        return batches.pop()


class _DssimPlanes:
    """DSSIM of one pair of images (C, H, W), in planes that are allocated once."""

    def __init__(self, comparison: Dssim, shape: tuple[int, ...]) -> None:
        self._window = (comparison.window, comparison.window)
        c1, c2 = dssim_constants(comparison.data_range)
        n = comparison.window**2
        # Both variances would be multiplied by n / (n - 1); dividing C2 by it instead changes nothing in the ratio.
        self._2c1, self._2c2 = np.float32(2 * c1), np.float32(2 * c2 * (n - 1) / n)
        self._wide = np.zeros((2, *shape), np.float64)
        self._narrow = np.zeros((7, *shape), np.float32)

    def __call__(self, a: NDArray[np.float32], b: NDArray[np.float32], target: Plane) -> None:
        wide_mean, wide_variance = self._wide
        s, d, mean_s, variance_s, mean_d, variance_d, numerator = self._narrow
        target.fill(0)
        for x, y in zip(a, b, strict=True):
            cv2.add(x, y, s)
            cv2.subtract(x, y, d)
            self._moments(s, wide_mean, wide_variance)
            self._moments(d, mean_d, variance_d)
            np.add(wide_mean, self._2c1, mean_s, casting="same_kind")
            np.add(wide_variance, self._2c2, variance_s, casting="same_kind")
            cv2.subtract(mean_s, mean_d, s)
            cv2.subtract(variance_s, variance_d, d)
            cv2.multiply(s, d, numerator)
            cv2.add(mean_s, mean_d, s)
            cv2.add(variance_s, variance_d, d)
            cv2.multiply(s, d, d)
            cv2.divide(numerator, d, numerator)
            cv2.add(target, numerator, target)
        cv2.addWeighted(target, -0.5 / len(a), target, 0, 0.5, target)

    def _moments(self, x: Plane, squared_mean: NDArray[Any], variance: NDArray[Any]) -> None:
        """m(x)^2 and m(x^2) - m(x)^2, in the precision of the two planes that receive them."""
        depth = cv2.CV_64F if squared_mean.dtype == np.float64 else cv2.CV_32F
        cv2.boxFilter(x, depth, self._window, squared_mean, borderType=BORDER)
        cv2.sqrBoxFilter(x, depth, self._window, variance, borderType=BORDER)
        cv2.multiply(squared_mean, squared_mean, squared_mean)
        cv2.subtract(variance, squared_mean, variance)


def _copy(source: Plane, target: Plane) -> None:
    np.copyto(target, source.reshape(target.shape))


def _step(step: Filter) -> Callable[[Plane, Plane], Any]:
    """One filter of a spec as a function (source, target): see its twin in `adedge.scoring` for what it computes."""
    match step:
        case Uniform(size=size):
            return lambda source, target: cv2.boxFilter(source, -1, (size, size), target, borderType=BORDER)
        case Gaussian(sigma=sigma):
            weights = gaussian_weights(sigma)
            return lambda source, target: cv2.sepFilter2D(source, -1, weights, weights, target, borderType=BORDER)
        case Opening(size=size):
            return _opening(size)


def _opening(size: int) -> Callable[[Plane, Plane], Any]:
    footprint = ellipse(size).astype(np.uint8)
    mirrored = np.ascontiguousarray(footprint[::-1, ::-1])
    before, after = (size // 2, size // 2), (size - 1 - size // 2, size - 1 - size // 2)

    def run(source: Plane, target: Plane) -> None:
        eroded = cv2.erode(source, footprint, anchor=before, borderType=BORDER)
        cv2.dilate(eroded, mirrored, target, anchor=after, borderType=BORDER)

    return run
