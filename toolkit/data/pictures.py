"""Reading pictures from disk, and converting them to the size and colours that a network expects.

Training and the runtime read pictures with the same function, so that both get the same pixels:

- 8-bit grey, colour, palette and CMYK files are supported; palette and CMYK become BGR.
- 16-bit values are divided by 257, which maps 65535 to 255. This assumes the full 16-bit range: files with 12-bit
  values in the low bits become almost black; stretch them first.
- Transparent pixels are composited over black, so that colours that no viewer shows have no effect.
- EXIF orientation is applied, in every format that has it: a picture is upright, as viewers show it.
- Only the first page of a multi-page file is read. GIFs are videos: `adedge run` plays them, training refuses them.
- The contents decide the format, whatever the suffix. A size above the limit is refused before decoding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.data.headers import Header, read_header, without_orientation
from adedge.errors import DataError
from adedge.limits import PICTURE_BYTES, PICTURE_PIXELS, check, read_file
from adedge.specs import InputSpec

# (transpose, then flip rows, flip columns) for each EXIF orientation, to make a picture upright.
_UPRIGHT = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read one picture file: uint8, (H, W, 3) in BGR order, or (H, W, 1) if the file is grey.

    Raises `DataError` naming the file if it is missing, empty, truncated, too large, not a picture, a GIF, or has
    values other than 8- or 16-bit integers.
    """
    return decode_picture(read_contents(path), str(path))


def read_contents(path: Path) -> bytes:
    """The bytes of a picture file. Raises `DataError` if it is missing, too large, or not a regular file."""
    try:
        return read_file(path, PICTURE_BYTES, DataError)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise DataError(f"{path} cannot be read: {reason or error}") from error


def decode_picture(data: bytes, name: str) -> NDArray[np.uint8]:
    """As `read_picture`, from the bytes of a file; errors refer to it by ``name``."""
    pixels, _ = _decode(data, name)
    return _frame_from_stored(pixels, name)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask: bool (H, W), True for defective pixels, which are those that are neither black nor transparent.

    Every other value counts, in any bit depth, also in floating point; a palette's colours count, not its indices.
    A lossy file (JPEG, JPEG 2000, lossy WebP) is blurred at edges, so its pixels count above half of its maximum.

    Raises `DataError` as `read_picture`, but for the type of values; and for values that are not finite.
    """
    pixels, header = _decode(read_contents(path), str(path))
    if not np.isfinite(pixels).all():
        raise DataError(f"{path} has values that are not finite: write the mask with 0 for good pixels")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    opaque = pixels[:, :, -1] != 0 if pixels.shape[2] in (2, 4) else True
    values = pixels[:, :, :-1] if pixels.shape[2] in (2, 4) else pixels
    peak = values.max(axis=2)
    marked: NDArray[np.bool_] = (peak > values.max() / 2 if header.lossy else np.any(values != 0, axis=2)) & opaque
    return marked


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


def _decode(data: bytes, name: str) -> tuple[NDArray[Any], Header]:
    """Decode a file: upright, otherwise as stored, (H, W) or (H, W, C) in BGR order. Raises `DataError`."""
    if not data:
        raise DataError(f"{name} is empty (0 bytes): copy it again, or remove it")
    if data.startswith((b"GIF87a", b"GIF89a")):
        raise DataError(f"{name} is a GIF, which is supported as a video only: convert it to PNG, or remove it")
    header = read_header(data)
    if header is None:
        raise DataError(
            f"{name} cannot be decoded: it is damaged or not a picture of a supported format; convert it to PNG, copy "
            "it again, or remove it"
        )
    if not header.complete:
        raise DataError(f"{name} is truncated (its end is missing): copy it again, or remove it")
    check(PICTURE_PIXELS, header.pixels, f"{name} ({header.width} × {header.height})", DataError)
    try:
        # IMREAD_UNCHANGED ignores EXIF orientation, except a TIFF's tag.
        stored = cv2.imdecode(np.frombuffer(without_orientation(data, header), np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, MemoryError) as error:
        reason = " ".join(str(getattr(error, "err", None) or error or "not enough memory").split())
        raise DataError(f"{name} cannot be decoded: {reason}; copy it again, or convert it to PNG") from error
    if stored is None or stored.shape[:2] != (header.height, header.width):
        raise DataError(f"{name} cannot be decoded: it is damaged or not a picture; copy it again, or remove it")
    return upright(stored, header.orientation), header


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Stored pixels (H, W) or (H, W, C) as they are meant to be seen; ``orientation`` is EXIF's, 1 to 8."""
    transpose, flip_rows, flip_columns = _UPRIGHT[orientation]
    turned = pixels.swapaxes(0, 1) if transpose else pixels
    turned = turned[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return np.ascontiguousarray(turned)


def _frame_from_stored(stored: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Convert what OpenCV decoded, 1 to 4 channels of 8 or 16 bits, to (H, W, 1) or (H, W, 3) uint8."""
    if stored.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{name} holds {stored.dtype} values: store it with 8 or 16 bits per channel")
    # OpenCV's functions convert in pieces: in NumPy, a large picture would take many times its memory.
    pixels: NDArray[Any] = cv2.convertScaleAbs(stored, alpha=1 / 257) if stored.dtype == np.uint16 else stored
    pixels = pixels.reshape(*stored.shape[:2], -1)
    if pixels.shape[2] in (2, 4):
        *colours, opacity = cv2.split(pixels)
        pixels = np.dstack([cv2.multiply(colour, opacity, scale=1 / 255) for colour in colours])
    frame: NDArray[np.uint8] = pixels
    return frame
