"""The NumPy reference against scikit-image, SciPy and OpenCV, whole maps with their borders."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
import skimage
from pydantic import ValidationError

from adedge.errors import DataError
from adedge.scoring import (
    dssim_map,
    ellipse,
    gaussian_filter,
    image_scores,
    maps_and_scores,
    network_scores,
    opening,
    score_maps,
    uniform_filter,
)
from adedge.specs import Dssim, Gaussian, Opening, ReadyMap, ScoreSpec, Uniform

ATOL = 1e-5
SIZES = [(1, 1), (1, 9), (7, 1), (3, 2), (7, 7), (8, 31), (33, 20)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def photographs():
    """Two different photographs as (2, 3, 96, 150) float32 in [0, 1], and degraded versions of them."""
    astronaut = skimage.data.astronaut()[20:116, 150:300].transpose(2, 0, 1) / 255
    textures = np.stack([picture()[:96, :150] for picture in (skimage.data.brick, skimage.data.grass)] * 2)[:3] / 255
    originals = np.stack([astronaut, textures]).astype(np.float32)
    blurred = scipy.ndimage.gaussian_filter(originals, (0, 0, 1.5, 1.0))
    return originals, (blurred * 0.9 + 0.02 * noise(*originals.shape)).astype(np.float32)


def scikit_dssim(a, b, window=7, data_range=1.0):
    maps = [
        skimage.metrics.structural_similarity(
            x.astype(np.float64), y.astype(np.float64), full=True, win_size=window,
            gaussian_weights=False, data_range=data_range, channel_axis=0,
        )[1].mean(axis=0)
        for x, y in zip(a, b, strict=True)
    ]  # fmt: skip
    return (1 - np.stack(maps)) / 2


@pytest.mark.parametrize("window", [3, 7, 11])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_dssim_equals_scikit_image_on_photographs(window, data_range):
    a, b = (data_range * x for x in photographs())
    maps = dssim_map(a, b, window=window, data_range=data_range)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, scikit_dssim(a, b, window, data_range), atol=ATOL, rtol=0)


@pytest.mark.parametrize("shape", [(7, 7), (7, 40), (31, 12), (9, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_dssim_equals_scikit_image_on_noise(shape, channels):
    a, b = noise(2, channels, *shape, seed=1), noise(2, channels, *shape, seed=2)
    np.testing.assert_allclose(dssim_map(a, b), scikit_dssim(a, b), atol=ATOL, rtol=0)


@sizes
def test_dssim_equals_its_definition_where_the_picture_is_smaller_than_the_window(size):
    # scikit-image refuses such pictures: sample moments of every mirrored window, one after the other.
    a, b = noise(1, 1, *size, seed=3), noise(1, 1, *size, seed=4)
    x, y = (
        np.lib.stride_tricks.sliding_window_view(np.pad(p[0, 0].astype(float), 3, "symmetric"), (7, 7)).reshape(
            *size, 49
        )
        for p in (a, b)
    )
    mean_x, mean_y = x.mean(-1), y.mean(-1)
    covariance = ((x - mean_x[..., None]) * (y - mean_y[..., None])).sum(-1) / 48
    ssim = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    ssim /= (mean_x**2 + mean_y**2 + 1e-4) * (x.var(-1, ddof=1) + y.var(-1, ddof=1) + 9e-4)
    np.testing.assert_allclose(dssim_map(a, b)[0], (1 - ssim) / 2, atol=ATOL, rtol=0)


def test_dssim_of_flat_pictures_is_the_luminance_term_alone():
    a, b = np.full((1, 3, 16, 16), 0.9, np.float32), np.full((1, 3, 16, 16), 0.2, np.float32)
    expected = (1 - (2 * 0.9 * 0.2 + 1e-4) / (0.9**2 + 0.2**2 + 1e-4)) / 2
    np.testing.assert_allclose(dssim_map(a, b), expected, atol=1e-6)


@sizes
@pytest.mark.parametrize("k", [2, 3, 8, 32])
def test_uniform_filter_equals_scipy(size, k):
    maps = noise(2, *size)
    expected = [scipy.ndimage.uniform_filter(m.astype(float), k) for m in maps]
    np.testing.assert_allclose(uniform_filter(maps, k), expected, atol=ATOL, rtol=0)


@sizes
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_gaussian_filter_equals_scipy(size, sigma):
    maps = noise(2, *size)
    expected = [scipy.ndimage.gaussian_filter(m.astype(float), sigma) for m in maps]
    np.testing.assert_allclose(gaussian_filter(maps, sigma), expected, atol=ATOL, rtol=0)


@sizes
@pytest.mark.parametrize("k", [3, 4, 5, 6, 9])
def test_opening_equals_scipy_with_the_ellipse_of_opencv(size, k):
    maps = noise(2, *size)
    footprint = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (k, k))
    expected = [scipy.ndimage.grey_opening(m, footprint=footprint) for m in maps]
    np.testing.assert_array_equal(opening(maps, k), expected)


@pytest.mark.parametrize("k", range(3, 33))
def test_ellipse_equals_opencv(k):
    np.testing.assert_array_equal(ellipse(k), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (k, k)))


def test_filters_do_not_mix_pictures_and_accept_non_contiguous_views():
    stack = noise(3, 20, 30)
    for run in (lambda m: uniform_filter(m, 8), lambda m: gaussian_filter(m, 2.0), lambda m: opening(m, 3)):
        view = stack[::2, ::-1, 3:]
        assert not view.flags.c_contiguous
        alone = np.concatenate([run(np.ascontiguousarray(m[None])) for m in view])
        np.testing.assert_array_equal(run(view), alone)


def test_score_maps_compares_and_filters_in_order():
    a, b = photographs()
    spec = ScoreSpec(comparison=Dssim(), filters=(Uniform(size=32), Opening(size=5), Gaussian(sigma=2)))
    expected = [
        scipy.ndimage.gaussian_filter(
            scipy.ndimage.grey_opening(scipy.ndimage.uniform_filter(m, 32), footprint=ellipse(5)), 2
        )
        for m in scikit_dssim(a, b)
    ]
    np.testing.assert_allclose(score_maps(spec, (a, b)), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("shape", [(2, 12, 9), (2, 1, 12, 9)])
def test_a_ready_map_passes_through(shape):
    maps = score_maps(ScoreSpec(comparison=ReadyMap()), [noise(*shape)])
    np.testing.assert_array_equal(maps, noise(*shape).reshape(2, 12, 9))


def test_the_mean_inside_the_margin_is_the_mean_over_valid_windows():
    a, b = photographs()
    spec = ScoreSpec(comparison=Dssim(), reduce="mean", margin=3)
    x, y = (np.lib.stride_tricks.sliding_window_view(p.astype(float), (7, 7), axis=(2, 3)) for p in (a, b))
    mean_x, mean_y = x.mean((-2, -1)), y.mean((-2, -1))
    covariance = ((x - mean_x[..., None, None]) * (y - mean_y[..., None, None])).sum((-2, -1)) / 48
    ssim = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    ssim *= (2 * covariance + 9e-4) / (x.var((-2, -1), ddof=1) + y.var((-2, -1), ddof=1) + 9e-4)
    expected = ((1 - ssim) / 2).mean((1, 2, 3))
    np.testing.assert_allclose(image_scores(spec, score_maps(spec, (a, b))), expected, atol=1e-6)


def test_the_maximum_ignores_the_margin():
    maps = np.zeros((2, 9, 9), np.float32)
    maps[0, 2, 4] = 5
    maps[1, 3, 4] = 7
    spec = ScoreSpec(comparison=ReadyMap(), margin=3)
    assert image_scores(spec, maps).tolist() == [0, 7]


OUTPUT = ScoreSpec(comparison=ReadyMap(), filters=(Uniform(size=3),), reduce="output")


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_the_network_s_own_score_goes_with_the_filtered_map(shape):
    own = np.array([7.5, -1.0], np.float32).reshape(shape)
    maps, scores = maps_and_scores(OUTPUT, [noise(2, 1, 9, 12), own])
    np.testing.assert_allclose(maps, scipy.ndimage.uniform_filter(noise(2, 9, 12), (0, 3, 3)), atol=ATOL)
    assert scores.dtype == np.float32
    assert scores.tolist() == [7.5, -1.0]


def test_the_network_s_own_score_may_be_nan():
    assert np.isnan(maps_and_scores(OUTPUT, [noise(1, 9, 12), np.array([np.nan], np.float32)])[1]).all()


@pytest.mark.parametrize(
    "parts", [{"comparison": Dssim()}, {"comparison": ReadyMap(), "margin": 2}], ids=["two images", "margin"]
)
def test_a_score_of_the_network_s_own_goes_with_a_ready_map_alone(parts):
    with pytest.raises(ValidationError, match="requires a ready map and no margin"):
        ScoreSpec(reduce="output", **parts)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_a_number_that_is_none_makes_the_score_of_its_picture_nan_and_of_no_other(bad, reduce):
    a, b = noise(2, 3, 20, 20, seed=1), noise(2, 3, 20, 20, seed=2)
    a[1, 0, 10, 10] = bad
    spec = ScoreSpec(comparison=Dssim(), filters=(Uniform(size=4), Opening(), Gaussian(sigma=1)), reduce=reduce)
    scores = image_scores(spec, score_maps(spec, (a, b)))
    assert np.isfinite(scores[0])
    assert np.isnan(scores[1])


DSSIM = ScoreSpec(comparison=Dssim())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: dssim_map(noise(1, 3, 8, 8), noise(1, 3, 8, 9)), r"\(1, 3, 8, 8\) and \(1, 3, 8, 9\)"),
        (lambda: dssim_map(noise(3, 8, 8), noise(3, 8, 8)), r"\(3, 8, 8\)"),
        (lambda: dssim_map(noise(1, 3, 8, 8), noise(1, 3, 8, 8), window=4), "odd and at least 3, not 4"),
        (lambda: uniform_filter(noise(8, 8), 3), r"\(N, H, W\), not \(8, 8\)"),
        (lambda: score_maps(DSSIM, [noise(1, 3, 8, 8)]), r"2 images, but the network gave 1"),
        (lambda: score_maps(ScoreSpec(comparison=ReadyMap()), [noise(1, 3, 8, 8)]), r"not \(1, 3, 8, 8\)"),
        (lambda: score_maps(ScoreSpec(comparison=ReadyMap()), []), "no output"),
        (lambda: image_scores(ScoreSpec(comparison=ReadyMap(), margin=4), noise(1, 8, 20)), "leaves nothing .* 8 x 20"),
        (lambda: image_scores(OUTPUT, noise(1, 8, 20)), "cannot be taken from a map"),
        (lambda: network_scores([noise(2, 8, 20)]), r"second output .* outputs are \(2, 8, 20\)"),
        (lambda: network_scores([noise(2, 8, 20), noise(2, 3)]), r"outputs are \(2, 8, 20\), \(2, 3\)"),
    ],
    ids=[
        "sizes", "no batch", "even window", "no batch of maps", "one image", "three maps", "no map", "margin",
        "score of a map", "no score", "three scores",
    ],
)  # fmt: skip
def test_wrong_shapes_are_named(call, sentence):
    with pytest.raises(DataError, match=sentence):
        call()
