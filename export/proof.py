"""Prove that engines decide as the model did, on the golden frames and on any number of further pictures.

Both run on this machine through the code of `adedge run`. The model's scores of further pictures can be stored in the
bundle, so that a device without PyTorch can be compared with the model on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from adedge.bundle import Bundle
from adedge.data.datasets import Sample
from adedge.errors import AdedgeError, BundleError, GateError, MissingDependency
from adedge.export.verify import check_tolerance, difference_of, flips_of, tolerance_of
from adedge.golden import Golden, read_golden
from adedge.intervals import rate_bound
from adedge.manifest import Difference
from adedge.progress import Progress
from adedge.runtime.backends import Backend
from adedge.runtime.backends.reference import load_reference
from adedge.runtime.engines import engines_in, load_engine
from adedge.runtime.inspection import judge_frames, judge_samples
from adedge.specs import EngineKey, Precision, Record, Target

REFERENCE_SCORES = "reference-scores.json"


class ReferenceScores(Record):
    """reference-scores.json: the raw scores of the model with these weights, keyed by picture digest."""

    weights_sha256: str
    scores: dict[str, float]


class Proof(Record):
    """One engine on this machine compared with the model.

    ``golden`` is its difference on the golden frames, None if the engine cannot run here or its output is not finite;
    ``problem`` then says why. ``problem`` also reports a difference beyond the tolerance. ``pictures``, ``flips`` and
    ``score_error`` (the largest absolute difference of a raw score) refer to the further pictures, or without any to
    the golden frames; ``flips`` is None if the bundle lacks one of the two thresholds. ``flip_rate`` is the upper 95%
    confidence bound on the share of such pictures that the engine decides differently. ``rejected`` of the pictures are
    anomalous to the engine, None if it lacks a threshold: if none or all are, agreement proves nothing.
    """

    engine: str
    golden: Difference | None = None
    pictures: int = 0
    flips: int | None = None
    flip_rate: float | None = None
    rejected: int | None = None
    score_error: float | None = None
    problem: str | None = None

    @property
    def one_sided(self) -> bool:
        """Whether engine and model agree on every picture, but only because both accept all, or reject all."""
        return self.flips == 0 and self.rejected in (0, self.pictures)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Further pictures and the model's raw scores of them (N,), in the same order.

    ``computed`` of the scores were not in the bundle.
    """

    samples: Sequence[Sample]
    scores: NDArray[np.float32]
    computed: int = 0


def prove(
    bundle: Bundle,
    pictures: Pictures | None = None,
    *,
    target: Target | None = None,
    precision: Precision | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Proof]:
    """Compare each engine of the bundle with the model, one at a time.

    If an engine cannot run here or differs by more than its precision's tolerance, its `Proof` reports the problem.

    >>> from adedge import open_bundle
    >>> for proof in prove(open_bundle("bottle.adedge")):
    ...     print(proof.engine, proof.flips, "of", proof.pictures, proof.problem)
    onnxruntime/fp32 0 of 8 None
    """
    golden = read_golden(bundle)
    for key in engines_in(bundle):
        if target in (None, key.target) and precision in (None, key.precision):
            try:
                with closing(load_engine(bundle, key, threads=threads)) as backend:
                    yield _proof(bundle, golden, backend, key, pictures, progress)
            except AdedgeError as error:
                yield Proof(engine=str(key), problem=str(error))


def pictures_with_scores(
    bundle: Bundle, samples: Sequence[Sample], progress: Progress | None = None, *, store: bool = True
) -> tuple[Pictures, Bundle]:
    """Look up the model's score of each picture, computing those that the bundle lacks.

    With ``store``, these are added to the bundle, which loses its signature. Duplicate pictures count once. Returns the
    reopened bundle too. Raises `GateError` if the bundle lacks a score and
    the model cannot run here, `BundleError`.
    """
    samples = list({sample.digest: sample for sample in samples}.values())
    scores = dict(stored_scores(bundle))
    missing = [sample for sample in samples if sample.digest not in scores]
    if missing:
        try:
            backend = load_reference(bundle)
        except MissingDependency as error:
            raise GateError(
                f"{len(missing)} of {len(samples)} pictures have no model score in the bundle, and the model cannot "
                f"run here ({error}): run this command where the model was trained, then copy the bundle"
            ) from error
        with closing(backend):
            manifest = bundle.manifest
            judged = judge_samples(
                backend, manifest.input, manifest.score, missing, name=manifest.reference, progress=progress
            )
        scores.update((sample.digest, float(score)) for sample, score in zip(missing, judged.scores, strict=True))
        if store:
            weights = bundle.manifest.files[bundle.manifest.weights].sha256
            with bundle.edit() as draft:
                draft.write_json(REFERENCE_SCORES, ReferenceScores(weights_sha256=weights, scores=scores).model_dump())
            bundle = draft.bundle
    known = np.array([scores[sample.digest] for sample in samples], np.float32)
    return Pictures(samples=samples, scores=known, computed=len(missing)), bundle


def stored_scores(bundle: Bundle) -> Mapping[str, float]:
    """The model's scores in the bundle, keyed by picture digest; empty if they belong to other weights.

    Raises `BundleError` if the file is not valid.
    """
    if not bundle.has(REFERENCE_SCORES):
        return {}
    try:
        stored = ReferenceScores.model_validate(bundle.json(REFERENCE_SCORES))
    except ValidationError as error:
        raise BundleError(f"{bundle.path / REFERENCE_SCORES} is not a valid file of model scores: remove it") from error
    return stored.scores if stored.weights_sha256 == bundle.manifest.files[bundle.manifest.weights].sha256 else {}


def _proof(
    bundle: Bundle,
    golden: Golden,
    backend: Backend,
    key: EngineKey,
    pictures: Pictures | None,
    progress: Progress | None,
) -> Proof:
    name, spec, score = str(key), bundle.manifest.input, bundle.manifest.score
    judged = judge_frames(backend, spec, score, golden.frames, name=name)
    difference = difference_of(bundle, golden, judged, name=name, threshold=name)
    problem = None
    try:
        check_tolerance(name, difference, golden, tolerance_of(key.precision, score))
    except GateError as error:
        problem = str(error)
    expected, scores = golden.scores, judged.scores
    if pictures is not None:
        expected = pictures.scores
        scores = judge_samples(backend, spec, score, pictures.samples, name=name, progress=progress).scores
    flips = flips_of(bundle.manifest, name, expected, scores)
    threshold = bundle.manifest.threshold(name)
    return Proof(
        engine=name,
        golden=difference,
        pictures=len(scores),
        flips=flips,
        flip_rate=None if flips is None else rate_bound(flips, len(scores)),
        rejected=None if threshold is None else int(np.sum(scores > threshold)),
        score_error=float(np.abs(scores - expected).max()),
        problem=problem,
    )
