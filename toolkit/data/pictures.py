"""Reading pictures from disk, and converting them to the size and colours that a network expects.

Training and the runtime read pictures with the same function, so that both get the same pixels:

- 8-bit grey, colour, palette and CMYK files are supported; palette and CMYK become BGR.
- 16-bit values are divided by 257, which maps 65535 to 255. This assumes the full 16-bit range: files with 12-bit
  values in the low bits become almost black; stretch them first.
- Transparent pixels are composited over black, so that colours that no viewer shows have no effect.
- EXIF orientation is ignored, because frames of a live camera have no such tag either.
- Only the first page of a multi-page file is read. GIFs are videos: `adedge run` plays them, training refuses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError
from adedge.specs import InputSpec

PICTURE_SUFFIXES: frozenset[str] = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read one picture file: uint8, (H, W, 3) in BGR order, or (H, W, 1) if the file is grey.

    Raises `DataError` naming the file if it is missing, empty, truncated, not a picture, a GIF, or has values other
    than 8- or 16-bit integers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return decode_picture(data, str(path))


def decode_picture(data: bytes, name: str) -> NDArray[np.uint8]:
    """As `read_picture`, from the bytes of a file; errors refer to it by ``name``."""
    if not data:
        raise DataError(f"{name} is empty (0 bytes): copy it again, or remove it")
    if data.startswith((b"GIF87a", b"GIF89a")):
        raise DataError(f"{name} is a GIF, which is supported as a video only: convert it to PNG, or remove it")
    if _is_truncated(data):
        raise DataError(f"{name} is truncated (its end is missing): copy it again, or remove it")
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"{name} cannot be decoded: {error.err or error}") from error
    if decoded is None:
        raise DataError(f"{name} cannot be decoded: it is damaged or not a picture; copy it again, or remove it")
    return _frame_from_stored(decoded, name)


def list_pictures(folder: Path) -> list[Path]:
    """All picture files of a folder and its sub-folders, sorted; hidden files and folders are skipped.

    Raises `DataError` if the folder is missing, not a folder, or holds no picture.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}: give a folder of pictures")
    files = [path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder))]
    pictures = sorted(path for path in files if path.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        what = f"none of its {len(files)} file(s) is a picture" if files else "it is empty"
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        raise DataError(f"{folder} holds no pictures ({what}): supported suffixes are {suffixes}")
    return pictures


def conform(frame: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """A frame as the network's input in uint8: (H, W), (H, W, 1) or (H, W, 3) BGR -> (height, width, channels).

    Resized bilinearly (half-pixel centres, no antialiasing, rounded to whole grey levels), then converted to
    ``spec.color``; with ``resize="tile"`` the frame keeps its size. Grey is repeated into three channels; colour
    becomes grey by Rec. 601 luma. The result may share memory with ``frame``.

    Raises `DataError` if the frame has another shape or dtype.
    """
    check_frame(frame)
    pixels: NDArray[Any] = frame
    if spec.resize == "stretch" and frame.shape[:2] != (spec.height, spec.width):
        pixels = cv2.resize(pixels, (spec.width, spec.height), interpolation=cv2.INTER_LINEAR)
    if frame.ndim == 2 or frame.shape[2] == 1:
        if spec.color != "gray":
            pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    elif spec.color != "bgr":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if spec.color == "rgb" else cv2.COLOR_BGR2GRAY)
    return pixels.reshape(*pixels.shape[:2], spec.channels)


def network_input(frames: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.float32]:
    """Conformed frames (N, H, W, C) uint8 -> (N, C, H, W) float32, (pixel * scale - mean) / std."""
    x = frames.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(spec.scale)
    if spec.mean:
        x -= np.array(spec.mean, np.float32).reshape(-1, 1, 1)
    if spec.std:
        x /= np.array(spec.std, np.float32).reshape(-1, 1, 1)
    return np.ascontiguousarray(x)


def check_frame(frame: NDArray[np.uint8]) -> None:
    """Raise `DataError` unless a frame is uint8, not empty, and (H, W), (H, W, 1) or (H, W, 3)."""
    valid_shape = frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] in (1, 3))
    if frame.dtype != np.uint8 or not valid_shape or frame.size == 0:
        raise DataError(
            f"a frame of shape {frame.shape} and dtype {frame.dtype} cannot be used: "
            "give uint8 of shape (H, W), (H, W, 1) or (H, W, 3) in BGR order"
        )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_truncated(data: bytes) -> bool:
    """Whether the end marker of a JPEG or PNG is missing: decoders silently fill the missing part with grey.

    A JPEG's EXIF header may hold a complete thumbnail JPEG, so an end marker counts only after the last start of scan;
    inside a scan neither marker can occur, because every 0xFF of the coded data is followed by 0x00 or a restart.
    """
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data
    return False


def _frame_from_stored(stored: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Convert what OpenCV decoded, 1 to 4 channels of 8 or 16 bits, to (H, W, 1) or (H, W, 3) uint8."""
    if stored.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{name} holds {stored.dtype} values: store it with 8 or 16 bits per channel")
    pixels = stored[:, :, None] if stored.ndim == 2 else stored
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / np.float32(257)).astype(np.uint8)
    if pixels.shape[2] in (2, 4):
        opacity = pixels[:, :, -1:] / np.float32(255)
        pixels = np.rint(pixels[:, :, :-1] * opacity).astype(np.uint8)
    frame: NDArray[np.uint8] = pixels
    return frame
