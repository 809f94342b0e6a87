"""Frames from memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from adedge.runtime.sources.frame import Frame, FrameSource


class ArraySource(FrameSource):
    """Frames from a list or a generator function: for tests, benchmarks and synthetic pictures.

    A function ``frames`` is called when the iteration begins and yields uint8 images (H, W, C), BGR or grey.
    """

    def __init__(
        self,
        frames: Callable[[], Iterator[NDArray[np.uint8]]] | Sequence[NDArray[np.uint8]],
        *,
        name: str = "array",
        total: int | None = None,
        fps: float | None = None,
    ) -> None:
        self.name = name
        self.total = total if callable(frames) else len(frames)
        self.fps = fps
        self._frames = frames
        self._closed = threading.Event()

    def open(self) -> None:
        """Nothing to open."""

    def __iter__(self) -> Iterator[Frame]:
        """Yield the images in order."""
        images = self._frames() if callable(self._frames) else iter(self._frames)
        for index, image in enumerate(images):
            if self._closed.is_set():
                return
            yield Frame(index, time.monotonic_ns(), image, f"{self.name}#{index}")

    def close(self) -> None:
        """End the iteration."""
        self._closed.set()
