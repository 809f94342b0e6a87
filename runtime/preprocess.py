"""Preprocessing on a CPU: the OpenCV executor of `InputSpec`."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.data.pictures import check_frame
from adedge.errors import DataError
from adedge.specs import InputSpec


class Preprocessor:
    """Resizes, reorders and scales up to ``batch`` frames into a fixed float buffer.

    Equals `adedge.data.pictures.conform` followed by (pixel * scale - mean) / std. Because a pixel has 256 possible
    values, that formula is a lookup table per channel, computed once in float64. Planes are written in the network's
    order, which makes BGR to RGB and (H, W, C) to (C, H, W) free. Buffers are allocated once, none in a call.
    """

    def __init__(self, spec: InputSpec, batch: int) -> None:
        self.spec = spec
        self.batch = batch
        height, width = spec.height, spec.width
        self._tables = value_tables(spec)
        self._resized_grey = np.empty((height, width), np.uint8)
        self._resized_color = np.empty((height, width, 3), np.uint8)
        self._planes = [np.empty((height, width), np.uint8) for _ in range(3)]

    def __call__(self, frames: Sequence[NDArray[np.uint8]], out: NDArray[np.float32]) -> int:
        """Fill ``out[:n]`` from n frames and return n; the rest of ``out`` is unchanged.

        ``frames``: uint8, (H, W, 3) BGR, (H, W, 1) or (H, W); sizes may differ, but with ``resize="tile"`` each is one
        tile. ``out``: float32, contiguous, (batch, C, height, width).

        Raises `DataError` if there are more frames than ``batch``, or if a shape or dtype is wrong.
        """
        if out.shape != (self.batch, *self.spec.shape) or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise DataError(
                f"the input buffer has shape {out.shape} and dtype {out.dtype}: "
                f"pass contiguous float32 of shape {(self.batch, *self.spec.shape)}"
            )
        if len(frames) > self.batch:
            raise DataError(f"{len(frames)} frames do not fit into a batch of {self.batch}: pass them in parts")
        for frame, planes in zip(frames, out, strict=False):
            self._fill(frame, planes)
        return len(frames)

    def _fill(self, frame: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """Preprocess one frame into ``out``, (C, height, width)."""
        check_frame(frame)
        grey = frame.ndim == 2 or frame.shape[2] == 1
        height, width = self.spec.height, self.spec.width
        if frame.shape[:2] != (height, width):
            if self.spec.resize == "tile":
                raise DataError(
                    f"a tile has {frame.shape[1]} × {frame.shape[0]} pixels, not {width} × {height}: "
                    "cut frames with adedge.runtime.tiling.cut_tiles first"
                )
            resized = self._resized_grey if grey else self._resized_color
            cv2.resize(frame, (width, height), dst=resized, interpolation=cv2.INTER_LINEAR)
            frame = resized
        planes = self._grey_planes(frame) if grey else self._color_planes(frame)
        for plane, table, target in zip(planes, self._tables, out, strict=True):
            cv2.LUT(plane, table, dst=target)

    def _grey_planes(self, frame: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The plane of a grey frame, repeated for each channel of the network."""
        plane: NDArray[np.uint8] = frame if frame.ndim == 2 else frame[:, :, 0]
        return [plane] * self.spec.channels

    def _color_planes(self, frame: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The planes of a BGR frame in the network's order, or its luma."""
        if self.spec.color == "gray":
            cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY, dst=self._planes[0])
            return self._planes[:1]
        cv2.split(frame, self._planes)
        return self._planes if self.spec.color == "bgr" else self._planes[::-1]


def value_tables(spec: InputSpec) -> NDArray[np.float32]:
    """The network's input for each of the 256 pixel values, by channel: float32, (channels, 256)."""
    mean = np.array(spec.mean or (0.0,) * spec.channels)[:, None]
    std = np.array(spec.std or (1.0,) * spec.channels)[:, None]
    tables: NDArray[np.float32] = ((np.arange(256) * spec.scale - mean) / std).astype(np.float32)
    return tables
