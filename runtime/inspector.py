"""The `Inspector` interface, frames in and verdicts out, and the rule that turns a score into a verdict."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from adedge.errors import EngineError
from adedge.manifest import Normalisation
from adedge.runtime.sources import Frame
from adedge.runtime.verdict import Verdict
from adedge.specs import InputSpec

Maps = Literal["never", "rejects", "always"]
"""The frames whose anomaly maps an inspector on a GPU downloads: none, anomalous ones, or all."""


class Inspector(Protocol):
    """What the pipeline requires of an inspector: frames are submitted, and verdicts collected in the same order.

    Up to ``slots`` batches may be in flight at once; an inspector that computes in the calling thread has one slot.
    """

    @property
    def batch(self) -> int:
        """The maximum number of frames per `submit`."""

    @property
    def slots(self) -> int:
        """The maximum number of batches submitted before the first is collected."""

    def submit(self, frames: Sequence[Frame]) -> None:
        """Start judging 1 to ``batch`` frames, which must not change until their verdicts are collected."""

    def collect(self) -> Iterator[Verdict]:
        """The verdicts on the frames submitted first; each is complete at the moment it is yielded.

        Raises `EngineError` if the engine fails or gives a score that is not finite.
        """

    def close(self) -> None:
        """Release the inspector's own resources, but not the engine. A second call does nothing."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Turns scores into verdicts: a frame is anomalous if ``score > threshold``.

    ``margin`` is the score's, for whoever draws the map.
    """

    threshold: float
    normalisation: Normalisation | None = None
    margin: int = 0

    def verdict(
        self, frame: Frame, score: float, anomaly_map: NDArray[np.float32] | None, timings_ms: Mapping[str, float]
    ) -> Verdict:
        """The verdict on a frame, decided now. Raises `EngineError` if the score is not finite."""
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
            margin=self.margin,
            timings_ms={**timings_ms, "verdict": (decided_at_ns - frame.captured_at_ns) / 1e6},
        )


def check_shape(shape: Sequence[int], spec: InputSpec) -> None:
    """Compare an engine's input (batch, C, H, W) with the bundle's. Raises `EngineError` if they differ."""
    if tuple(shape[1:]) != spec.shape:
        raise EngineError(
            f"the engine takes frames of {tuple(shape[1:])}, the bundle says {spec.shape} "
            "(channels, height, width): build the engine again"
        )
