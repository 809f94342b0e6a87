"""Drawing anomaly maps: heat maps over frames, verdict banners, picture sheets.

All pictures with the same threshold t share one colour scale, from t - |t| to t + |t| (0 to 2t for a positive
threshold), with the threshold in its middle (green). Maps are not stretched to a frame's own minimum and maximum, which
would paint the most ordinary spot of a good part red.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError
from adedge.runtime.verdict import Verdict

Picture = NDArray[np.uint8]
Map = NDArray[np.float32]

FONT = cv2.FONT_HERSHEY_DUPLEX
GREEN = (80, 175, 60)
RED = (60, 50, 225)
WHITE = (255, 255, 255)
INK = (32, 28, 26)
GREY = (110, 104, 100)

HEAT_OPACITY = 0.6
# Turbo without its two nearly black ends, so that the hottest spot is not the darkest.
_COLOURS = cv2.applyColorMap(np.linspace(20, 235, 256).astype(np.uint8)[:, None], cv2.COLORMAP_TURBO)
# Opacity of each level: 0 up to level 64 (a quarter of the scale), rising to full at the threshold (level 128).
_OPACITY = (np.clip((np.arange(256) - 64) / 64, 0, 1) * HEAT_OPACITY).astype(np.float32)
SMALLEST_SIDE, LONGEST_SIDE = 256, 4096
"""Frames of at most half the first size are enlarged by a whole factor before they are drawn on, up to the second."""


def heat(anomaly_map: Map, threshold: float) -> Picture:
    """Colour a map, uint8 (H, W, 3) BGR: blue below the threshold, green at it, yellow to red above."""
    return np.asarray(cv2.applyColorMap(_levels(anomaly_map, threshold), _COLOURS), np.uint8)


def overlay(frame: Picture, anomaly_map: Map, threshold: float, *, outline: bool = True) -> Picture:
    """Blend a map over its frame: uint8 (H, W, 3) BGR of the frame's size.

    ``frame`` is uint8 (H, W), (H, W, 1) or (H, W, 3) BGR; the map is float32 of any size and is resized to the frame.
    The heat starts to show halfway between the scale's lower end and the threshold, and has full opacity from the
    threshold on, so that ordinary regions look unchanged. ``outline`` draws a white line around the pixels
    that exceed the threshold; if the score is the map's maximum, they decide the verdict.
    """
    picture = bgr_from_frame(frame)
    height, width = picture.shape[:2]
    resized = _resized(anomaly_map, width, height)
    levels = _levels(resized, threshold)
    colours = cv2.applyColorMap(levels, _COLOURS)
    weights = cv2.LUT(levels, 1 - _OPACITY), cv2.LUT(levels, _OPACITY)
    blended = np.asarray(cv2.blendLinear(picture, colours, *weights), np.uint8)
    if outline:
        contours, _ = cv2.findContours(
            (resized > threshold).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        thickness = max(1, round(min(height, width) / 256))
        cv2.drawContours(blended, contours, -1, WHITE, thickness, cv2.LINE_AA)
    return blended


def annotate(frame: Picture, verdict: Verdict, *, outline: bool = True, beside: bool = False) -> Picture:
    """Draw the overlay above a banner with OK or NG, a bar that marks the threshold, and the score: uint8 BGR.

    ``beside`` puts the original frame to the left of the overlay. Frames of at most half `SMALLEST_SIDE` are enlarged
    by a whole factor.
    """
    picture = enlarged(bgr_from_frame(frame))
    marked = picture if verdict.map is None else overlay(picture, verdict.map, verdict.threshold, outline=outline)
    gap = np.full((picture.shape[0], 4, 3), INK, np.uint8)
    body = np.hstack([picture, gap, marked]) if beside else marked
    return np.vstack([body, _banner(verdict, body.shape[1], max(28, body.shape[0] // 12))])


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
    score      raw image score, compared with ``threshold``
    title      for example the kind of defect
    mask       bool (H, W), the true defect; None if unknown
    """

    frame: Picture
    map: Map
    score: float
    threshold: float
    title: str
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
            heat(_resized(row.map, *row.frame.shape[1::-1]), row.threshold),
            overlay(row.frame, row.map, row.threshold, outline=outline),
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


def _resized(anomaly_map: Map, width: int, height: int) -> Map:
    return np.asarray(cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _levels(anomaly_map: Map, threshold: float) -> Picture:
    """The map on the fixed scale as uint8, with the threshold at 128."""
    span = abs(threshold) or 1.0
    scaled = anomaly_map.astype(np.float32) - np.float32(threshold)
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
    """Draw the score on the fixed scale of `heat`, with a tick at the threshold, in the middle."""
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
    cv2.drawContours(darkened, contours, -1, WHITE, max(1, round(min(height, width) / 256)), cv2.LINE_AA)
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
