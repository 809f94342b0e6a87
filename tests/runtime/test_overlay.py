"""Colour is fixed by the threshold, ordinary pixels stay as they are, and a verdict can be read off the picture."""

from __future__ import annotations

import numpy as np
import pytest

from adedge.errors import DataError
from adedge.runtime.overlay import GREEN, INK, RED, SheetRow, annotate, enlarged, heat, overlay, picture_sheet
from adedge.runtime.verdict import Verdict

RNG = np.random.default_rng(5)
FRAME = RNG.integers(0, 256, (64, 96, 3), np.uint8)


def verdict(score: float, threshold: float, anomaly_map: np.ndarray | None = None) -> Verdict:
    return Verdict(
        frame_id=0,
        name="a.png",
        captured_at_ns=0,
        decided_at_ns=0,
        score=score,
        threshold=threshold,
        anomalous=score > threshold,
        map=anomaly_map,
        timings_ms={},
    )


def test_one_value_has_one_colour_whatever_else_the_frame_holds() -> None:
    calm = np.full((8, 8), 0.02, np.float32)
    wild = RNG.uniform(0, 5, (8, 8)).astype(np.float32)
    wild[3, 4] = 0.02
    np.testing.assert_array_equal(heat(wild, 0.1)[3, 4], heat(calm, 0.1)[0, 0])


@pytest.mark.parametrize("threshold", [0.1, -0.5, 0.0])
def test_scale_is_centred_on_the_threshold_and_saturates(threshold: float) -> None:
    span = abs(threshold) or 1.0
    values = np.array([[threshold - 9 * span, threshold - span, threshold, threshold + span, threshold + 9 * span]])
    low_clipped, low, middle, high, high_clipped = heat(values.astype(np.float32), threshold)[0].astype(int)
    np.testing.assert_array_equal(low, low_clipped)
    np.testing.assert_array_equal(high, high_clipped)
    assert low[0] > low[2], "below: more blue than red"
    assert middle[1] > middle[0]
    assert middle[1] > middle[2], "at the threshold: green"
    assert high[2] > high[0], "above: more red than blue"


def test_pixels_well_below_the_threshold_keep_their_look() -> None:
    anomaly_map = np.full((64, 96), 0.04, np.float32)
    anomaly_map[:, 48:] = 0.3
    result = overlay(FRAME, anomaly_map, threshold=0.1, outline=False)
    np.testing.assert_array_equal(result[:, :47], FRAME[:, :47])
    assert np.abs(result[:, 49:].astype(int) - FRAME[:, 49:]).mean() > 20


@pytest.mark.parametrize("threshold", [0.5, -0.2, 0.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_opacity_rises_from_half_way_below_the_threshold_to_it(channels: int, threshold: float) -> None:
    frame = np.ascontiguousarray(FRAME[:, :, :channels])[:, ::-1]
    span = abs(threshold) or 1.0
    places = np.linspace(-1.5, 1.5, 64 * 96, dtype=np.float32).reshape(64, 96)  # -1 ... 1 is the scale
    anomaly_map = places * np.float32(span) + np.float32(threshold)
    opacity = 0.6 * np.clip(2 * places + 1, 0, 1)[..., None]
    expected = frame * (1 - opacity) + heat(anomaly_map, threshold) * opacity
    got = overlay(frame, anomaly_map, threshold, outline=False)
    # A level is 1 / 127 of the scale, so opacity is up to 0.6 / 64 off, of a difference of up to 255; then rounding.
    assert np.abs(got - expected).max() <= 0.6 / 64 * 255 + 0.5


def test_outline_follows_the_threshold() -> None:
    anomaly_map = np.zeros((64, 96), np.float32)
    anomaly_map[20:40, 30:60] = 1.0
    black = np.zeros((64, 96), np.uint8)
    marked = overlay(black, anomaly_map, threshold=0.5)
    white = (marked > 220).all(axis=2)  # the line is antialiased
    assert white[20, 31:59].all()
    assert white[39, 31:59].all()
    assert not white[:19].any()
    assert not white[25:35, 35:55].any()


@pytest.mark.parametrize("shape", [(64, 96), (64, 96, 1), (64, 96, 3)], ids=["grey", "grey-1", "bgr"])
def test_map_of_another_size_is_laid_over_frames_of_any_colour(shape: tuple[int, ...]) -> None:
    result = overlay(np.full(shape, 90, np.uint8), np.full((16, 16), 2.0, np.float32), threshold=1.0)
    assert result.shape == (64, 96, 3)


def test_not_a_number_shows_as_hottest() -> None:
    anomaly_map = np.array([[np.nan, 99.0]], np.float32)
    colours = heat(anomaly_map, 0.1)
    np.testing.assert_array_equal(colours[0, 0], colours[0, 1])


@pytest.mark.parametrize(("score", "colour"), [(0.2, RED), (0.1, GREEN), (0.05, GREEN)], ids=["ng", "equal", "ok"])
def test_banner_has_the_verdicts_colour_and_a_bar_of_the_scores_length(
    score: float, colour: tuple[int, int, int]
) -> None:
    frame = np.zeros((300, 400, 3), np.uint8)
    picture = annotate(frame, verdict(score, 0.1))
    np.testing.assert_array_equal(picture[:300], frame)
    banner = picture[300:]
    assert tuple(banner[1, 1]) == colour
    assert (banner[0] != INK).any(axis=1).sum() == 2 * banner.shape[0], "the tag is two banner heights wide"
    row = banner[round(banner.shape[0] * 0.4), 2 * banner.shape[0] + 10 :]
    filled = (row == colour).all(axis=1).sum()
    bar = filled + (row == (110, 104, 100)).all(axis=1).sum()
    assert filled / bar == pytest.approx(score / 0.2, abs=0.03)


def test_small_frames_are_enlarged_by_whole_factors() -> None:
    small = RNG.integers(0, 256, (28, 40, 3), np.uint8)
    large = enlarged(small, 256)
    assert large.shape == (252, 360, 3)
    np.testing.assert_array_equal(large[4::9, 4::9], small)
    assert enlarged(FRAME, 64) is FRAME


def test_frame_beside_overlay_is_untouched() -> None:
    frame = RNG.integers(0, 256, (256, 300, 3), np.uint8)
    picture = annotate(frame, verdict(3.0, 1.0, np.full((8, 8), 3.0, np.float32)), beside=True)
    np.testing.assert_array_equal(picture[:256, :300], frame)
    assert picture.shape[1] > 600
    assert (picture[:256, -300:] != frame).any()


def reddish(picture: np.ndarray) -> bool:
    """Whether a sheet's last row is marked in red; how solid thin letters are differs between versions of OpenCV."""
    blue, green, red = np.moveaxis(picture[-36:, :60].astype(int), 2, 0)
    return bool(((red - green > 60) & (red - blue > 60)).any())


def test_sheet_has_a_row_each_and_a_column_for_the_true_defect_when_known() -> None:
    row = SheetRow(frame=FRAME, map=np.zeros((8, 8), np.float32), score=0.5, threshold=1.0, title="good")
    mask = np.zeros((64, 96), np.bool_)
    mask[:32] = True
    one, two = picture_sheet([row]), picture_sheet([row, row])
    assert two.shape[1] == one.shape[1]
    assert two.shape[0] > 1.8 * one.shape[0]
    known = SheetRow(frame=FRAME, map=row.map, score=2.0, threshold=1.0, title="stain", mask=mask)
    assert picture_sheet([row, known]).shape[1] > one.shape[1]
    assert reddish(picture_sheet([known]))
    assert not reddish(one)


def test_sheet_needs_rows() -> None:
    with pytest.raises(DataError, match="at least one row"):
        picture_sheet([])
