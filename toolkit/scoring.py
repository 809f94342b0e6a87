"""From network outputs to an anomaly map and a score: the NumPy reference that every faster implementation must match.

Arithmetic is float64 throughout, results are float32. Every window sees the picture mirrored at its border with the
edge pixel repeated (d c b a | a b c d | d c b a: SciPy's "reflect", OpenCV's BORDER_REFLECT), even if the picture is
smaller than the window. A NaN raises no error: it spreads through the map, at least to every window that contains it,
and makes the picture's score NaN. Callers that decide on a score must reject NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError
from adedge.specs import Dssim, Gaussian, Opening, ScoreSpec, Uniform

if TYPE_CHECKING:
    pass

Maps = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]


def maps_and_scores(spec: ScoreSpec, outputs: Sequence[Floats]) -> tuple[Maps, NDArray[np.float32]]:
    """Execute a `ScoreSpec` on a batch: the network's outputs -> anomaly maps (N, H, W) and raw scores (N,).

    Raises `DataError` if the outputs do not fit the spec.
    """
    maps = score_maps(spec, outputs)
    return maps, network_scores(outputs) if spec.reduce == "output" else image_scores(spec, maps)


def score_maps(spec: ScoreSpec, outputs: Sequence[Floats]) -> Maps:
    """Compare and filter a batch: the network's outputs -> anomaly maps (N, H, W).

    ``outputs`` are float arrays: two images (N, C, H, W) for a DSSIM comparison, or one map (N, H, W) or (N, 1, H, W).
    Raises `DataError` if they are not.
    """
    if isinstance(spec.comparison, Dssim):
        if len(outputs) != 2:
            raise DataError(f"DSSIM compares 2 images, but the network gave {len(outputs)} output(s)")
        maps = dssim_map(*outputs, window=spec.comparison.window, data_range=spec.comparison.data_range)
    else:
        maps = _ready_map(outputs)
    for step in spec.filters:
        match step:
            case Uniform():
                maps = uniform_filter(maps, step.size)
            case Gaussian():
                maps = gaussian_filter(maps, step.sigma)
            case Opening():
                maps = opening(maps, step.size)
    return maps


def image_scores(spec: ScoreSpec, maps: Floats) -> NDArray[np.float32]:
    """Reduce filtered maps (N, H, W) to scores (N,), over the pixels at least ``spec.margin`` from the border.

    Raises `DataError` if the margin leaves no pixel, or if the spec takes the score from the network.
    """
    if spec.reduce == "output":
        raise DataError("this detector's score is an output of its network and cannot be taken from a map")
    inner = inside_margin(maps, spec.margin)
    scores: Floats = inner.max(axis=(1, 2)) if spec.reduce == "max" else inner.mean(axis=(1, 2), dtype=np.float64)
    return scores.astype(np.float32)


def network_scores(outputs: Sequence[Floats]) -> NDArray[np.float32]:
    """The scores (N,) in a network's second output, of shape (N,) or (N, 1).

    Raises `DataError` if there are none.
    """
    if len(outputs) < 2 or outputs[1].size != len(outputs[0]):
        shapes = ", ".join(str(output.shape) for output in outputs)
        raise DataError(f"the network's second output must be one score per picture, but its outputs are {shapes}")
    return outputs[1].reshape(-1).astype(np.float32)


def dssim_map(a: Floats, b: Floats, *, window: int = 7, data_range: float = 1.0) -> Maps:
    """Structural dissimilarity (1 - SSIM) / 2 of two image batches (N, C, H, W) -> (N, H, W), mean over channels.

    SSIM as in Wang et al. 2004, equation 13, with a uniform ``window`` x ``window`` (odd), sample variances (divided by
    n - 1), C1 = (0.01 data_range)^2, C2 = (0.03 data_range)^2: what skimage.metrics.structural_similarity computes by
    default in float64. 0 where the images agree, at most 1. Raises `DataError` if the shapes differ.
    """
    if a.ndim != 4 or a.shape != b.shape:
        raise DataError(f"DSSIM compares two batches (N, C, H, W) of one shape, not {a.shape} and {b.shape}")
    if window < 3 or window % 2 == 0:
        raise DataError(f"the DSSIM window must be odd and at least 3, not {window}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _box(x, window), _box(y, window)
    unbiased = window**2 / (window**2 - 1)
    c1, c2 = dssim_constants(data_range)
    with np.errstate(invalid="ignore", over="ignore"):
        variance_x = unbiased * (_box(x * x, window) - mean_x**2)
        variance_y = unbiased * (_box(y * y, window) - mean_y**2)
        covariance = unbiased * (_box(x * y, window) - mean_x * mean_y)
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
        dissimilarity: NDArray[np.float64] = ((1 - luminance * structure) / 2).mean(axis=1)
    return dissimilarity.astype(np.float32)


def dssim_constants(data_range: float) -> tuple[float, float]:
    """C1 and C2 of SSIM, for images whose values span ``data_range``."""
    return (0.01 * data_range) ** 2, (0.03 * data_range) ** 2


def uniform_filter(maps: Floats, size: int) -> Maps:
    """Mean over ``size`` x ``size`` windows: (N, H, W) -> (N, H, W), as scipy.ndimage.uniform_filter.

    The window of pixel i spans i - size // 2 ... i - size // 2 + size - 1: an even one reaches further up and left.
    """
    _check_maps(maps)
    return _box(maps.astype(np.float64), size).astype(np.float32)


def gaussian_filter(maps: Floats, sigma: float) -> Maps:
    """Gaussian filter truncated at 4 sigma: (N, H, W) -> (N, H, W), as scipy.ndimage.gaussian_filter."""
    _check_maps(maps)
    weights = gaussian_weights(sigma)
    radius = len(weights) // 2
    blurred = maps.astype(np.float64)
    for axis in (1, 2):
        padded = _mirrored(blurred, axis, before=radius, after=radius)
        length = blurred.shape[axis]
        blurred = sum(
            (weight * padded.take(range(k, k + length), axis) for k, weight in enumerate(weights)),
            start=np.zeros_like(blurred),
        )
    return blurred.astype(np.float32)


def gaussian_weights(sigma: float) -> NDArray[np.float64]:
    """Weights (2 r + 1,) of a sampled Gaussian, r = 4 sigma rounded to the nearest pixel, sum 1."""
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised


def opening(maps: Floats, size: int) -> Maps:
    """Greyscale opening with an ellipse of ``size`` x ``size`` pixels: (N, H, W) -> (N, H, W).

    As scipy.ndimage.grey_opening with `ellipse` as footprint: bright spots that cannot hold the ellipse disappear.
    """
    _check_maps(maps)
    footprint = ellipse(size)
    before, after = size // 2, size - 1 - size // 2
    eroded = _rank(maps, footprint, np.minimum, before, after)
    # The dilation needs the mirrored window, or the opening could exceed its input.
    return _rank(eroded, footprint[::-1, ::-1], np.maximum, after, before).astype(np.float32)


def ellipse(size: int) -> NDArray[np.bool_]:
    """The filled ellipse (size, size) that cv2.getStructuringElement(MORPH_ELLIPSE) draws; size 3 is a cross.

    Row y covers the columns within round(r sqrt(1 - (y / r)^2)) of the centre r = size // 2, halves rounded to even.
    """
    centre = size // 2
    rows = np.arange(size) - centre
    reach = np.rint(np.sqrt(np.maximum(centre**2 - rows**2, 0)))
    inside: NDArray[np.bool_] = np.abs(rows)[None, :] <= reach[:, None]
    return inside


def inside_margin(maps: Floats, margin: int) -> Floats:
    """View of maps (N, H, W) without the ``margin`` pixels at each border. Raises `DataError` if nothing is left."""
    _check_maps(maps)
    _, height, width = maps.shape
    if min(height, width) <= 2 * margin:
        raise DataError(f"a margin of {margin} pixels leaves nothing of maps of {height} x {width}")
    return maps[:, margin : height - margin, margin : width - margin]


def _ready_map(outputs: Sequence[Floats]) -> Maps:
    if not outputs:
        raise DataError("the network has no output: its anomaly map is expected")
    maps = outputs[0]
    if maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    _check_maps(maps)
    return maps.astype(np.float32)


def _check_maps(maps: NDArray[Any]) -> None:
    if maps.ndim != 3:
        raise DataError(f"anomaly maps must be (N, H, W), not {maps.shape}")


def _box(images: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Mean over size x size windows of the last two axes, from running sums along one axis at a time."""
    for axis in (-2, -1):
        length = images.shape[axis]
        # One extra element in front: each window is then the difference of two running sums ``size`` apart.
        padded = _mirrored(images, axis, before=size // 2 + 1, after=size - 1 - size // 2)
        with np.errstate(invalid="ignore"):
            sums = padded.cumsum(axis)
            images = (sums.take(range(size, size + length), axis) - sums.take(range(length), axis)) / size
    return images


def _mirrored(images: NDArray[Any], axis: int, *, before: int, after: int) -> NDArray[Any]:
    """Pad one axis with its mirror image, edge pixel included, repeated as often as needed."""
    widths = [(0, 0)] * images.ndim
    widths[axis] = (before, after)
    return np.pad(images, widths, mode="symmetric")


def _rank(maps: Floats, footprint: NDArray[np.bool_], pick: np.ufunc, before: int, after: int) -> NDArray[Any]:
    """Fold ``pick`` (minimum or maximum) over the pixels of each window that the footprint covers."""
    padded = _mirrored(_mirrored(maps, 1, before=before, after=after), 2, before=before, after=after)
    _, height, width = maps.shape
    shifted = [padded[:, y : y + height, x : x + width] for y, x in np.argwhere(footprint)]
    folded = shifted[0].copy()
    for view in shifted[1:]:
        pick(folded, view, out=folded)
    return folded
