"""How far a graph or an engine is from PyTorch, measured on the golden frames, and how far it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Bundle, Difference, Manifest
from adedge.data.pictures import network_input
from adedge.errors import GateError
from adedge.golden import Golden
from adedge.metrics import auroc, count_flips
from adedge.runtime.inspection import Predictions
from adedge.scoring import maps_and_scores
from adedge.specs import Precision, ScoreSpec

Run = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far maps and scores may be from PyTorch's, as fractions of the largest map value and score there.

    ``auroc_drop`` bounds PyTorch's AUROC minus the graph's, where the golden frames are of both labels; one pair of
    frames may change order in any case.
    """

    map_error: float
    score_error: float
    auroc_drop: float


TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(map_error=1e-3, score_error=1e-4, auroc_drop=0.0),
    "fp16": Tolerance(map_error=0.05, score_error=0.02, auroc_drop=0.005),
    # One pixel may be off by much where both images are flat; scores are what verdicts are made of. Of 16 good and 16
    # anomalous frames, a drop of 0.02 is five pairs of the 256 that change order.
    "int8": Tolerance(map_error=0.5, score_error=0.15, auroc_drop=0.02),
}
# Where the network gives the score itself, its map decides nothing, and may be a gradient: that jumps wherever rounding
# moves a pooling's maximum from one pixel to the next or an activation across 0.
SHOWN_MAP_ERROR: Mapping[Precision, float] = {"fp32": 0.1, "fp16": 0.25, "int8": 0.5}

_REMEDY = "name the others in --precision, or calibrate INT8 with a smaller --max-score-noise"


def tolerance_of(precision: Precision, score: ScoreSpec) -> Tolerance:
    """The tolerance of a detector's graphs of one precision."""
    tolerance = TOLERANCES[precision]
    return replace(tolerance, map_error=SHOWN_MAP_ERROR[precision]) if score.reduce == "output" else tolerance


def difference(
    bundle: Bundle,
    golden: Golden,
    run: Run,
    *,
    name: str = "the graph",
    threshold: str | None = None,
    scored: bool = False,
) -> Difference:
    """Run the golden frames and compare maps, scores and verdicts with what PyTorch gave.

    ``run`` takes network input (N, C, H, W) float32 and gives the network's outputs, or with ``scored`` maps (N, H, W)
    and scores (N,). ``threshold`` is the key of the threshold that goes with it, as "onnxruntime/int8"; flips are
    counted where the bundle has it and the one of its reference. Raises `GateError` where an output is not finite.
    """
    manifest = bundle.manifest
    outputs = run(network_input(golden.frames, manifest.input))
    if scored:
        maps, scores = outputs
    else:
        maps, scores = maps_and_scores(manifest.score, outputs)
    return difference_of(bundle, golden, Predictions(maps=tuple(maps), scores=scores), name=name, threshold=threshold)


def difference_of(
    bundle: Bundle,
    golden: Golden,
    judged: Predictions,
    *,
    name: str,
    threshold: str | None = None,
) -> Difference:
    """Compare maps and scores of the golden frames with what PyTorch gave; see `difference`."""
    maps, scores = np.stack(judged.maps), judged.scores
    broken = ~np.isfinite(maps).all(axis=(1, 2)) | ~np.isfinite(scores)
    if broken.any():
        raise GateError(
            f"{name} gives values that are not finite for golden frame {int(np.argmax(broken))}: nothing was written; "
            "with --precision, leave out the precision that cannot hold this network's values"
        )
    return Difference(
        map_error=float(np.abs(maps - golden.maps).max()),
        score_error=float(np.abs(scores - golden.scores).max()),
        frames=len(scores),
        flips=flips_of(bundle.manifest, threshold, golden.scores, scores),
        auroc_change=_auroc_change(golden, scores),
    )


def check_tolerance(name: str, found: Difference, golden: Golden, tolerance: Tolerance) -> None:
    """Raise `GateError` where a graph is further from PyTorch than ``tolerance`` allows."""
    for what, error, allowed, largest in (
        ("map", found.map_error, tolerance.map_error, np.abs(golden.maps).max()),
        ("score", found.score_error, tolerance.score_error, np.abs(golden.scores).max()),
    ):
        if not error <= allowed * largest:
            raise GateError(
                f"{name} differs from the model by {error:.2e} in a {what}, and {allowed:g} of the largest {what}, "
                f"{allowed * largest:.2e}, is allowed: {_REMEDY}; the bundle is as it was"
            )
    # However few the golden frames are, one pair of them that changes order is allowed: less cannot be lost.
    good = int(np.sum(golden.labels == 0))
    pairs = good * (len(golden.labels) - good)
    if found.auroc_change is not None and -found.auroc_change > max(tolerance.auroc_drop, 1.001 / pairs):
        raise GateError(
            f"{name} loses {-found.auroc_change:.4f} AUROC on the golden frames, and {tolerance.auroc_drop:g} is "
            f"allowed: {_REMEDY}; the bundle is as it was"
        )


def flips_of(
    manifest: Manifest, engine: str | None, expected: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]]
) -> int | None:
    """How many of N pictures an engine decides otherwise than its reference, each at its own threshold.

    ``expected`` (N,) are the reference's raw scores, ``scores`` (N,) the engine's. None where a threshold is missing.
    """
    reference, own = manifest.threshold(manifest.reference), None if engine is None else manifest.threshold(engine)
    if reference is None or own is None:
        return None
    # In float64, as `adedge run` compares: a threshold need not be a float32.
    return count_flips(expected.astype(np.float64) > reference, scores.astype(np.float64) > own)


def _auroc_change(golden: Golden, scores: NDArray[np.floating[Any]]) -> float | None:
    if set(golden.labels.tolist()) != {0, 1}:
        return None
    return float(auroc(golden.labels, scores) - auroc(golden.labels, golden.scores))
