"""Pictures as they come from cameras and customers: every depth, transparency, and files that are cut off."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import skimage.transform
from numpy.typing import NDArray
from PIL import Image

from adedge.data.pictures import PICTURE_SUFFIXES, conform, decode_picture, list_pictures, read_picture
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


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    turned = decode_picture(encoded(Image.fromarray(RGB), "JPEG", exif=exif), "x")
    np.testing.assert_array_equal(turned, decode_picture(encoded(Image.fromarray(RGB), "JPEG"), "x"))


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


def test_listing_is_sorted_recursive_and_leaves_out_what_is_hidden(tmp_path: Path) -> None:
    names = ["b.PNG", "a/z.png", "a/a.jpg", "._b.PNG", ".cache/c.png", "notes.txt", "folder.png/in.bmp"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in list_pictures(tmp_path)]
    assert found == ["a/a.jpg", "a/z.png", "b.PNG", "folder.png/in.bmp"]
    assert ".gif" not in PICTURE_SUFFIXES


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent does not exist"):
        list_pictures(tmp_path / "absent")
    with pytest.raises(DataError, match="it is empty"):
        list_pictures(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"none of its 1 file\(s\) is a picture"):
        list_pictures(tmp_path)
    with pytest.raises(DataError, match="notes.txt is not a folder"):
        list_pictures(tmp_path / "notes.txt")


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
