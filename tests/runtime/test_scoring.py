"""Scoring with OpenCV against the NumPy reference, whole maps with their borders."""

import numpy as np
import pytest
import skimage

from adedge.errors import DataError
from adedge.runtime.scoring import Scorer
from adedge.scoring import image_scores, maps_and_scores, score_maps
from adedge.specs import Dssim, Gaussian, Opening, ReadyMap, ScoreSpec, Uniform

ATOL = 2e-5  # float32 throughout; what is promised is 1e-4
SIZES = [(1, 1), (1, 9), (7, 1), (3, 2), (8, 31), (33, 20), (64, 64)]
FILTERS = {
    "none": (),
    "uniform32": (Uniform(size=32),),
    "uniform3": (Uniform(size=3),),
    "gaussian": (Gaussian(sigma=4),),
    "opening": (Opening(size=3),),
    "opening even": (Opening(size=6),),
    "mkd": (Gaussian(sigma=1.5), Opening(size=3)),
    "three": (Uniform(size=4), Opening(size=5), Gaussian(sigma=0.7)),
}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def assert_equals_reference(spec, outputs, atol=ATOL):
    n, height, width = outputs[0].shape[0], *outputs[0].shape[-2:]
    channels = outputs[0].shape[1] if outputs[0].ndim == 4 else 1
    maps, scores = Scorer(spec, (channels, height, width), batch=n)(outputs)
    expected = score_maps(spec, outputs)
    assert maps.dtype == scores.dtype == np.float32
    np.testing.assert_allclose(maps, expected, atol=atol, rtol=0)
    np.testing.assert_allclose(scores, image_scores(spec, expected), atol=atol, rtol=0)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_every_filter_on_every_size(size, filters):
    spec = ScoreSpec(comparison=Dssim(), filters=filters)
    assert_equals_reference(spec, [noise(2, 3, *size, seed=1), noise(2, 3, *size, seed=2)])
    assert_equals_reference(ScoreSpec(comparison=ReadyMap(), filters=filters), [noise(2, 1, *size)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("window", "data_range"), [(7, 1.0), (3, 1.0), (11, 255.0)])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_dssim_of_photographs(channels, window, data_range, reduce):
    picture = skimage.data.astronaut()[:120, 100:260].transpose(2, 0, 1)[None, :channels].astype(np.float32) / 255
    other = 0.8 * picture[..., ::-1, :] + 0.1
    spec = ScoreSpec(comparison=Dssim(window=window, data_range=data_range), reduce=reduce, margin=3)
    # A window of 3 averages away fewer of float32's roundings.
    atol = ATOL if window >= 7 else 5e-5
    assert_equals_reference(spec, [picture * data_range, other * data_range], atol=atol)


@pytest.mark.parametrize("level", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("amplitude", [0.0, 1e-4, 1e-2])
def test_flat_pictures_do_not_cancel_away(level, amplitude):
    # Almost flat and bright: where m(x^2) - m(x)^2 in float32 would be noise.
    a = level + amplitude * (noise(1, 3, 40, 40, seed=1) - 0.5)
    b = level + amplitude * (noise(1, 3, 40, 40, seed=2) - 0.5)
    assert_equals_reference(ScoreSpec(comparison=Dssim()), [a, b], atol=2e-6)


def test_flat_pictures_of_opposite_brightness_stay_within_the_promised_tolerance():
    a = 0.99 + 0.01 * noise(1, 1, 40, 40, seed=1)
    assert_equals_reference(ScoreSpec(comparison=Dssim()), [a, 0.01 * noise(1, 1, 40, 40, seed=2)], atol=1e-4)


def test_a_smaller_batch_and_a_second_call_leave_nothing_behind():
    spec = ScoreSpec(comparison=Dssim(), filters=(Uniform(size=8),))
    scorer = Scorer(spec, (3, 30, 20), batch=4)
    full = [noise(4, 3, 30, 20, seed=1), noise(4, 3, 30, 20, seed=2)]
    maps, scores = scorer(full)
    assert maps.shape == (4, 30, 20)
    assert scores.shape == (4,)
    first_scores = scores.copy()
    few = [noise(2, 3, 30, 20, seed=3), noise(2, 3, 30, 20, seed=4)]
    maps, scores = scorer(few)
    np.testing.assert_allclose(maps, score_maps(spec, few), atol=ATOL)
    np.testing.assert_array_equal(scorer(full)[1], first_scores)
    assert np.shares_memory(scorer(full)[0], maps), "maps are allocated once"


OUTPUT = ScoreSpec(comparison=ReadyMap(), filters=FILTERS["mkd"], reduce="output")


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_the_network_s_own_score_goes_with_the_filtered_map(shape):
    outputs = [noise(3, 1, 20, 30), np.array([0.25, -3.0, np.nan], np.float32).reshape(shape)]
    maps, scores = Scorer(OUTPUT, (3, 20, 30), batch=4)(outputs)
    expected = maps_and_scores(OUTPUT, outputs)
    np.testing.assert_allclose(maps, expected[0], atol=ATOL)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.array([0.25, -3.0, np.nan], np.float32))


@pytest.mark.parametrize("scores", [(), (noise(2),), (noise(3, 2),)], ids=["none", "too few", "two a picture"])
def test_a_network_that_gives_no_score_of_its_own_is_refused(scores):
    with pytest.raises(DataError, match="second output must be one score per picture"):
        Scorer(OUTPUT, (3, 20, 30), batch=4)([noise(3, 1, 20, 30), *scores])


def test_non_contiguous_outputs():
    spec = ScoreSpec(comparison=Dssim())
    a, b = noise(2, 3, 30, 40, seed=1)[:, ::-1, ::-1, ::2], noise(2, 3, 30, 40, seed=2)[..., 1::2]
    assert_equals_reference(spec, [a, b])


def test_a_nan_reaches_the_score_of_its_picture_and_of_no_other_call_or_picture():
    spec = ScoreSpec(comparison=Dssim(), filters=(Uniform(size=4), Opening(size=3), Gaussian(sigma=1)))
    a, b = noise(2, 3, 20, 20, seed=1), noise(2, 3, 20, 20, seed=2)
    scorer = Scorer(spec, (3, 20, 20), batch=2)
    healthy = scorer([a, b])[1].copy()
    damaged = a.copy()
    damaged[0, 1, 10, 10] = np.nan
    scores = scorer([damaged, b])[1]
    assert np.isnan(scores[0])
    assert scores[1] == healthy[1]
    np.testing.assert_array_equal(scorer([a, b])[1], healthy)


@pytest.mark.parametrize(
    ("spec", "outputs", "sentence"),
    [
        (Dssim(), [noise(1, 3, 8, 9)], r"2 output\(s\) of float32 \(n, 3, 8, 9\).*gave float32 \(1, 3, 8, 9\)$"),
        (Dssim(), [], "gave nothing"),
        (Dssim(), [noise(1, 3, 8, 9), noise(1, 3, 9, 8)], r"float32 \(1, 3, 9, 8\)"),
        (Dssim(), [noise(1, 3, 8, 9), noise(2, 3, 8, 9)], r"float32 \(2, 3, 8, 9\)"),
        (Dssim(), [noise(3, 3, 8, 9), noise(3, 3, 8, 9)], "n <= 2"),
        (Dssim(), [noise(1, 3, 8, 9).astype(np.float64), noise(1, 3, 8, 9)], "float64"),
        (ReadyMap(), [noise(1, 3, 8, 9)], r"1 output\(s\) of float32 \(n, 8, 9\)"),
    ],
    ids=["one image", "nothing", "sizes", "batches", "too many", "dtype", "three maps"],
)
def test_outputs_that_do_not_fit_are_named(spec, outputs, sentence):
    with pytest.raises(DataError, match=sentence):
        Scorer(ScoreSpec(comparison=spec), (3, 8, 9), batch=2)(outputs)


def test_a_margin_that_leaves_nothing_is_refused_before_the_first_frame():
    with pytest.raises(DataError, match="margin of 4"):
        Scorer(ScoreSpec(comparison=Dssim(), margin=4), (3, 8, 9), batch=1)
