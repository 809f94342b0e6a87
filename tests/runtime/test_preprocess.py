"""The OpenCV executor of `InputSpec` against the formula, a plain bilinear resize, and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray

from adedge.data.pictures import conform
from adedge.errors import DataError
from adedge.runtime.preprocess import Preprocessor, value_tables
from adedge.specs import InputSpec, Tiling

BGR = np.ascontiguousarray(skimage.data.astronaut()[30:113, 170:291, ::-1])  # (83, 121, 3)
GREY = np.ascontiguousarray(BGR[:, :, 1])
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def spec(color: str = "rgb", height: int = 40, width: int = 56, **options: object) -> InputSpec:
    return InputSpec(height=height, width=width, channels=1 if color == "gray" else 3, color=color, **options)  # type: ignore[arg-type]


def preprocessed(frame: NDArray[np.uint8], input_spec: InputSpec) -> NDArray[np.float32]:
    out = np.full((1, *input_spec.shape), np.nan, np.float32)
    assert Preprocessor(input_spec, 1)([frame], out) == 1
    return out[0]


def bilinear(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """Half-pixel centres, borders repeated, no antialiasing: (H, W, C) -> (height, width, C), pixel by pixel."""
    rows, columns = frame.shape[:2]
    result = np.empty((height, width, frame.shape[2]))
    for i in range(height):
        y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
        y0 = int(y)
        y1 = min(y0 + 1, rows - 1)
        for j in range(width):
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            x0 = int(x)
            x1 = min(x0 + 1, columns - 1)
            upper = frame[y0, x0] * (1 - (x - x0)) + frame[y0, x1] * (x - x0)
            lower = frame[y1, x0] * (1 - (x - x0)) + frame[y1, x1] * (x - x0)
            result[i, j] = upper * (1 - (y - y0)) + lower * (y - y0)
    return result


CASES = [
    pytest.param(frame, color, options, id=f"{shape}-{color}-{'normalised' if options else 'plain'}")
    for shape, frame in (("colour", BGR), ("H,W", GREY), ("H,W,1", GREY[:, :, None]))
    for color in ("rgb", "bgr", "gray")
    for options in ({}, {"mean": (0.3,), "std": (0.2,)} if color == "gray" else IMAGENET)
]


@pytest.mark.parametrize(("frame", "color", "options"), CASES)
def test_it_equals_conform_and_the_formula(frame: NDArray[np.uint8], color: str, options: dict[str, object]) -> None:
    s = spec(color, **options)
    mean, std = np.array(s.mean or 0.0), np.array(s.std or 1.0)
    expected = ((conform(frame, s) * s.scale - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(preprocessed(frame, s), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 56), (41, 60), (120, 150), (83, 50)], ids=str)
def test_it_resizes_as_plain_bilinear_interpolation(size: tuple[int, int]) -> None:
    ours = preprocessed(BGR, spec("bgr", *size, scale=1.0))
    assert np.abs(ours - bilinear(BGR, *size).transpose(2, 0, 1)).max() < 1  # grey levels: 8-bit rounding


@pytest.mark.parametrize("size", [(40, 56), (120, 150)], ids=str)
def test_it_resizes_as_pytorch_does(size: tuple[int, int]) -> None:
    planes = torch.from_numpy(BGR.transpose(2, 0, 1).copy())[None].float()
    expected = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", align_corners=False)[0]
    assert np.abs(preprocessed(BGR, spec("bgr", *size, scale=1.0)) - expected.numpy()).max() < 1


def test_a_frame_of_the_right_size_is_not_changed() -> None:
    ours = preprocessed(BGR, spec("rgb", *BGR.shape[:2], scale=1.0))
    np.testing.assert_array_equal(ours, BGR[:, :, ::-1].transpose(2, 0, 1))


def test_views_are_read_as_what_they_show() -> None:
    view = BGR[3:70:2, 5:90:3]
    np.testing.assert_array_equal(preprocessed(view, spec()), preprocessed(np.ascontiguousarray(view), spec()))
    grey = BGR[3:70, 5:90, 1:2]
    np.testing.assert_array_equal(preprocessed(grey, spec()), preprocessed(np.ascontiguousarray(grey), spec()))


def test_a_batch_may_mix_sizes_and_colours_and_leaves_the_rest_alone() -> None:
    frames = [BGR, GREY, BGR[:50, :30], GREY[:20, :20, None]]
    out = np.full((6, 3, 40, 56), -7, np.float32)
    assert Preprocessor(spec(), 6)(frames, out) == 4
    for frame, ours in zip(frames, out, strict=False):
        np.testing.assert_array_equal(ours, preprocessed(frame, spec()))
    assert (out[4:] == -7).all()
    assert Preprocessor(spec(), 6)([], out) == 0


def test_frames_are_not_changed() -> None:
    frame = BGR.copy()
    for color in ("rgb", "bgr", "gray"):
        preprocessed(frame, spec(color, *BGR.shape[:2]))
    np.testing.assert_array_equal(frame, BGR)


def test_tables_hold_the_formula_in_full_precision() -> None:
    tables = value_tables(spec(**IMAGENET))
    assert tables.shape == (3, 256)
    assert tables[1, 200] == np.float32((200 / 255 - 0.456) / 0.224)


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        ([BGR] * 3, "3 frames do not fit into a batch of 2"),
        ([np.zeros((8, 8, 4), np.uint8)], r"a frame of shape \(8, 8, 4\)"),
        ([BGR.astype(np.float32)], "dtype float32 cannot be used"),
    ],
    ids=["too-many", "alpha", "float"],
)
def test_frames_that_do_not_fit_are_refused(frames: list[NDArray[np.uint8]], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Preprocessor(spec(), 2)(frames, np.empty((2, 3, 40, 56), np.float32))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((1, 3, 40, 56), np.float32),
        np.empty((2, 3, 40, 56)),
        np.empty((2, 3, 56, 40), np.float32).swapaxes(2, 3),
    ],
    ids=["batch", "dtype", "not-contiguous"],
)
def test_buffers_that_would_not_be_filled_are_refused(out: NDArray[np.float32]) -> None:
    with pytest.raises(DataError, match="the input buffer has shape"):
        Preprocessor(spec(), 2)([BGR], out)


def test_tiles_are_never_resized() -> None:
    tiled = spec(height=32, width=32, resize="tile", tiling=Tiling(tile=32, stride=16))
    np.testing.assert_array_equal(
        preprocessed(BGR[10:42, 7:39], tiled), preprocessed(BGR[10:42, 7:39], spec(height=32, width=32))
    )
    with pytest.raises(DataError, match="a tile has 121 × 83 pixels, not 32 × 32"):
        preprocessed(BGR, tiled)
