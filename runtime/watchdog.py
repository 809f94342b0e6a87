"""Notices that a camera is silent, frozen, covered or delivers frames of another size.

Drivers notice a lost camera after 5 to 15 seconds, and a hanging one not at all.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from adedge.runtime.events import Event, Fault
from adedge.runtime.sources import Frame

FaultPolicy = Literal["warn", "reject", "stop"]
"""warn: report the fault. reject: frames with a fault are also anomalous. stop: a fault ends the run with an error."""

FROZEN_FRAMES = 10  # identical pictures in a row: a driver that fills gaps repeats a picture a few times
CONSTANT_RANGE = 12  # grey levels, of 255, in each channel: the noise of a covered sensor stays within
CONSTANT_PORTION = 0.999  # of the pixels: a few are hot
SAMPLE_PIXELS = 16_384  # of a frame, on a grid: enough to see noise, and cheap in a frame of any size


class Watchdog:
    """Watches one camera: its capture thread calls `examine` and `resume`, the pipeline's thread calls `check`.

    ``timeout_s`` is how long it may deliver no frame, counted from the creation of this object at first; 0 means
    forever. ``events`` are those that nobody has taken yet, ``explanation`` is the message of the last fault.
    """

    def __init__(self, name: str, *, timeout_s: float, camera: int | None = None) -> None:
        self.events: deque[Event] = deque()
        self.explanation = ""
        self._name = name
        self._camera = camera
        self._timeout_s = timeout_s if timeout_s > 0 else math.inf
        # Silence, in the pipeline's thread; the capture thread sets only these three.
        self._heard_ns = time.monotonic_ns()
        self._delivered = False
        self._offering = False
        self._silent_since_ns: int | None = None
        # Faults of pictures, in the capture thread.
        self._size: tuple[int, int] | None = None
        self._sample = b""
        self._identical = 1
        self._identical_since_ns = 0
        self._fault: Fault | None = None
        self._fault_since_ns = 0

    def examine(self, frame: Frame) -> Frame:
        """The frame, with its ``fault`` if it has one."""
        now = time.monotonic_ns()
        self._offering, self._heard_ns, self._delivered = True, now, True
        fault = self._fault_of(frame, now)
        if fault != self._fault:
            if self._fault is not None:
                self._add("camera_recovered", self._fault, now, self._fault_since_ns, f"is no longer {self._fault}")
            if fault is not None:
                self._fault_since_ns = self._identical_since_ns if fault == "frozen" else now
                self._add("camera_fault", fault, now, self._fault_since_ns, self._explain(fault, frame))
            self._fault = fault
        return frame if fault is None else replace(frame, fault=fault)

    def resume(self) -> None:
        """The frame was queued: from now on, the next one is waited for."""
        self._heard_ns, self._offering = time.monotonic_ns(), False

    def check(self, *, ended: bool = False) -> bool:
        """Add an event if the camera has become silent, or delivers frames again; True if it has become silent.

        A camera whose frames have ended does not become silent.
        """
        now, heard_ns = time.monotonic_ns(), self._heard_ns
        since_ns = self._silent_since_ns
        if since_ns is not None and heard_ns > since_ns:
            self._silent_since_ns = None
            self._add("camera_recovered", "silent", now, since_ns, "delivers frames again")
        elif since_ns is None and not (ended or self._offering) and now - heard_ns >= self._timeout_s * 1e9:
            self._silent_since_ns = heard_ns
            seconds = (now - heard_ns) / 1e9
            what = f"no frame for {seconds:.1f} s" if self._delivered else f"no frame, {seconds:.1f} s after the start"
            self._add("camera_fault", "silent", now, heard_ns, f"delivers {what}: check its cable, power and network")
            return True
        return False

    def _fault_of(self, frame: Frame, now_ns: int) -> Fault | None:
        self._size = self._size or frame.size
        channels = _sample(frame)
        sample = channels.tobytes()
        if sample == self._sample:
            self._identical += 1
        else:
            self._sample, self._identical, self._identical_since_ns = sample, 1, now_ns
        if all(map(_is_constant, channels)):
            return "constant"
        if self._identical >= FROZEN_FRAMES:
            return "frozen"
        return "resized" if frame.size != self._size else None

    def _explain(self, fault: Fault, frame: Frame) -> str:
        if fault == "constant":
            return "delivers a picture without content: check lens cap, lighting and exposure"
        if fault == "frozen":
            return (
                f"has delivered the same picture {self._identical} times in a row, which no camera with noise does: "
                "restart it, or its driver"
            )
        (height, width), (height_before, width_before) = frame.size, self._size or frame.size
        return (
            f"delivers frames of {width} × {height} pixels, after {width_before} × {height_before} at first: "
            "check its settings"
        )

    def _add(
        self, kind: Literal["camera_fault", "camera_recovered"], fault: Fault, now_ns: int, since_ns: int, what: str
    ) -> None:
        seconds = (now_ns - since_ns) / 1e9
        if kind == "camera_recovered":
            what = f"{what}, after {seconds:.1f} s"
        message = f"{self._name} {what}"
        if kind == "camera_fault":
            self.explanation = message
        self.events.append(
            Event(
                kind=kind,
                fault=fault,
                at_ns=now_ns,
                seconds=seconds,
                name=self._name,
                camera=self._camera,
                message=message,
            )
        )


def _sample(frame: Frame) -> NDArray[np.uint8]:
    """About `SAMPLE_PIXELS` pixels of a frame, (C, H', W'): of NV12, of its luma."""
    height, width = frame.size
    step = max(1, math.isqrt(height * width // SAMPLE_PIXELS))
    grid = frame.image[:height:step, ::step]
    # Channel by channel: copying a grid of single bytes takes a quarter of the time of one of BGR triples.
    return np.ascontiguousarray(grid[None] if grid.ndim == 2 else grid.transpose(2, 0, 1))


def _is_constant(channel: NDArray[np.uint8]) -> bool:
    """Whether `CONSTANT_PORTION` of the pixels (H, W) lie within `CONSTANT_RANGE`."""
    below = cv2.calcHist([channel], [0], None, [256], [0, 256]).cumsum() / channel.size
    low, high = np.searchsorted(below, [(1 - CONSTANT_PORTION) / 2, (1 + CONSTANT_PORTION) / 2])
    return bool(high - low <= CONSTANT_RANGE)
