"""How far a graph or an engine is from the reference on the golden frames, and how far it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Bundle
from adedge.data.pictures import network_input
from adedge.errors import GateError
from adedge.escaping import command_line
from adedge.golden import Golden, read_golden
from adedge.manifest import Difference, Manifest
from adedge.metrics import auroc, count_flips
from adedge.runtime.inspection import Predictions
from adedge.scoring import maps_and_scores
from adedge.specs import Precision, ScoreSpec

Run = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far maps and scores may be from the reference's, as fractions of its largest map value and score.

    ``auroc_drop`` bounds the reference's AUROC minus the graph's if the golden frames have both labels; one pair of
    frames may always change order.
    """

    map_error: float
    score_error: float
    auroc_drop: float


TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(map_error=1e-3, score_error=1e-4, auroc_drop=0.0),
    "fp16": Tolerance(map_error=0.05, score_error=0.02, auroc_drop=0.005),
    # Where both images are flat a single pixel may differ a lot, but verdicts depend on scores. With 16 good and 16
    # anomalous frames, a drop of 0.02 means that five of the 256 pairs change order.
    "int8": Tolerance(map_error=0.5, score_error=0.15, auroc_drop=0.02),
}
# If the network outputs the score itself, its map decides nothing and may be a gradient, which jumps wherever rounding
# moves a pooling's maximum to another pixel or an activation across 0.
SHOWN_MAP_ERROR: Mapping[Precision, float] = {"fp32": 0.1, "fp16": 0.25, "int8": 0.5}

_REMEDY = "leave this precision out with --precision, or calibrate INT8 with a smaller --max-score-noise"


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
    """Run the golden frames and compare maps, scores and verdicts with the reference's.

    ``run`` takes network input (N, C, H, W) float32 and returns the network's outputs, or if ``scored`` maps (N, H, W)
    and scores (N,). ``threshold`` is the key of its threshold, such as "onnxruntime/int8"; flips are counted if the
    bundle has both that threshold and the reference's. Raises `GateError` if an output is not finite.
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
    """Compare maps and scores of the golden frames with the reference's; see `difference`."""
    maps, scores = np.stack(judged.maps), judged.scores
    not_finite = ~np.isfinite(maps).all(axis=(1, 2)) | ~np.isfinite(scores)
    if not_finite.any():
        raise GateError(
            f"{name} gives values that are not finite for golden frame {int(np.argmax(not_finite))}: "
            "use --precision to leave out the precision that overflows"
        )
    return Difference(
        map_error=float(np.abs(maps - golden.maps).max()),
        score_error=float(np.abs(scores - golden.scores).max()),
        frames=len(scores),
        flips=flips_of(bundle.manifest, threshold, golden.scores, scores),
        auroc_change=_auroc_change(golden, scores),
    )


def check_tolerance(name: str, result: Difference, golden: Golden, tolerance: Tolerance) -> None:
    """Raise `GateError` if a graph or engine differs from the reference by more than ``tolerance``."""
    for what, error, fraction, largest in (
        ("map", result.map_error, tolerance.map_error, np.abs(golden.maps).max()),
        ("score", result.score_error, tolerance.score_error, np.abs(golden.scores).max()),
    ):
        if not error <= fraction * largest:
            raise GateError(
                f"{name} differs from the model by {error:.2e} in a {what}; at most {fraction * largest:.2e} "
                f"({fraction:g} of the largest {what}) is allowed: {_REMEDY}"
            )
    # One pair changing order is the smallest possible loss, so it is allowed however few golden frames there are.
    good = int(np.sum(golden.labels == 0))
    pairs = good * (len(golden.labels) - good)
    if result.auroc_change is not None and -result.auroc_change > max(tolerance.auroc_drop, 1.001 / pairs):
        raise GateError(
            f"{name} loses {-result.auroc_change:.4f} AUROC on the golden frames; at most {tolerance.auroc_drop:g} is "
            f"allowed: {_REMEDY}"
        )


def flips_of(
    manifest: Manifest, engine: str | None, expected: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]]
) -> int | None:
    """Count the pictures on which an engine and the reference disagree, each deciding at its own threshold.

    ``expected`` (N,) are the reference's raw scores, ``scores`` (N,) the engine's. None if a threshold is missing.
    """
    reference_threshold = manifest.threshold(manifest.reference)
    engine_threshold = None if engine is None else manifest.threshold(engine)
    if reference_threshold is None or engine_threshold is None:
        return None
    # In float64, as in `adedge run`: a threshold need not be representable in float32.
    return count_flips(expected.astype(np.float64) > reference_threshold, scores.astype(np.float64) > engine_threshold)


def one_sided_golden(bundle: Bundle) -> str | None:
    """A warning if the reference accepts or rejects all golden frames; None if it does not, or has no threshold.

    Engines that agree with it on those frames may have any threshold on the other side of them. Raises `BundleError` if
    the golden frames cannot be read.
    """
    threshold = bundle.manifest.threshold(bundle.manifest.reference)
    if threshold is None:
        return None
    rejected = read_golden(bundle).scores.astype(np.float64) > threshold
    if rejected.any() != rejected.all():
        return None
    verdict, missing = ("rejects", "good") if rejected.all() else ("accepts", "defective")
    return (
        f"the model {verdict} all {len(rejected)} golden frames, so engines that agree with it on them prove nothing: "
        f"run '{command_line('prove', bundle.path, 'PICTURES')}' with {missing} ones too"
    )


def _auroc_change(golden: Golden, scores: NDArray[np.floating[Any]]) -> float | None:
    if set(golden.labels.tolist()) != {0, 1}:
        return None
    return float(auroc(golden.labels, scores) - auroc(golden.labels, golden.scores))
