"""Counts and latencies of a run.

Three latencies are distinguished: *network* (the engine alone), *frame* (preprocess to score) and *verdict* (from
capture until the verdict goes to the first sink, waiting included).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from adedge.runtime.verdict import Verdict

Latency = Literal["network", "frame", "verdict"]
LATENCIES: tuple[Latency, ...] = ("network", "frame", "verdict")

WINDOW = 4096
"""Latencies cover this many of the last frames, so that memory stays constant in a run of months."""


@dataclass
class Statistics:
    """Counts of a run, and the latencies of its last `WINDOW` frames.

    ``frames`` were inspected, and ``rejects`` of them were anomalous; ``dropped`` frames were captured but replaced by
    newer ones; ``skipped`` pictures or frames could not be read.
    """

    frames: int = 0
    rejects: int = 0
    dropped: int = 0
    skipped: int = 0
    _decided_at_ns: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _latency_ms: dict[Latency, deque[float]] = field(
        default_factory=lambda: {name: deque(maxlen=WINDOW) for name in LATENCIES}
    )

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.frames += 1
        self.rejects += verdict.anomalous
        self._decided_at_ns.append(verdict.decided_at_ns)
        for name, values in self._latency_ms.items():
            values.append(verdict.timings_ms[name])

    def latency_ms(self, name: Latency, percentile: float) -> float:
        """A percentile (0 to 100) of a latency over the last `WINDOW` frames; NaN before the first."""
        values = self._latency_ms[name]
        return float(np.percentile(values, percentile)) if values else math.nan

    @property
    def frames_per_second(self) -> float:
        """Verdicts per second over the last `WINDOW` frames; NaN before the second."""
        if len(self._decided_at_ns) < 2 or self._decided_at_ns[-1] == self._decided_at_ns[0]:
            return math.nan
        return (len(self._decided_at_ns) - 1) * 1e9 / (self._decided_at_ns[-1] - self._decided_at_ns[0])
