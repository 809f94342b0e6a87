"""What an inspector is, wherever it computes: frames in, verdicts out. And the rule that makes a score a verdict."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Normalisation
from adedge.errors import EngineError
from adedge.runtime.sources import Frame
from adedge.runtime.verdict import Verdict
from adedge.specs import InputSpec

Maps = Literal["never", "rejects", "always"]
"""Whose anomaly maps an inspector on a GPU downloads: nobody's, those of anomalous frames, or all."""


class Inspector(Protocol):
    """What the pipeline knows of an inspector: frames are submitted, and their verdicts collected in the same order.

    Up to ``slots`` batches may be under way at once; one that computes in the calling thread has one.
    """

    @property
    def batch(self) -> int:
        """The most frames that one `submit` takes."""

    @property
    def slots(self) -> int:
        """How many batches may be submitted before the first is collected."""

    def submit(self, frames: Sequence[Frame]) -> None:
        """Begin with 1 to ``batch`` frames; they must not change before they are collected."""

    def collect(self) -> Iterator[Verdict]:
        """The verdicts on the frames submitted first; each is complete at the moment it is yielded.

        Raises `EngineError` where the engine fails or gives a score that is not a number.
        """

    def close(self) -> None:
        """Give back what the inspector itself holds; the engine stays. A second call does nothing."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """From a score to a verdict: ``score > threshold`` is anomalous."""

    threshold: float
    normalisation: Normalisation | None = None

    def verdict(
        self, frame: Frame, score: float, anomaly_map: NDArray[np.float32] | None, timings_ms: Mapping[str, float]
    ) -> Verdict:
        """The verdict on a frame, decided now. Raises `EngineError` where the score is not a number."""
        if not math.isfinite(score):
            raise EngineError(
                f"frame {frame.index} ({frame.name}) has the score {score}: the engine or its weights are damaged; "
                "build the engine again"
            )
        decided_at_ns = time.monotonic_ns()
        return Verdict(
            frame_id=frame.index,
            name=frame.name,
            captured_at_ns=frame.captured_at_ns,
            decided_at_ns=decided_at_ns,
            score=score,
            threshold=self.threshold,
            anomalous=score > self.threshold,
            z=None if (n := self.normalisation) is None else (score - n.mean) / n.std,
            map=anomaly_map,
            timings_ms={**timings_ms, "verdict": (decided_at_ns - frame.captured_at_ns) / 1e6},
        )


def check_shape(shape: Sequence[int], spec: InputSpec) -> None:
    """Compare an engine's input (batch, C, H, W) with the bundle's. Raises `EngineError` where they differ."""
    if tuple(shape[1:]) != spec.shape:
        raise EngineError(
            f"the engine takes frames of {tuple(shape[1:])}, the bundle says {spec.shape} "
            "(channels, height, width): build the engine again"
        )
