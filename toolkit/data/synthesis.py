"""Synthetic defects with exact masks, and the demo's pictures: scikit-image's photographs of brick, grass and gravel.

A photograph is divided into regions that do not overlap: the left half for training; in the right half, one strip for
testing and the strips above and below it for calibration. The strip at the top is not used: a wall seen at a slant
changes from top to bottom, and calibration pictures must resemble the inspected ones. With the far end of the wall
among them, the threshold would be so high that many defects would pass. Half the pictures of every region are mirrored:
the mirrored left half of a wall that leans to the right looks like its right half.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError, MissingDependency, UsageError

Texture = Literal["brick", "grass", "gravel"]
DefectKind = Literal["scratch", "stain", "missing", "foreign"]
Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

TEXTURES: tuple[Texture, ...] = get_args(Texture)
DEFECT_KINDS: tuple[DefectKind, ...] = get_args(DefectKind)
SIZE = 112  # side of a picture in pixels: a multiple of 16, smaller than a strip so that crops can vary
STRIP = 128  # height of a strip of the right half, in pixels


@dataclass(frozen=True)
class DemoSettings:
    """Options of the training in `adedge demo`: chosen on seed 0, measured on others by `studies.demo_accuracy`."""

    texture: Texture
    train_options: tuple[str, ...]
    false_alarm_rate: float


DEMO = DemoSettings(
    texture="brick",
    train_options=(
        *("--budget", "quick", "--size", str(SIZE), "--color", "gray", "--smoothing", "9", "--margin", "6"),
        *("--ae-iterations", "2000", "--sdn-iterations", "150"),
    ),
    false_alarm_rate=0.05,
)


# --- photographs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Regions:
    """The disjoint parts of one photograph, each a tuple of pictures (H, W) uint8."""

    train: tuple[Picture, ...]
    calibration: tuple[Picture, ...]
    test: tuple[Picture, ...]


def photograph(texture: str) -> Picture:
    """A photograph (512, 512) uint8, grey. Raises `UsageError` for an unknown texture, `MissingDependency`."""
    if texture not in TEXTURES:
        raise UsageError(f"unknown texture '{texture}': choose from {', '.join(TEXTURES)}")
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise MissingDependency("scikit-image", "demo", "the photographs of the demo") from error
    return cast(Picture, getattr(data, texture)())


def regions(picture: Picture) -> Regions:
    """Divide a photograph (512, 512): its left half, and three of the four strips of the right half."""
    middle = picture.shape[1] // 2
    _, above, strip, below = (picture[top : top + STRIP, middle:] for top in range(0, 4 * STRIP, STRIP))
    return Regions(train=(picture[:, :middle],), calibration=(above, below), test=(strip,))


def crops(parts: tuple[Picture, ...], count: int, rng: np.random.Generator, size: int = SIZE) -> list[Picture]:
    """``count`` random crops (size, size) of the parts, every other one mirrored."""
    pictures = []
    for index in range(count):
        part = parts[rng.integers(len(parts))]
        top, left = (int(rng.integers(extent - size + 1)) for extent in part.shape)
        crop = part[top : top + size, left : left + size]
        pictures.append(np.ascontiguousarray(crop[:, ::-1] if index % 2 else crop))
    return pictures


# --- defects -------------------------------------------------------------------------------------------------------


def add_defect(
    picture: Picture, kind: DefectKind, rng: np.random.Generator, texture: str | None = None
) -> tuple[Picture, Mask]:
    """A copy of ``picture`` (H, W) uint8 with one defect of a kind, and the bool mask (H, W) of the changed pixels.

    scratch   a thin bent line, brighter or darker than what it crosses
    stain     an irregular spot that darkens what is below it
    missing   a chipped-off piece: a dark hollow, lit from one side
    foreign   a piece of a photograph other than ``texture``, matched in brightness and contrast

    Defects stay within the picture's range of grey levels, so that a threshold on brightness cannot find them. Spots
    are 14 to 26% of the picture's side across. A defect of fewer than 8 pixels is drawn again. Raises `DataError` for
    pictures with a side below 32 pixels, where such defects would be too small to see.
    """
    if picture.ndim != 2 or min(picture.shape) < 32:
        raise DataError(f"defects require a grey picture (H, W) of at least 32 x 32 pixels, not {picture.shape}")
    base = picture.astype(np.float32)
    while True:
        if kind == "scratch":
            changed = _scratch(base, rng)
        elif kind == "stain":
            changed = _stain(base, rng)
        elif kind == "missing":
            changed = _hollow(base, rng)
        else:
            changed = _foreign(base, rng, texture)
        result = np.clip(np.rint(changed), base.min(), base.max()).astype(np.uint8)
        mask = result != picture
        if mask.sum() >= 8:
            return result, mask


Float = NDArray[np.float32]


def _scratch(base: Float, rng: np.random.Generator) -> Float:
    side = min(base.shape)
    point = rng.uniform(0.15, 0.85, 2) * base.shape[::-1]
    angle = rng.uniform(0, 2 * np.pi)
    points = [point]
    for _ in range(rng.integers(5, 10)):
        angle += rng.normal(0, 0.2)
        point = point + 0.04 * side * np.array([np.cos(angle), np.sin(angle)])
        points.append(point)
    line = np.zeros(base.shape, np.float32)
    fixed_point = np.rint(np.array(points) * 16).astype(np.int32)  # 4 fractional bits
    cv2.polylines(line, [fixed_point], False, 1.0, int(rng.integers(1, 3)), cv2.LINE_8, 4)
    line = _blur(line, 0.7)
    return _float(base + line * rng.choice((-1, 1)) * rng.uniform(50, 90))


def _stain(base: Float, rng: np.random.Generator) -> Float:
    spot = _spot(base.shape, rng, edge=3.0)
    return _float(base * (1 - spot * rng.uniform(0.3, 0.55)) + 6 * spot * _noise(base.shape, 2.0, rng))


def _hollow(base: Float, rng: np.random.Generator) -> Float:
    spot = _spot(base.shape, rng, edge=1.5)
    depth = _blur(spot, 3.0)
    light = rng.uniform(0, 2 * np.pi)
    slope = cv2.Sobel(depth, cv2.CV_32F, 1, 0) * np.cos(light) + cv2.Sobel(depth, cv2.CV_32F, 0, 1) * np.sin(light)
    bottom = np.percentile(base, rng.uniform(3, 20))
    inside = bottom + 8 * _noise(base.shape, 1.2, rng) + 90 * slope
    return _float(base * (1 - spot) + spot * inside)


def _foreign(base: Float, rng: np.random.Generator, texture: str | None) -> Float:
    spot = _spot(base.shape, rng, edge=1.5)
    others = [other for other in TEXTURES if other != texture]
    other = photograph(others[rng.integers(len(others))])
    top, left = (int(rng.integers(max(1, a - b + 1))) for a, b in zip(other.shape, base.shape, strict=True))
    piece = other[top : top + base.shape[0], left : left + base.shape[1]].astype(np.float32)
    piece = cast(Float, cv2.resize(piece, base.shape[::-1]))
    contrast = float(base.std()) / max(float(piece.std()), 1e-3)
    matched = (piece - piece.mean()) * contrast + base.mean()
    return _float(base * (1 - spot) + spot * matched)


def _spot(shape: tuple[int, ...], rng: np.random.Generator, edge: float) -> Float:
    """An irregular ellipse: 1 inside, 0 outside, falling off over ``edge`` pixels."""
    side = min(shape)
    radius = rng.uniform(0.07, 0.13) * side
    center_y, center_x = (rng.uniform(radius, extent - radius) for extent in shape)
    turn, aspect = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    along = (x - center_x) * np.cos(turn) + (y - center_y) * np.sin(turn)
    across = (y - center_y) * np.cos(turn) - (x - center_x) * np.sin(turn)
    inside = 1 - np.hypot(along, across / aspect) / radius + 0.2 * _noise(shape, 4.0, rng)
    return _float(np.clip(inside * radius / edge + 0.5, 0, 1))


def _noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Float:
    """Gaussian noise smoothed over ``sigma`` pixels, with standard deviation 1."""
    noise = _blur(rng.standard_normal(shape, np.float32), sigma)
    return _float(noise / noise.std())


def _blur(values: Float, sigma: float) -> Float:
    return cast(Float, cv2.GaussianBlur(values, (0, 0), sigma))


def _float(values: NDArray[np.floating]) -> Float:
    return values.astype(np.float32)


# --- the demo's data -----------------------------------------------------------------------------------------------


def write_demo_dataset(
    folder: Path, *, texture: str, seed: int, train: int = 600, calibration: int = 200, test: int = 120
) -> None:
    """Write a folder laid out as MVTec AD, with ``test`` good and ``test`` defective pictures.

    Does nothing if the folder is complete already; an unfinished one is written again. Pictures of a region overlap, so
    they are not independent: the bound on false alarms that calibration states holds for pictures drawn in the same
    way, not for other photographs.
    """
    if (folder / "test").is_dir():
        return
    rng = np.random.default_rng(seed)
    parts = regions(photograph(texture))
    staging = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(staging, ignore_errors=True)
    for name, source, count in (
        ("train", parts.train, train),
        ("calibration", parts.calibration, calibration),
        ("test", parts.test, test),
    ):
        _write(staging / name / "good", crops(source, count, rng))
    for kind in DEFECT_KINDS:
        defective = [add_defect(crop, kind, rng, texture) for crop in crops(parts.test, test // len(DEFECT_KINDS), rng)]
        _write(staging / "test" / kind, [picture for picture, _ in defective])
        _write(staging / "ground_truth" / kind, [mask.astype(np.uint8) * 255 for _, mask in defective], suffix="_mask")
    staging.rename(folder)


def _write(folder: Path, pictures: list[Picture], suffix: str = "") -> None:
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        path = folder / f"{index:03d}{suffix}.png"
        if not cv2.imwrite(str(path), picture):
            raise DataError(f"{path} cannot be written: is the disk full?")


def moving_frames(
    texture: str, *, seed: int = 0, frames: int = 240, size: int = SIZE, speed: int = 2
) -> Iterator[tuple[Picture, Mask]]:
    """Frames (size, size) uint8 of a belt that moves ``speed`` pixels per frame, with the masks of its defects.

    The belt repeats the test region's strip in pairs: once with a defect, once without. Every other pair is mirrored.
    """
    rng = np.random.default_rng(seed)
    (strip,) = regions(photograph(texture)).test
    count, turn = 0, 0
    while count < frames:
        belt = np.ascontiguousarray(strip[:, ::-1] if turn // 2 % 2 else strip)
        mask = np.zeros(belt.shape, bool)
        if turn % 2 == 0:
            belt, mask = add_defect(belt, DEFECT_KINDS[turn // 2 % len(DEFECT_KINDS)], rng, texture)
        top = int(rng.integers(belt.shape[0] - size + 1))
        for left in range(0, belt.shape[1] - size + 1, speed):
            if count == frames:
                return
            window = np.s_[top : top + size, left : left + size]
            yield np.ascontiguousarray(belt[window]), np.ascontiguousarray(mask[window])
            count += 1
        turn += 1
