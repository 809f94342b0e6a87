"""Reading from OpenCV's capture, for videos and live sources alike."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
from numpy.typing import NDArray


class Reader:
    """A cv2.VideoCapture that one thread may close while another reads."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self._capture = capture
        self._lock = threading.Lock()
        self.closed = False

    def read(self) -> tuple[int, NDArray[np.uint8]] | None:
        """(captured_at_ns, image); None for a frame that cannot be decoded, at the end, and after `close`.

        OpenCV does not tell the first two apart: after a damaged frame, the next call returns a frame again. The
        timestamp is taken before the frame is decoded.
        """
        with self._lock:
            if self.closed or not self._capture.grab():
                return None
            captured_at_ns = time.monotonic_ns()
            decoded, image = self._capture.retrieve()
        return (captured_at_ns, np.asarray(image, np.uint8)) if decoded else None

    def property(self, identifier: int) -> float | None:
        """A property of the capture, or None if it is unknown (0, negative or NaN)."""
        value = self._capture.get(identifier)
        return value if np.isfinite(value) and value > 0 else None

    def close(self) -> None:
        """Release the capture.

        If a driver hangs in a read, the device stays open until the process ends: releasing it under the reading
        thread would crash the process.
        """
        self.closed = True
        if self._lock.acquire(timeout=2):
            self._capture.release()
            self._lock.release()
