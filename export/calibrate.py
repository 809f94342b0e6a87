"""Calibrate a bundle on pictures of good parts: INT8 ranges and placement, score normalisation, decision thresholds.

Training pictures calibrate INT8: they are real and good, but score too low to fit a threshold. Thresholds are fitted on
held-out pictures that serve no other purpose, as the guarantee of `adedge.calibration.thresholds` requires. Golden
frames fit none either: the verdicts on them, which are compared later, must not lie at a threshold by construction.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adedge.bundle import Bundle
from adedge.calibration.thresholds import conformal_threshold, pictures_needed, require_pictures, saturation
from adedge.data.datasets import Dataset, Sample
from adedge.data.pictures import conform, network_input
from adedge.errors import AdedgeError, BundleError, DataError, EngineError, MissingDependency
from adedge.export.graphs import (
    dropped_threshold_notes,
    failure_sentences,
    graph_files,
    json_from_ranges,
    require_packages,
    run_with_onnxruntime,
    store,
    verify_graphs,
)
from adedge.export.verify import one_sided_golden
from adedge.golden import golden_among, read_golden, stain
from adedge.manifest import Normalisation, Threshold
from adedge.progress import Progress
from adedge.runtime.backends import Backend
from adedge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from adedge.runtime.backends.reference import BATCH, load_reference
from adedge.runtime.engines import engines_in, load_engine, load_recorded, read_record
from adedge.runtime.inspection import judge_samples
from adedge.scoring import maps_and_scores
from adedge.specs import PRECISIONS, EngineKey, InputSpec, Precision

if TYPE_CHECKING:
    from adedge.calibration.ranges import RangeMethod, Ranges
    from adedge.calibration.sensitivity import Limits

log = logging.getLogger(__name__)

RANGE_PICTURES = 64  # more pictures no longer change a range noticeably
PROBE_PICTURES = 8  # good pictures that judge the placement of INT8, together with a stained copy of each
# If the network outputs the score itself, limits on the score do not protect the map. The map may come from cheap
# convolutions, where INT8 gains nothing: those below this share of all multiply-accumulates stay in floating point.
CHEAP_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Good pictures split into two disjoint sets.

    ``trained_on`` is the number of all good pictures that were trained on. ``golden`` are the digests of others that
    are golden frames; like those, they may serve for INT8 but not for thresholds.
    """

    int8: tuple[Sample, ...]
    thresholds: tuple[Sample, ...]
    trained_on: int
    golden: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """The reopened bundle, the pictures used, and notes for the user.

    ``problems`` are the reasons why a precision has no graph and no threshold although it was asked for.
    """

    bundle: Bundle
    parts: Parts
    notes: tuple[str, ...]
    problems: tuple[str, ...] = ()


def calibrate(
    bundle: Bundle,
    dataset: Dataset,
    *,
    precisions: Sequence[Precision] = PRECISIONS,
    method: RangeMethod = "minmax",
    false_alarm_rate: float = 0.01,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Measure ranges, place INT8, fit normalisation and thresholds, verify all graphs, and store all in one edit.

    FP32 is always included in ``precisions``; ``limits`` bound how far INT8 may change maps and scores. Thresholds are
    fitted for the reference, for ONNX Runtime in each precision, and for the bundle's other engines that run on this
    machine. If FP16 or INT8 graphs cannot be made, or miss their tolerance on the golden frames, the rest is stored
    and the result's ``problems`` say so. Raises `DataError` if there are too few pictures, they are unusable or
    their scores allow no threshold, `GateError` if the FP32 graph differs too much, `BundleError`, `EngineError`,
    `MissingDependency`.

    >>> from adedge import load_dataset, open_bundle
    >>> result = calibrate(open_bundle("bottle.adedge"), load_dataset("photos"), false_alarm_rate=0.2)
    >>> sorted(result.bundle.manifest.thresholds)
    ['onnxruntime/fp16', 'onnxruntime/fp32', 'onnxruntime/int8', 'pytorch/fp32']
    """
    require_packages()
    from adedge.calibration.onnx_model import OPSET
    from adedge.export.fp32 import export_fp32

    parts = split_pictures(bundle, dataset, false_alarm_rate)
    manifest = bundle.manifest
    previous = manifest.graphs.get("model.fp32")

    def scores_of(name: str, backend: Backend) -> NDArray[np.floating[Any]]:
        with closing(backend):
            return _scores(bundle, backend, parts.thresholds, name, progress)

    with bundle.edit() as draft:
        notes: list[str] = []
        reference = scores_of(manifest.reference, load_reference(bundle))
        thresholds = {manifest.reference: _threshold(manifest.reference, reference, false_alarm_rate, parts, notes)}

        fp32 = export_fp32(bundle, opset=previous.opset if previous else OPSET)
        all_precisions = [precision for precision in PRECISIONS if precision == "fp32" or precision in precisions]
        ranges = None
        if "int8" in all_precisions:
            ranges = calibrate_int8(fp32, bundle, parts.int8, method, limits, progress)
        failures: dict[str, AdedgeError] = {}
        files = graph_files(fp32, all_precisions, ranges, failures)

        for precision in all_precisions:
            name = str(EngineKey("onnxruntime", precision))
            if name not in thresholds and precision in files:
                scores = scores_of(name, OnnxRuntimeBackend(files[precision], batch=BATCH, or_fewer=True))
                thresholds[name] = _threshold(name, scores, false_alarm_rate, parts, notes)

        # The bundle passed here has the new thresholds, so that flips are counted at those that will be stored.
        calibrated = manifest.replace(normalisation=_normalisation(reference), thresholds=thresholds)
        graphs = verify_graphs(replace(bundle, manifest=calibrated), files, ranges, failures, progress=progress)
        for kind in failures:
            thresholds.pop(f"onnxruntime/{kind}", None)
        changed, removed = store(draft, graphs)
        notes += removed
        if ranges is not None and "int8" not in failures:
            draft.write("ranges.json", json_from_ranges(ranges))
        for name, backend in _other_engines(bundle, changed, notes):
            thresholds[name] = _threshold(name, scores_of(name, backend), false_alarm_rate, parts, notes)
        # Engines that run on other machines keep their thresholds unless their graphs changed.
        thresholds = {**draft.manifest.thresholds, **thresholds}
        draft.manifest = draft.manifest.replace(normalisation=calibrated.normalisation, thresholds=thresholds)
        notes += dropped_threshold_notes(manifest, draft.manifest)
    bundle = draft.bundle
    if (warning := one_sided_golden(bundle)) is not None:
        notes.append(warning)
    return CalibrationResult(bundle=bundle, parts=parts, notes=tuple(notes), problems=failure_sentences(failures))


def fit_thresholds(
    bundle: Bundle,
    dataset: Dataset,
    *,
    false_alarm_rate: float | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Fit only the thresholds of the bundle's engines that run on this machine; requires neither PyTorch nor ONNX.

    ``false_alarm_rate`` defaults to that of the reference's threshold. Pictures that INT8 was calibrated on fit no
    threshold if ``dataset`` is the one that `calibrate` used. Raises `DataError` if there are too few pictures or they
    are unusable, `BundleError` if no rate is given and the bundle has none, `EngineError` if no engine runs here.
    """
    reference = bundle.manifest.thresholds.get(bundle.manifest.reference)
    if false_alarm_rate is None:
        if reference is None:
            raise BundleError(f"{bundle.path} has no threshold yet to take the rate from: give --false-alarm-rate")
        false_alarm_rate = reference.false_alarm_rate
    parts = _parts_for_thresholds(bundle, dataset, false_alarm_rate)
    notes: list[str] = []
    if reference is not None and (reference.data_digest, reference.false_alarm_rate) != (
        _digest(parts.thresholds),
        false_alarm_rate,
    ):
        notes.append(
            f"the threshold of {bundle.manifest.reference} was fitted on other pictures or for another rate: "
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
            thresholds[str(key)] = _threshold(str(key), scores, false_alarm_rate, parts, notes)
    if not thresholds:
        raise EngineError(
            f"{bundle.path} has no engine that runs here ({'; '.join(notes) or 'none was built'}): "
            "run 'adedge build-engine' first"
        )
    with bundle.edit() as draft:
        draft.manifest = draft.manifest.replace(thresholds={**draft.manifest.thresholds, **thresholds})
    return CalibrationResult(bundle=draft.bundle, parts=parts, notes=tuple(notes))


def _parts_for_thresholds(bundle: Bundle, dataset: Dataset, false_alarm_rate: float) -> Parts:
    """Every good picture that is held out: neither trained on nor, for the same data, used to calibrate INT8."""
    parts = _split(bundle, dataset, false_alarm_rate)
    if not (bundle.has("ranges.json") and bundle.json("ranges.json")["data_digest"] == _digest(parts.int8)):
        used = parts.golden.union(bundle.json("training.json")["pictures"])
        unused = tuple(sample for sample in parts.int8 if sample.digest not in used)
        parts = replace(parts, int8=(), thresholds=(*parts.thresholds, *unused))
    _require_pictures(parts, false_alarm_rate)
    return parts


def split_pictures(bundle: Bundle, dataset: Dataset, false_alarm_rate: float) -> Parts:
    """Split good pictures deterministically into those for INT8 and those for thresholds.

    If the data holds fewer than ``PROBE_PICTURES`` training pictures, some held-out pictures are set aside for INT8.
    Raises `DataError` if too few remain for the false-alarm rate or for INT8, or if one is smaller than a tile.
    """
    parts = _split(bundle, dataset, false_alarm_rate)
    _require_pictures(parts, false_alarm_rate)
    if len(parts.int8) < 2:
        raise DataError("INT8 requires at least 2 good pictures besides those for thresholds: add pictures")
    return parts


def _split(bundle: Bundle, dataset: Dataset, false_alarm_rate: float) -> Parts:
    trained = set(bundle.json("training.json")["pictures"])
    # Duplicates count once: the guarantee is about distinct pictures.
    good = {sample.digest: sample for sample in (*dataset.calibration, *dataset.train)}
    training = [sample for digest, sample in good.items() if digest in trained]
    held_out = [sample for digest, sample in good.items() if digest not in trained]
    golden = golden_among(read_golden(bundle), held_out, bundle.manifest.input)
    unseen = [sample for sample in held_out if sample.digest not in golden]
    rng = np.random.default_rng(0)
    if len(training) >= PROBE_PICTURES:
        int8 = _draw(training, rng)
    else:
        int8 = _draw([sample for sample in held_out if sample.digest in golden], rng)
        spare = len(unseen) - pictures_needed(false_alarm_rate)
        int8 += _draw(unseen, rng, max(spare // 2, PROBE_PICTURES - len(int8), 0))
    rest = tuple(sample for sample in unseen if sample not in int8)
    return Parts(int8=int8, thresholds=rest, trained_on=len(training), golden=golden)


def _require_pictures(parts: Parts, false_alarm_rate: float) -> None:
    try:
        require_pictures(len(parts.thresholds), false_alarm_rate)
    except DataError as error:
        if not parts.golden:
            raise
        raise DataError(f"{error} ({len(parts.golden)} more are golden frames, which fit no threshold)") from None


def _threshold(
    name: str, scores: NDArray[np.floating[Any]], false_alarm_rate: float, parts: Parts, notes: list[str]
) -> Threshold:
    """Fit the threshold of an engine or the reference; appends to ``notes`` if it may be above every possible score."""
    try:
        value = conformal_threshold(scores, false_alarm_rate)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    warning = saturation(scores, value)
    if warning is not None:
        notes.append(f"{name}: {warning}")
    return Threshold(
        value=value, false_alarm_rate=false_alarm_rate, pictures=len(scores), data_digest=_digest(parts.thresholds)
    )


def _draw(samples: Sequence[Sample], rng: np.random.Generator, count: int = RANGE_PICTURES) -> tuple[Sample, ...]:
    """Draw up to ``count`` samples at random, at most ``RANGE_PICTURES``, in their original order."""
    indices = rng.choice(len(samples), min(count, RANGE_PICTURES, len(samples)), replace=False)
    return tuple(samples[index] for index in sorted(indices))


def calibrate_int8(
    fp32: bytes,
    bundle: Bundle,
    samples: Sequence[Sample],
    method: RangeMethod,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Ranges:
    """Measure the FP32 graph's tensor ranges on good pictures and choose the nodes to keep in floating point."""
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

    network_scores = manifest.score.reduce == "output"
    decision = choose_float_nodes(
        fp32,
        ranges,
        score,
        probe,
        np.arange(len(probe)) < len(good),
        limits=limits or Limits(),
        rank_by="score" if network_scores else "map",
        least_share=CHEAP_SHARE if network_scores else 0.0,
        progress=progress,
    )
    return ranges.model_copy(update={"float_nodes": decision.float_nodes, "notes": decision.notes})


def _scores(
    bundle: Bundle, backend: Backend, samples: Sequence[Sample], name: str, progress: Progress | None
) -> NDArray[np.floating[Any]]:
    manifest = bundle.manifest
    return judge_samples(backend, manifest.input, manifest.score, samples, name=name, progress=progress).scores


def _other_engines(bundle: Bundle, changed: set[str], notes: list[str]) -> Iterator[tuple[str, Backend]]:
    """The bundle's engines other than ONNX Runtime's that run here; appends to ``notes`` why others are skipped."""
    for key in engines_in(bundle):
        try:
            record = read_record(bundle, key)
            if record.graph in changed:
                notes.append(f"the {key} engine is stale because its graph changed: run 'adedge build-engine' again")
            elif key.target != "onnxruntime":
                yield str(key), load_recorded(bundle, record)
        except AdedgeError as error:
            notes.append(f"no new threshold for the {key} engine: {error}")


def _network_frame(sample: Sample, spec: InputSpec, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture as one frame of network input size, (H, W, C) uint8; if pictures are tiled, a randomly placed tile."""
    frame = conform(sample.read(), spec)
    top, left = (int(rng.integers(frame.shape[axis] - side + 1)) for axis, side in enumerate((spec.height, spec.width)))
    tile: NDArray[np.uint8] = frame[top : top + spec.height, left : left + spec.width]
    return tile


def _normalisation(scores: NDArray[np.floating[Any]]) -> Normalisation:
    if len(scores) < 2:
        raise DataError("the scores of 1 held-out good picture have no spread: add pictures")
    std = float(np.std(scores, dtype=np.float64, ddof=1))
    return Normalisation(mean=float(np.mean(scores, dtype=np.float64)), std=std, pictures=len(scores))


def _digest(samples: Sequence[Sample]) -> str:
    return hashlib.sha256("\n".join(sorted(sample.digest for sample in samples)).encode()).hexdigest()
