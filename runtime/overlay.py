"""Drawing anomaly maps: heat maps over frames, verdict banners, picture sheets.

Colour has one meaning: here the map exceeds the threshold. It runs from amber at the threshold t to red at t + |t| (2t
for a positive threshold), the same for every picture, never stretched to a frame's own minimum and maximum, which would
paint the most ordinary spot of a good part red. What a score's margin leaves out is hatched and has no colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError
from adedge.runtime.verdict import Verdict
from adedge.scoring import inside_margin

Picture = NDArray[np.uint8]
Map = NDArray[np.float32]

FONT = cv2.FONT_HERSHEY_DUPLEX
GREEN = (59, 127, 27)
RED = (40, 40, 198)
WHITE = (255, 255, 255)
INK = (32, 28, 26)
GREY = (110, 104, 100)

AMBER = (0, 180, 255)
DEEP_RED = (25, 10, 200)

HEAT_OPACITY = 0.6
# Greys from t - |t| (level 1) to the threshold (level 128), amber to red above it.
_RAMPS = [[20] * 3], np.linspace([20] * 3, [170] * 3, 128), np.linspace(AMBER, DEEP_RED, 127)
_COLOURS = np.rint(np.concatenate(_RAMPS)).astype(np.uint8)[:, None]
SMALLEST_SIDE, LONGEST_SIDE = 256, 4096
"""Frames of at most half the first size are enlarged by a whole factor before they are drawn on, up to the second."""


def heat(anomaly_map: Map, threshold: float, *, size: tuple[int, int] | None = None, margin: int = 0) -> Picture:
    """Colour a map, uint8 (H, W, 3) BGR: greys up to the threshold, amber to red above it, hatched in the margin.

    ``size`` is the picture's height and width, by default the map's; ``margin`` as in `overlay`.
    """
    height, width = size or anomaly_map.shape
    levels = np.minimum(_levels(_resized(anomaly_map, width, height), threshold), 128)
    shown = _judged(anomaly_map, threshold, (height, width), margin)
    np.copyto(levels[shown.place], shown.levels, where=shown.above > 0)
    picture = np.asarray(cv2.applyColorMap(levels, _COLOURS), np.uint8)
    _hatch(picture, shown.place)
    return picture


def overlay(frame: Picture, anomaly_map: Map, threshold: float, *, outline: bool = True, margin: int = 0) -> Picture:
    """Blend a map over its frame: uint8 (H, W, 3) BGR of the frame's size.

    ``frame`` is uint8 (H, W), (H, W, 1) or (H, W, 3) BGR; the map is float32 of any size and is resized to the frame.
    Regions above the threshold get a colour, and with ``outline`` a white line around them; every other pixel stays as
    it is. The ``margin`` pixels at each border of the map, which the score ignores, are hatched.

    If the score is the maximum of the map inside its margin, then a frame has an outline exactly if its score exceeds
    the threshold: each pixel of the map that does lies in a coloured region, however small the frame. Raises
    `DataError` if the margin leaves no pixel.
    """
    picture = bgr_from_frame(frame).copy()
    height, width = picture.shape[:2]
    shown = _judged(anomaly_map, threshold, (height, width), margin)
    if shown.above.any():
        part = picture[shown.place]
        colours = cv2.applyColorMap(shown.levels, _COLOURS)
        blended = cv2.addWeighted(part, 1 - HEAT_OPACITY, colours, HEAT_OPACITY, 0)
        cv2.copyTo(blended, shown.above, part)
        if outline:
            contours, _ = cv2.findContours(shown.above, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            # Drawn on the judged part alone, which cuts the line off at the margin.
            cv2.drawContours(part, contours, -1, WHITE, _line_width(height, width), cv2.LINE_AA)
    _hatch(picture, shown.place)
    return picture


def annotate(frame: Picture, verdict: Verdict, *, outline: bool = True, beside: bool = False) -> Picture:
    """Draw the overlay above a banner with OK or NG, a bar that marks the threshold, and the score: uint8 BGR.

    ``beside`` puts the original frame to the left of the overlay. Frames of at most half `SMALLEST_SIDE` are enlarged
    by a whole factor.
    """
    picture = enlarged(bgr_from_frame(frame))
    marked = (
        picture
        if verdict.map is None
        else overlay(picture, verdict.map, verdict.threshold, outline=outline, margin=verdict.margin)
    )
    gap = np.full((picture.shape[0], 4, 3), INK, np.uint8)
    body = np.hstack([picture, gap, marked]) if beside else marked
    return np.vstack([body, _banner(verdict, body.shape[1], max(28, min(body.shape[:2]) // 12))])


def shrunk(frame: Picture, width: int, height: int | None = None) -> Picture:
    """Scale a frame down to at most ``width`` and ``height`` pixels, preserving its aspect ratio."""
    scale = min(width / frame.shape[1], 1 if height is None else height / frame.shape[0])
    if scale >= 1:
        return frame
    size = [max(1, round(side * scale)) for side in frame.shape[1::-1]]
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One row of a picture sheet.

    frame      uint8 (H, W, 1|3) BGR or grey
    map        float32 anomaly map of any size
    margin     pixels at each border of the map that the score ignores
    score      raw image score, compared with ``threshold``
    title      for example the kind of defect
    mask       bool (H, W), the true defect; None if unknown
    """

    frame: Picture
    map: Map
    score: float
    threshold: float
    title: str
    margin: int = 0
    mask: NDArray[np.bool_] | None = None


def picture_sheet(rows: Sequence[SheetRow], *, cell: int = 224, outline: bool = True) -> Picture:
    """A sheet with frame | map | overlay per row, uint8 BGR, and a column for the true defect if any row has a mask.

    ``cell`` is the height and width of one picture in pixels; pictures keep their aspect ratio. Raises `DataError` if
    there are no rows.
    """
    if not rows:
        raise DataError("a picture sheet requires at least one row")
    with_mask = any(row.mask is not None for row in rows)
    columns = ["frame", "anomaly map", "overlay"] + (["true defect"] if with_mask else [])
    gap, header = 8, 28
    width = len(columns) * (cell + gap) + gap
    sheet = np.full((header + len(rows) * (cell + header + gap), width, 3), 255, np.uint8)
    for column, text in enumerate(columns):
        _write(sheet, text, (gap + column * (cell + gap), header - 9), 14, GREY)
    for number, row in enumerate(rows):
        top = header + number * (cell + header + gap)
        anomalous = row.score > row.threshold
        cells = [
            row.frame,
            heat(row.map, row.threshold, size=row.frame.shape[:2], margin=row.margin),
            overlay(row.frame, row.map, row.threshold, outline=outline, margin=row.margin),
        ]
        if row.mask is not None:
            cells.append(_masked(row.frame, row.mask))
        for column, picture in enumerate(cells):
            left = gap + column * (cell + gap)
            sheet[top : top + cell, left : left + cell] = _fitted(bgr_from_frame(picture), cell)
        baseline = top + cell + 19
        tag_width = _write(sheet, "NG" if anomalous else "OK", (gap, baseline), 15, RED if anomalous else GREEN)
        text = f"{row.score:.4g} (threshold {row.threshold:.4g})  {row.title}"
        _write(sheet, text, (gap + tag_width + 8, baseline), 14, INK)
    return sheet


def bgr_from_frame(frame: Picture) -> Picture:
    """uint8 (H, W), (H, W, 1) or (H, W, 3) -> (H, W, 3); returns a frame with three channels as it is."""
    if frame.ndim == 3 and frame.shape[2] == 3:
        return frame
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR), np.uint8)


def enlarged(picture: Picture, smallest_side: int = SMALLEST_SIDE) -> Picture:
    """Enlarge by the largest whole factor that keeps the shorter side within ``smallest_side``; pixels stay sharp.

    The longer side stays within `LONGEST_SIDE`.
    """
    factor = min(smallest_side // min(picture.shape[:2]), LONGEST_SIDE // max(picture.shape[:2]))
    if factor <= 1:
        return picture
    return np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST), np.uint8)


class _Judged(NamedTuple):
    """The part of a map that decides, laid over a frame.

    place   rows and columns of the frame that show it
    above   uint8, 1 where the map exceeds the threshold, otherwise 0
    levels  uint8, indices into `_COLOURS`, of use where ``above`` is set
    """

    place: tuple[slice, slice]
    above: Picture
    levels: Picture


def _judged(anomaly_map: Map, threshold: float, size: tuple[int, int], margin: int) -> _Judged:
    inner = inside_margin(anomaly_map[None], margin)[0]
    place = _shown(anomaly_map.shape[0], size[0], margin), _shown(anomaly_map.shape[1], size[1], margin)
    shape = place[0].stop - place[0].start, place[1].stop - place[1].start
    limit = _float32_below(threshold)
    peaks = _exceeding(inner, limit)
    if not peaks.any():
        return _Judged(place, np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))
    # Interpolation must not bring in anything from the margin.
    judged_only = cv2.copyMakeBorder(inner, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    values = _resized(np.asarray(judged_only, np.float32), size[1], size[0])[place]
    above = _exceeding(values, limit)
    if anomaly_map.shape != size:
        # Interpolation may miss a peak of one pixel: mark the frame where its centre lies, with a dot that can be seen.
        rows, columns = (
            (2 * np.arange(margin, length - margin) + 1) * pixels // (2 * length) - part.start
            for length, pixels, part in zip(anomaly_map.shape, size, place, strict=True)
        )
        shown = _gathered(_gathered(peaks, rows, shape[0]).T, columns, shape[1]).T
        missed = np.ascontiguousarray(shown & ~above)
        if missed.any():
            dot = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (4 * _line_width(*size) + 1,) * 2)
            above |= np.asarray(cv2.dilate(missed, dot), np.uint8)
    return _Judged(place, above, np.maximum(_levels(values, threshold), np.uint8(129)))


def _exceeding(values: Map, limit: np.float32) -> Picture:
    """1 where a value exceeds the limit or is NaN, otherwise 0."""
    return (~(values <= limit)).view(np.uint8)


def _gathered(mask: Picture, targets: NDArray[np.int64], length: int) -> Picture:
    """Move each row of a mask to its target, ascending, among ``length`` rows; those with one target are united."""
    first = np.flatnonzero(np.diff(targets, prepend=-1))
    last = np.append(first[1:], len(mask)) - 1
    mask = np.ascontiguousarray(mask)
    united = mask[first]
    for step in range(1, int((last - first).max()) + 1):  # several times faster than np.maximum.reduceat
        united |= mask[np.minimum(first + step, last)]
    rows = np.zeros((length, mask.shape[1]), np.uint8)
    rows[targets[first]] = united
    return rows


def _shown(length: int, pixels: int, margin: int) -> slice:
    """The pixels of a frame's side that show any of a map's side of ``length`` without its margins."""
    return slice(margin * pixels // length, -((margin - length) * pixels // length))


def _float32_below(threshold: float) -> np.float32:
    """The largest float32 that is not above the threshold: float32 values exceed both, or neither."""
    with np.errstate(over="ignore"):
        limit = np.float32(threshold)
    return np.nextafter(limit, np.float32(-np.inf)) if float(limit) > threshold else limit


def _hatch(picture: Picture, judged: tuple[slice, slice]) -> None:
    """Draw diagonal lines, light beside dark so that they show on any ground, outside the judged part."""
    height, width = picture.shape[:2]
    rows, columns = judged
    lines = (np.arange(height + width) // _line_width(height, width) % 8).astype(np.uint8)
    pattern = np.lib.stride_tricks.sliding_window_view(lines, width)[:height]
    everywhere = slice(None)
    for strip in (
        (slice(0, rows.start), everywhere),
        (slice(rows.stop, height), everywhere),
        (rows, slice(0, columns.start)),
        (rows, slice(columns.stop, width)),
    ):
        ground, line = picture[strip], np.ascontiguousarray(pattern[strip])
        if ground.size:
            for number, brightness in ((0, 0.35 * 255), (1, 0)):
                shade = cv2.convertScaleAbs(ground, alpha=0.65, beta=brightness)
                cv2.copyTo(shade, (line == number).view(np.uint8), ground)


def _line_width(height: int, width: int) -> int:
    return max(1, round(min(height, width) / 256))


def _resized(anomaly_map: Map, width: int, height: int) -> Map:
    return np.asarray(cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _levels(anomaly_map: Map, threshold: float) -> Picture:
    """The map on the fixed scale as uint8, with the threshold at 128."""
    span = abs(threshold) if abs(threshold) > 1e-30 else 1.0
    with np.errstate(over="ignore"):
        scaled = np.subtract(anomaly_map, np.float32(threshold), dtype=np.float32)
        scaled *= np.float32(127 / span)
    scaled += np.float32(128)
    # fmin ignores NaN, so NaN becomes 255; casting it would be undefined.
    np.fmin(scaled, np.float32(255), out=scaled)
    np.maximum(scaled, np.float32(0), out=scaled)
    return scaled.astype(np.uint8)


def _banner(verdict: Verdict, width: int, height: int) -> Picture:
    banner = np.full((height, width, 3), INK, np.uint8)
    colour = RED if verdict.anomalous else GREEN
    tag = height * 2
    banner[:, :tag] = colour
    size = height * 0.6
    baseline = round(height * 0.5 + size * 0.36)
    text = "NG" if verdict.anomalous else "OK"
    _write(banner, text, ((tag - _text_width(text, size)) // 2, baseline), size, WHITE)
    score = f"{verdict.score:.4g}"
    small = height * 0.45
    _write(banner, score, (width - _text_width("0.00000", small) - 6, round(height * 0.5 + small * 0.36)), small, WHITE)
    left, right = tag + 10, width - _text_width("0.00000", small) - 16
    if right - left >= 16:
        _bar(banner, verdict, left, right, colour)
    return banner


def _bar(banner: Picture, verdict: Verdict, left: int, right: int, colour: tuple[int, int, int]) -> None:
    """Draw the score on a scale from t - |t| to t + |t|, with a tick at the threshold t, in the middle."""
    height = banner.shape[0]
    top, bottom = round(height * 0.36), round(height * 0.64)
    cv2.rectangle(banner, (left, top), (right, bottom), GREY, -1)
    level = int(_levels(np.array([[verdict.score]], np.float32), verdict.threshold)[0, 0])
    cv2.rectangle(banner, (left, top), (left + (right - left) * level // 255, bottom), colour, -1)
    middle = (left + right) // 2
    cv2.line(banner, (middle, round(height * 0.2)), (middle, round(height * 0.8)), WHITE, max(1, height // 20))


def _masked(frame: Picture, mask: NDArray[np.bool_]) -> Picture:
    """The frame with the true defect outlined and everything else darkened."""
    picture = bgr_from_frame(frame)
    height, width = picture.shape[:2]
    inside = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    darkened = np.asarray(np.where(inside[..., None] > 0, picture, picture // 3), np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(darkened, contours, -1, WHITE, _line_width(height, width), cv2.LINE_AA)
    return darkened


def _fitted(picture: Picture, cell: int) -> Picture:
    """Fit a picture into a white cell x cell square, preserving its aspect ratio."""
    height, width = picture.shape[:2]
    scale = cell / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    square = np.full((cell, cell, 3), 255, np.uint8)
    top, left = (cell - size[1]) // 2, (cell - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = cv2.resize(picture, size, interpolation=method)
    return square


def _scale_and_thickness(size_px: float) -> tuple[float, int]:
    """Font scale and line thickness in pixels; Hershey fonts are 22 pixels high at scale 1."""
    return size_px / 22, max(1, round(size_px / 16))


def _text_width(text: str, size_px: float) -> int:
    (width, _), _ = cv2.getTextSize(text, FONT, *_scale_and_thickness(size_px))
    return int(width)


def _write(picture: Picture, text: str, origin: tuple[int, int], size_px: float, colour: tuple[int, int, int]) -> int:
    """Draw text, ``size_px`` high, with its baseline at ``origin`` (x, y); return its width in pixels."""
    scale, thickness = _scale_and_thickness(size_px)
    cv2.putText(picture, text, origin, FONT, scale, colour, thickness, cv2.LINE_AA)
    return _text_width(text, size_px)
