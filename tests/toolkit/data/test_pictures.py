"""Pictures as they come from cameras and customers: every depth, transparency, and files that are cut off."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import skimage.transform
from numpy.typing import NDArray
from PIL import Image

from adedge.data.pictures import conform, decode_picture, read_picture
from adedge.errors import DataError
from adedge.specs import InputSpec, Tiling

RGB = skimage.data.astronaut()[40:104, 180:260]  # (64, 80, 3), a face: no symmetry, all channels differ


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def written(path: Path, picture: Image.Image | NDArray[np.generic]) -> Path:
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(path)
    return path


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_colour_is_read_without_loss_in_bgr_order(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    frame = decode_picture(encoded(Image.fromarray(RGB), kind, **options), "x")
    np.testing.assert_array_equal(frame, RGB[:, :, ::-1])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_stays_grey(kind: str) -> None:
    frame = decode_picture(encoded(Image.fromarray(RGB[:, :, 0]), kind), "x")
    np.testing.assert_array_equal(frame, RGB[:, :, :1])


def test_one_bit_pictures_become_black_and_white() -> None:
    bits = RGB[:, :, 0] > 127
    np.testing.assert_array_equal(decode_picture(encoded(Image.fromarray(bits), "PNG"), "x")[:, :, 0], bits * 255)


def test_palettes_are_resolved() -> None:
    palette = Image.fromarray(RGB).quantize(16)
    frame = decode_picture(encoded(palette, "PNG"), "x")
    np.testing.assert_array_equal(frame, np.asarray(palette.convert("RGB"))[:, :, ::-1])


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_jpegs_of_both_colour_spaces_are_near_the_original(mode: str) -> None:
    frame = decode_picture(encoded(Image.fromarray(RGB).convert(mode), "JPEG", quality=98, subsampling=0), "x")
    assert np.abs(frame[:, :, ::-1].astype(int) - RGB).mean() < 1.5


def test_sixteen_bits_are_scaled_by_257() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    frame = decode_picture(encoded(Image.fromarray(every), "PNG"), "x")
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame[:, :, 0], np.rint(np.arange(65536) / 257).reshape(256, 256))


def test_transparent_pixels_are_composited_over_black() -> None:
    alpha = np.linspace(0, 255, 64 * 80).astype(np.uint8).reshape(64, 80)
    frame = decode_picture(encoded(Image.fromarray(np.dstack([RGB, alpha])), "PNG"), "x")
    black = Image.new("RGBA", (80, 64), (0, 0, 0, 255))
    composited = np.asarray(Image.alpha_composite(black, Image.fromarray(np.dstack([RGB, alpha]))))[:, :, 2::-1]
    assert np.abs(frame.astype(int) - composited).max() <= 1
    assert not frame[0, 0].any()


# What each EXIF orientation asks a viewer to do with the stored pixels, in NumPy's words.
UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, -1),  # clockwise
    7: lambda stored: np.rot90(np.swapaxes(stored, 0, 1), 2),
    8: lambda stored: np.rot90(stored, 1),
}


def oriented(kind: str, orientation: int, pixels: NDArray[np.generic] = RGB) -> bytes:
    picture = Image.fromarray(pixels)
    if kind == "TIFF":
        return encoded(picture, kind, tiffinfo={0x0112: orientation})
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    stored = decode_picture(oriented(kind, 1), "x")
    assert stored.shape == RGB.shape
    np.testing.assert_array_equal(decode_picture(oriented(kind, orientation), "x"), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_orientation_of_grey_and_16_bit_tiffs_of_both_byte_orders(byte_order: str, orientation: int) -> None:
    values = np.arange(6 * 9, dtype=np.uint16).reshape(6, 9) * 1000
    # PIL writes little-endian: this is a baseline TIFF of one strip, by hand.
    tags = [
        (256, 3, 9), (257, 3, 6), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (274, 3, orientation),
        (277, 3, 1), (278, 3, 6), (279, 4, values.nbytes),
    ]  # fmt: skip
    pixels = values.astype(f"{byte_order}u2").tobytes()
    data = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(f"{byte_order}I", 8 + len(pixels)) + pixels
    data += struct.pack(f"{byte_order}H", len(tags))
    for tag, kind, value in tags:
        data += struct.pack(f"{byte_order}HHI", tag, kind, 1)
        data += struct.pack(
            f"{byte_order}HH" if kind == 3 else f"{byte_order}I", *((value, 0) if kind == 3 else (value,))
        )
    frame = decode_picture(data + bytes(4), "x")
    expected = UPRIGHT[orientation](np.rint(values / 257).astype(np.uint8))
    np.testing.assert_array_equal(frame[:, :, 0], expected)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    np.testing.assert_array_equal(decode_picture(oriented("PNG", orientation), "x"), RGB[:, :, ::-1])


def test_what_a_phone_appends_to_a_jpeg_is_ignored() -> None:
    """A motion photo is a JPEG and an MP4 after it, which may contain any bytes, those of JPEG markers among them."""
    data = encoded(Image.fromarray(RGB), "JPEG")
    video = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 8 + b"\xff\xda\xff\xc0\0\x11\x08\xff\xff\xff\xff"
    np.testing.assert_array_equal(decode_picture(data + video, "x"), decode_picture(data, "x"))


def test_the_first_picture_of_an_mpo_is_read() -> None:
    data = encoded(
        Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(RGB[:32, :40])], quality=90
    )
    assert data.count(b"\xff\xd8\xff") == 2
    expected = decode_picture(encoded(Image.fromarray(RGB), "JPEG", quality=90), "x")
    np.testing.assert_array_equal(decode_picture(data, "x"), expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0" + encoded(Image.fromarray(RGB[:16, :16]), "JPEG")}),
        ("PNG", {}),
    ],
    ids=["jpeg", "progressive", "jpeg-with-thumbnail", "png"],
)
def test_truncated_files_are_refused_wherever_they_end(kind: str, options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(RGB), kind, **options)
    decode_picture(data, "whole")
    end_marker_bytes = {"JPEG": 1, "PNG": 8}[kind]
    for length in [*range(1, len(data) - end_marker_bytes, 97), len(data) - end_marker_bytes]:
        with pytest.raises(DataError, match="cut.x"):
            decode_picture(data[:length], "cut.x")


def test_truncation_is_named_as_such() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG")
    with pytest.raises(DataError, match="cut.jpg is truncated"):
        decode_picture(data[: len(data) // 2], "cut.jpg")


def test_trailing_bytes_are_no_truncation() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG")
    np.testing.assert_array_equal(decode_picture(data + b"\0" * 100, "x"), decode_picture(data, "x"))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", r"x is empty \(0 bytes\)"),
        (b"no picture at all", "x cannot be decoded"),
        (encoded(Image.fromarray(RGB), "GIF"), "x is a GIF"),
        (encoded(Image.fromarray(RGB[:, :, 0].astype(np.float32)), "TIFF"), "x holds float32 values"),
    ],
    ids=["empty", "text", "gif", "float"],
)
def test_what_is_no_picture_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        decode_picture(data, "x")


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent.png cannot be read: No such file"):
        read_picture(tmp_path / "absent.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match="folder.png cannot be read: Is a directory"):
        read_picture(tmp_path / "folder.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "locked.png", RGB)
    path.chmod(0)
    with pytest.raises(DataError, match="locked.png cannot be read: Permission denied"):
        read_picture(path)


def spec(color: str, height: int = 64, width: int = 80) -> InputSpec:
    return InputSpec(height=height, width=width, channels=1 if color == "gray" else 3, color=color)  # type: ignore[arg-type]


def test_conform_orders_colours() -> None:
    bgr = np.ascontiguousarray(RGB[:, :, ::-1])
    np.testing.assert_array_equal(conform(bgr, spec("rgb")), RGB)
    np.testing.assert_array_equal(conform(bgr, spec("bgr")), bgr)


def test_conform_makes_luma_of_colour() -> None:
    luma = RGB @ np.array([0.299, 0.587, 0.114])  # Rec. 601
    grey = conform(np.ascontiguousarray(RGB[:, :, ::-1]), spec("gray"))
    assert grey.shape == (64, 80, 1)
    assert np.abs(grey[:, :, 0] - luma).max() <= 0.51  # rounded to whole grey levels, from 14-bit coefficients


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("grey", [RGB[:, :, 0], RGB[:, :, :1]], ids=["H,W", "H,W,1"])
def test_conform_repeats_grey(color: str, grey: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(conform(grey, spec(color)), np.repeat(RGB[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("size", [(32, 40), (31, 57), (100, 131), (64, 79)], ids=str)
def test_conform_resizes_as_half_pixel_bilinear_interpolation(size: tuple[int, int]) -> None:
    expected = skimage.transform.resize(
        RGB.astype(float), size, order=1, mode="edge", anti_aliasing=False, preserve_range=True
    )
    conformed = conform(np.ascontiguousarray(RGB[:, :, ::-1]), spec("rgb", *size))
    assert np.abs(conformed - expected).max() < 1  # OpenCV interpolates with 11-bit weights and rounds


def test_conform_keeps_the_size_of_frames_to_be_tiled() -> None:
    tiled = InputSpec(height=32, width=32, channels=3, color="rgb", resize="tile", tiling=Tiling(tile=32, stride=16))
    assert conform(RGB, tiled).shape == RGB.shape


@pytest.mark.parametrize(
    "frame",
    [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4)), np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8)],
    ids=["four-channels", "float", "one-dimension", "empty"],
)
def test_conform_refuses_other_arrays(frame: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match=r"a frame of shape \("):
        conform(frame, spec("rgb"))
