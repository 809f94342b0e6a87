"""A frame, and the interface of the sources that deliver frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.errors import DataError
from adedge.runtime.events import Fault

Notify = Callable[[str], None]
"""Receives a source's warnings, each a line of text, in the thread that iterates over the source."""


@dataclass(frozen=True)
class Frame:
    """One picture from a source.

    index           number assigned by the source, from 0; skipped pictures leave gaps
    captured_at_ns  time.monotonic_ns() when a camera delivered the frame, or after it was read from its file
    image           uint8 (H, W, 3) BGR, or (H, W) or (H, W, 1) grey; with ``nv12`` (3 H / 2, W)
    name            file name, or the source and the frame's number
    nv12            the image is NV12, the native format of Jetson cameras: H rows of luma, then H / 2 rows with
                    interleaved U and V, one pair per 2 × 2 pixels; H and W are even
    fault           what the watchdog of a camera found wrong with the picture; None is nothing, or not checked

    Raises `DataError` if ``nv12`` is set and the image has another shape or dtype.
    """

    index: int
    captured_at_ns: int
    image: NDArray[np.uint8]
    name: str
    nv12: bool = False
    fault: Fault | None = None

    def __post_init__(self) -> None:
        image = self.image
        if self.nv12 and not (
            image.dtype == np.uint8 and image.ndim == 2 and image.size and image.shape[0] % 3 == image.shape[1] % 2 == 0
        ):
            raise DataError(
                f"frame {self.index} ({self.name}) is not NV12: its shape is {image.shape} and its dtype "
                f"{image.dtype}, but NV12 of H × W pixels is uint8 of shape (3 H / 2, W) with even H and W; choose an "
                "even width and height, or another pixel format"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        rows, width = self.image.shape[:2]
        return (rows * 2 // 3 if self.nv12 else rows), width

    @cached_property
    def picture(self) -> NDArray[np.uint8]:
        """The pixels in BGR or grey, for use on the CPU: ``image`` itself, or its conversion from NV12 (done once).

        OpenCV converts NV12 to BGR: BT.601, limited range, each U and V applied to the four pixels that share them.
        """
        return np.asarray(cv2.cvtColor(self.image, cv2.COLOR_YUV2BGR_NV12), np.uint8) if self.nv12 else self.image


class FrameSource(Protocol):
    """Interface of a source: opened once, iterated once, closed once.

    ``close`` may be called from another thread during the iteration, which then ends.

    name     name used in messages, without a password
    live     frames arrive at the source's own pace and never end by themselves
    fps      frames per second, if known
    total    number of frames, if known
    skipped  number of pictures or frames so far that could not be read
    """

    name: str
    live: bool = False
    fps: float | None = None
    total: int | None = None
    skipped: int = 0

    def open(self) -> None:
        """Prepare to read. Raises `SourceError` if there is nothing to read frames from."""

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames. Raises `SourceError` if the source stops before its end."""

    def close(self) -> None:
        """Release the device; a second call does nothing."""


def ignore(text: str) -> None:
    """Discard a warning: the default `Notify`."""
