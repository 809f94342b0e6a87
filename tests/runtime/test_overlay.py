"""Colour and outline say what the verdict says, everything else stays as it is, and the banner tells the verdict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adedge.errors import DataError
from adedge.runtime.backends import FunctionBackend
from adedge.runtime.host_inspector import HostInspector
from adedge.runtime.overlay import GREEN, INK, RED, SheetRow, annotate, enlarged, heat, overlay, picture_sheet, shrunk
from adedge.runtime.sources import Frame
from adedge.runtime.verdict import Verdict
from adedge.scoring import image_scores
from adedge.specs import InputSpec, ReadyMap, ScoreSpec, Tiling

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


@pytest.mark.parametrize("threshold", [0.125, -0.5, 0.0])
def test_scale_is_grey_up_to_the_threshold_and_amber_to_red_above_it(threshold: float) -> None:
    span = abs(threshold) or 1.0
    values = threshold + span * np.array([[-9, -1, -0.5, 0, 0.01, 1, 9]])
    low_clipped, low, grey, middle, amber, high, high_clipped = heat(values.astype(np.float32), threshold)[0].astype(
        int
    )
    np.testing.assert_array_equal(low, low_clipped)
    np.testing.assert_array_equal(high, high_clipped)
    for colour in (low, grey, middle):
        assert np.ptp(colour) == 0
    assert low[0] < grey[0] < middle[0]
    assert amber[2] > amber[1] > 150 > amber[0], "just above the threshold: amber"
    assert high[2] > 150 > 60 > high[:2].max(), "far above: red"


def test_no_colour_is_a_green_which_means_ok() -> None:
    levels = np.linspace(-2, 4, 400, dtype=np.float32)[None]
    _, green, red = np.moveaxis(heat(levels, 1.0).astype(int), 2, 0)
    assert (green <= red).all()


def test_pixels_well_below_the_threshold_keep_their_look() -> None:
    anomaly_map = np.full((64, 96), 0.04, np.float32)
    anomaly_map[:, 48:] = 0.3
    result = overlay(FRAME, anomaly_map, threshold=0.1, outline=False)
    np.testing.assert_array_equal(result[:, :47], FRAME[:, :47])
    assert np.abs(result[:, 49:].astype(int) - FRAME[:, 49:]).mean() > 20


@pytest.mark.parametrize("threshold", [0.5, -0.2, 0.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_heat_covers_what_exceeds_the_threshold_and_nothing_else(channels: int, threshold: float) -> None:
    frame = np.ascontiguousarray(FRAME[:, :, :channels])[:, ::-1]
    span = abs(threshold) or 1.0
    places = np.linspace(-1.5, 1.5, 64 * 96, dtype=np.float32).reshape(64, 96)  # -1 ... 1 is the scale
    anomaly_map = places * np.float32(span) + np.float32(threshold)
    opacity = 0.6 * (anomaly_map > threshold)[..., None]
    expected = frame * (1 - opacity) + heat(anomaly_map, threshold) * opacity
    got = overlay(frame, anomaly_map, threshold, outline=False)
    assert np.abs(got - expected).max() <= 0.5 + 1e-4


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


def outlined(anomaly_map: np.ndarray, threshold: float, size: tuple[int, int], margin: int) -> np.ndarray:
    """Which pixels of a frame of this (height, width) the outline changes."""
    black = np.zeros(size, np.uint8)
    with_line, without = (
        overlay(black, anomaly_map, threshold, outline=outline, margin=margin) for outline in (True, False)
    )
    return np.asarray((with_line != without).any(axis=2))


sides = st.integers(1, 40)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.tuples(sides, sides), st.tuples(sides, sides), st.floats(-2, 2))
def test_a_frame_has_an_outline_exactly_if_it_is_rejected(
    data: st.DataObject, shape: tuple[int, int], size: tuple[int, int], threshold: float
) -> None:
    margin = data.draw(st.integers(0, (min(shape) - 1) // 2))
    # Many values next to the threshold, where rounding could turn the decision, and peaks of one pixel.
    near = np.float32(threshold)
    values = [near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9)), near - 1, near + 1]
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    kept = data.draw(st.integers(1, 5))
    anomaly_map = rng.choice(np.array(values[:kept], np.float32), shape)
    if data.draw(st.booleans()):
        anomaly_map = np.minimum(anomaly_map, np.float32(threshold - 0.5))
        anomaly_map[rng.integers(shape[0]), rng.integers(shape[1])] = values[1]
    spec = ScoreSpec(comparison=ReadyMap(), margin=margin)
    score = float(image_scores(spec, anomaly_map[None])[0])
    assert outlined(anomaly_map, threshold, size, margin).any() == (score > threshold)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(16, 45), st.integers(16, 45)),
    st.tuples(sides, sides),
    st.integers(1, 16),
    st.integers(0, 7),
    st.integers(0, 2**32 - 1),
)
def test_the_outline_of_a_tiled_frame_agrees_with_its_verdict(
    frame_size: tuple[int, int], drawn_size: tuple[int, int], stride: int, margin: int, seed: int
) -> None:
    spec = InputSpec(
        height=16, width=16, channels=1, color="gray", resize="tile", tiling=Tiling(tile=16, stride=stride)
    )
    backend = FunctionBackend(lambda tiles: [tiles[:, 0]], spec.shape, batch=3)
    score = ScoreSpec(comparison=ReadyMap(), margin=margin)
    image = np.random.default_rng(seed).integers(0, 128, frame_size, np.uint8)
    image[0, 0] = 255  # outside of every margin but 0, inside a tile
    inspector = HostInspector(backend, spec, score, threshold=0.75)
    (judged,) = inspector.inspect([Frame(0, 0, image, "a")])
    assert judged.map is not None
    assert judged.margin == margin
    assert judged.anomalous == (margin == 0)
    assert outlined(judged.map, judged.threshold, drawn_size, judged.margin).any() == judged.anomalous


@pytest.mark.parametrize("size", [(64, 96), (128, 192), (32, 48)], ids=["same", "larger", "smaller"])
def test_the_margin_is_hatched_and_shows_no_defect(size: tuple[int, int]) -> None:
    anomaly_map = np.full((64, 96), 0.1, np.float32)
    anomaly_map[:16] = anomaly_map[-16:] = 9.0
    anomaly_map[:, :16] = anomaly_map[:, -16:] = 9.0
    frame = np.full((*size, 3), 90, np.uint8)
    result = overlay(frame, anomaly_map, 0.5, margin=16)
    assert (np.ptp(result, axis=2) == 0).all(), "nothing has a colour"
    border = 16 * size[0] // 64
    inner = (slice(border, -border),) * 2
    np.testing.assert_array_equal(result[inner], frame[inner])
    changed = (result != frame).any(axis=2)
    changed[inner] = False
    shares = [part.mean() for part in (changed[:border], changed[-border:], changed[:, :border], changed[:, -border:])]
    assert all(0.1 < share < 0.4 for share in shares), "lines, with most of the frame between them visible"
    assert np.ptp(heat(anomaly_map, 0.5, margin=16), axis=2).max() == 0


def test_the_hatch_shows_on_any_ground() -> None:
    anomaly_map = np.zeros((64, 96), np.float32)
    for level in range(256):
        frame = np.full((64, 96, 3), level, np.uint8)
        assert np.abs(overlay(frame, anomaly_map, 1.0, margin=8).astype(int) - level).max() >= 40, level


@pytest.mark.parametrize("size", [(64, 96), (200, 300), (50, 70)], ids=["same", "larger", "smaller"])
def test_interpolation_brings_nothing_in_from_the_margin(size: tuple[int, int]) -> None:
    anomaly_map = np.full((64, 96), 90.0, np.float32)
    anomaly_map[8:-8, 8:-8] = 0
    anomaly_map[30:34, 46:50] = 1.0  # a reject
    coloured = np.ptp(overlay(np.full(size, 90, np.uint8), anomaly_map, 0.5, outline=False, margin=8), axis=2) > 0
    centre = (slice(size[0] * 2 // 5, size[0] * 3 // 5), slice(size[1] * 2 // 5, size[1] * 3 // 5))
    assert coloured[centre].any()
    coloured[centre] = False
    assert not coloured.any()


def test_an_outline_stops_at_the_margin() -> None:
    anomaly_map = np.zeros((512, 512), np.float32)
    anomaly_map[:200, :200] = 1.0
    lines = outlined(anomaly_map, 0.5, (512, 512), 50)
    assert lines[50, 60:190].all()
    assert not lines[:50].any()
    assert not lines[:, :50].any()


def test_a_margin_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="a margin of 4 pixels leaves nothing"):
        overlay(FRAME, np.zeros((8, 8), np.float32), 1.0, margin=4)


def test_a_frame_is_drawn_on_a_copy() -> None:
    frame = FRAME.copy()
    overlay(frame, np.full((8, 8), 2.0, np.float32), 1.0, margin=2)
    np.testing.assert_array_equal(frame, FRAME)


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


@pytest.mark.parametrize("ground", [GREEN, RED], ids=["ok", "ng"])
def test_the_banner_is_legible(ground: tuple[int, int, int]) -> None:
    def luminance(colour: tuple[int, int, int]) -> float:  # of sRGB, as WCAG 2 defines it
        blue, green, red = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert 1.05 / (luminance(ground) + 0.05) >= 4.5  # WHITE on it, level AA


def test_a_frame_of_any_shape_is_drawn() -> None:
    for size in ((3, 60_000), (60_000, 3), (1, 1)):
        picture = annotate(np.zeros(size, np.uint8), verdict(3.0, 1.0, np.full((8, 8), 3.0, np.float32)), beside=True)
        assert max(picture.shape) <= 2 * 60_000 + 100
    assert shrunk(np.zeros((60_000, 3), np.uint8), 480, 4096).shape == (4096, 1)


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
