"""Calibrate a bundle on pictures of good parts: INT8 ranges and placement, score normalisation, decision thresholds.

Pictures that the networks were trained on serve for INT8: they are real and good, but score too well for a threshold.
Pictures that the networks have never seen serve for thresholds and for nothing else, which is what the guarantee of
`adedge.calibration.thresholds` rests on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Bundle, Normalisation, Threshold
from adedge.calibration.thresholds import conformal_threshold, pictures_needed, require_pictures
from adedge.data.datasets import Dataset, Sample
from adedge.data.pictures import conform, network_input
from adedge.errors import AdedgeError, BundleError, DataError, EngineError, MissingDependency
from adedge.export.builders import GRAPHS
from adedge.export.graphs import (
    dropped_thresholds,
    graph_files,
    json_from_ranges,
    require_packages,
    run_with_onnxruntime,
    store,
    verified,
)
from adedge.golden import stain
from adedge.progress import Progress
from adedge.runtime.backends import Backend
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from adedge.runtime.backends.reference import BATCH, load_reference
from adedge.runtime.engines import engines_in, load_engine, read_record
from adedge.runtime.inspection import judge_samples
from adedge.scoring import maps_and_scores
from adedge.specs import PRECISIONS, EngineKey, InputSpec, Precision

if TYPE_CHECKING:
    from adedge.calibration.ranges import RangeMethod, Ranges
    from adedge.calibration.sensitivity import Limits

log = logging.getLogger(__name__)

RANGE_PICTURES = 64  # more move no range visibly
PROBE_PICTURES = 8  # with a stained copy of each, what the placement of INT8 is judged by
# Of a network that scores itself, limits on the score do not protect the map. It may come from convolutions of little
# work, where INT8 gains nothing: those with less than this share of all multiply-accumulates stay in floating point.
CHEAP = 0.02


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Good pictures in two parts that share none, and how many of all were trained on."""

    int8: tuple[Sample, ...]
    thresholds: tuple[Sample, ...]
    trained_on: int


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The bundle reopened, the pictures that were used, and sentences about what else happened."""

    bundle: Bundle
    parts: Parts
    notes: tuple[str, ...]


def calibrate(
    bundle: Bundle,
    dataset: Dataset,
    *,
    precisions: Sequence[Precision] = PRECISIONS,
    method: RangeMethod = "minmax",
    false_alarm_rate: float = 0.01,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Measure ranges, place INT8, fit normalisation and thresholds, verify all graphs: stored together or not at all.

    FP32 is among the ``precisions`` always; ``limits`` bound what INT8 may do to maps and scores. Thresholds are fitted
    for the reference, for ONNX Runtime in each of the precisions, and for other engines of the bundle that run on this
    machine. Raises `DataError` (too few pictures, unusable ones), `GateError`, `BundleError`, `EngineError`,
    `MissingDependency`.

    >>> from adedge import load_dataset, open_bundle
    >>> calibrated = calibrate(open_bundle("bottle.adedge"), load_dataset("photos"), false_alarm_rate=0.2)
    >>> sorted(calibrated.bundle.manifest.thresholds)
    ['onnxruntime/fp16', 'onnxruntime/fp32', 'onnxruntime/int8', 'pytorch/fp32']
    """
    require_packages()
    from adedge.calibration.onnx_model import OPSET
    from adedge.export.fp32 import export_fp32

    parts = split_pictures(bundle, dataset, false_alarm_rate)
    manifest = bundle.manifest
    old = manifest.graphs.get("model.fp32")
    with bundle.edit() as draft:
        fp32 = export_fp32(bundle, opset=old.opset if old else OPSET)
        wanted = [precision for precision in PRECISIONS if precision == "fp32" or precision in precisions]
        ranges = measure_int8(fp32, bundle, parts.int8, method, limits, progress) if "int8" in wanted else None
        files = graph_files(fp32, wanted, ranges)

        def scores_of(name: str, backend: Backend) -> NDArray[np.floating[Any]]:
            with closing(backend):
                return _scores(bundle, backend, parts.thresholds, name, progress)

        reference = scores_of(manifest.reference, load_reference(bundle))
        thresholds = {manifest.reference: _threshold(reference, false_alarm_rate, parts)}
        for precision in wanted:
            graph = files[GRAPHS["onnxruntime"][precision][0].removeprefix("model.")]
            name = str(EngineKey("onnxruntime", precision))
            if name not in thresholds:
                scores = scores_of(name, OnnxRuntimeBackend(graph, batch=BATCH, or_fewer=True))
                thresholds[name] = _threshold(scores, false_alarm_rate, parts)

        # Flips are counted against the thresholds that are about to be stored.
        fitted = manifest.replace(normalisation=_normalisation(reference), thresholds=thresholds)
        made = verified(Bundle(bundle.path, fitted), files, ranges, progress=progress)
        changed, notes = store(draft, made)
        if ranges is not None:
            draft.write("ranges.json", json_from_ranges(ranges))
        for name, backend in _other_engines(bundle, changed, notes):
            thresholds[name] = _threshold(scores_of(name, backend), false_alarm_rate, parts)
        # Engines of other machines keep their thresholds as long as their graphs stay.
        thresholds = {**draft.manifest.thresholds, **thresholds}
        draft.manifest = draft.manifest.replace(normalisation=fitted.normalisation, thresholds=thresholds)
        notes += dropped_thresholds(manifest, draft.manifest)
    return Calibrated(bundle=Bundle.open(bundle.path), parts=parts, notes=tuple(notes))


def fit_thresholds(
    bundle: Bundle,
    dataset: Dataset,
    *,
    false_alarm_rate: float | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Fit the thresholds of the bundle's engines that run on this machine, and nothing else; needs no PyTorch, no ONNX.

    The rate is that of the reference's threshold unless given. Where the pictures are those that INT8 was fitted on
    too, the ones that served for it fit no threshold. Raises `DataError` (too few pictures, unusable ones),
    `BundleError` (no rate to go by), `EngineError` (no engine runs here).
    """
    reference = bundle.manifest.thresholds.get(bundle.manifest.reference)
    if false_alarm_rate is None:
        if reference is None:
            raise BundleError(f"{bundle.path} has no threshold yet that says at which rate: give --false-alarm-rate")
        false_alarm_rate = reference.false_alarm_rate
    parts = _parts_for_thresholds(bundle, dataset, false_alarm_rate)
    notes = []
    if reference is not None and (reference.data_digest, reference.false_alarm_rate) != (
        _digest(parts.thresholds),
        false_alarm_rate,
    ):
        notes.append(
            f"the threshold of {bundle.manifest.reference} is of other pictures or another rate: "
            "some verdicts will differ for that reason alone"
        )
    thresholds = {}
    for key in engines_in(bundle):
        try:
            with closing(load_engine(bundle, key)) as backend:
                scores = _scores(bundle, backend, parts.thresholds, str(key), progress)
        except (EngineError, MissingDependency) as error:
            notes.append(f"no new threshold for the {key} engine: {error}")
        else:
            thresholds[str(key)] = _threshold(scores, false_alarm_rate, parts)
    if not thresholds:
        raise EngineError(
            f"{bundle.path} has no engine that runs here ({'; '.join(notes) or 'none was built'}): "
            "run 'adedge build-engine' first"
        )
    with bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={**draft.manifest.thresholds, **thresholds})
    return Calibrated(bundle=Bundle.open(bundle.path), parts=parts, notes=tuple(notes))


def _parts_for_thresholds(bundle: Bundle, dataset: Dataset, false_alarm_rate: float) -> Parts:
    """All good pictures that nothing was fitted on: neither trained on, nor among those that INT8 was fitted on."""
    parts = _divided(bundle, dataset, false_alarm_rate)
    if not (bundle.has("ranges.json") and bundle.json("ranges.json")["data_digest"] == _digest(parts.int8)):
        trained = set(bundle.json("training.json")["pictures"])
        free = tuple(sample for sample in parts.int8 if sample.digest not in trained)
        parts = Parts(int8=(), thresholds=(*parts.thresholds, *free), trained_on=parts.trained_on)
    require_pictures(len(parts.thresholds), false_alarm_rate)
    return parts


def split_pictures(bundle: Bundle, dataset: Dataset, false_alarm_rate: float) -> Parts:
    """Which good pictures serve for INT8 and which for thresholds; the same ones for the same data.

    Where the data holds few pictures that the networks were trained on, some of the others are set aside for INT8.
    Raises `DataError` where too few are left for the false-alarm rate.
    """
    parts = _divided(bundle, dataset, false_alarm_rate)
    require_pictures(len(parts.thresholds), false_alarm_rate)
    if len(parts.int8) < 2:
        raise DataError("INT8 needs at least 2 good pictures beside those for thresholds: add pictures")
    return parts


def _divided(bundle: Bundle, dataset: Dataset, false_alarm_rate: float) -> Parts:
    trained = set(bundle.json("training.json")["pictures"])
    # One picture twice is one picture: the guarantee is about different ones.
    good = {sample.digest: sample for sample in (*dataset.calibration, *dataset.train)}
    seen = [sample for digest, sample in good.items() if digest in trained]
    unseen = [sample for digest, sample in good.items() if digest not in trained]
    rng = np.random.default_rng(0)
    if len(seen) >= PROBE_PICTURES:
        return Parts(int8=_some(seen, rng), thresholds=tuple(unseen), trained_on=len(seen))
    spare = len(unseen) - pictures_needed(false_alarm_rate)
    aside = _some(unseen, rng, max(spare // 2, PROBE_PICTURES))
    left = tuple(sample for sample in unseen if sample not in aside)
    return Parts(int8=aside, thresholds=left, trained_on=len(seen))


def _threshold(scores: NDArray[np.floating[Any]], false_alarm_rate: float, parts: Parts) -> Threshold:
    return Threshold(
        value=conformal_threshold(scores, false_alarm_rate),
        false_alarm_rate=false_alarm_rate,
        pictures=len(scores),
        data_digest=_digest(parts.thresholds),
    )


def _some(samples: Sequence[Sample], rng: np.random.Generator, count: int = RANGE_PICTURES) -> tuple[Sample, ...]:
    chosen = rng.choice(len(samples), min(count, RANGE_PICTURES, len(samples)), replace=False)
    return tuple(samples[index] for index in sorted(chosen))


def measure_int8(
    fp32: bytes,
    bundle: Bundle,
    samples: Sequence[Sample],
    method: RangeMethod,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Ranges:
    """Ranges of the FP32 graph's tensors on good pictures, with the decision which nodes stay in floating point."""
    from adedge.calibration.qdq import quantised_tensors
    from adedge.calibration.ranges import collect_ranges
    from adedge.calibration.sensitivity import Limits, choose_float_nodes

    manifest = bundle.manifest
    rng = np.random.default_rng(0)
    frames = np.stack([_network_frame(sample, manifest.input, rng) for sample in samples])
    ranges = collect_ranges(
        fp32,
        quantised_tensors(fp32),
        (network_input(frame[None], manifest.input)[0] for frame in frames),
        method,
        data_digest=_digest(samples),
        total=len(frames),
        progress=progress,
    )
    good = frames[:PROBE_PICTURES]
    probe = network_input(np.concatenate([good, np.stack([stain(frame, rng)[0] for frame in good])]), manifest.input)

    def score(graph: bytes, frames: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return maps_and_scores(manifest.score, run_with_onnxruntime(graph)(frames))

    own_score = manifest.score.reduce == "output"
    decision = choose_float_nodes(
        fp32,
        ranges,
        score,
        probe,
        np.arange(len(probe)) < len(good),
        limits=limits or Limits(),
        rank_by="score" if own_score else "map",
        least_share=CHEAP if own_score else 0.0,
        progress=progress,
    )
    return ranges.model_copy(update={"float_nodes": decision.float_nodes, "notes": decision.notes})


def _scores(
    bundle: Bundle, backend: Backend, samples: Sequence[Sample], name: str, progress: Progress | None
) -> NDArray[np.floating[Any]]:
    manifest = bundle.manifest
    return judge_samples(backend, manifest.input, manifest.score, samples, name=name, progress=progress).scores


def _other_engines(bundle: Bundle, changed: set[str], notes: list[str]) -> Iterator[tuple[str, Backend]]:
    """Engines of the bundle beside ONNX Runtime's that run here; ``notes`` gets a sentence for each that does not."""
    for key in engines_in(bundle):
        try:
            if read_record(bundle, key).graph in changed:
                notes.append(f"the {key} engine is stale, its graph changed: run 'adedge build-engine' again")
            elif key.target != "onnxruntime":
                yield str(key), load_engine(bundle, key)
        except AdedgeError as error:
            notes.append(f"no new threshold for the {key} engine: {error}")


def _network_frame(sample: Sample, spec: InputSpec, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture as one network input (H, W, C) uint8; of a picture that is tiled, a tile at a random place."""
    frame = conform(sample.read(), spec)
    top, left = (int(rng.integers(frame.shape[axis] - side + 1)) for axis, side in enumerate((spec.height, spec.width)))
    tile: NDArray[np.uint8] = frame[top : top + spec.height, left : left + spec.width]
    return tile


def _normalisation(scores: NDArray[np.floating[Any]]) -> Normalisation:
    std = float(np.std(scores, dtype=np.float64, ddof=1))
    if not std > 0:
        raise DataError("all good pictures have the same score: the detector sees no difference between them")
    return Normalisation(mean=float(np.mean(scores, dtype=np.float64)), std=std, pictures=len(scores))


def _digest(samples: Sequence[Sample]) -> str:
    return hashlib.sha256("\n".join(sorted(sample.digest for sample in samples)).encode()).hexdigest()
