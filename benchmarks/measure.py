"""Benchmark a bundle: latency and accuracy of its engines on this machine, as one report."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adedge.benchmarks.accuracy import Accuracy, accuracy, masks_at_map_size, score_samples
from adedge.benchmarks.latency import Contender, measure_latency
from adedge.benchmarks.machine import has_int8_instructions, machine_facts
from adedge.benchmarks.plots import require_matplotlib
from adedge.benchmarks.report import Report, caution, heat_maps, telling_pictures
from adedge.bundle import Bundle
from adedge.data.datasets import Sample, load_dataset, trained_on
from adedge.errors import AdedgeError, EngineError
from adedge.escaping import command_line
from adedge.golden import read_golden
from adedge.processors import physical_cores
from adedge.progress import Progress
from adedge.runtime.backends.reference import load_reference
from adedge.runtime.engines import EngineRecord, engines_in, load_recorded, read_record
from adedge.specs import PRECISIONS, TARGETS, EngineKey, Precision, Target

log = logging.getLogger(__name__)

TIMED_PICTURES = 50  # to measure latency on; the stride through the data can give up to twice as many


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What to measure, and how.

    ``target`` and ``precisions`` select engines. Latency is measured over ``frames`` frames, ``batch`` at a time, with
    ``threads`` CPU threads (default: physical cores). ``reference`` also runs the model, which flips are counted
    against.
    """

    target: Target | None = None
    precisions: tuple[Precision, ...] = PRECISIONS
    frames: int = 200
    batch: int = 1
    threads: int | None = None
    reference: bool = True


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The report and, if there are labelled pictures, a sheet of heat maps (JPEG) by contender."""

    report: Report
    sheets: Mapping[str, bytes] = field(default_factory=dict)


def benchmark(
    bundle: Bundle,
    data: str | Path | None = None,
    options: BenchmarkOptions | None = None,
    *,
    root: Path | None = None,
    command: str = "",
    progress: Progress | None = None,
    notify: Callable[[str], None] = log.warning,
) -> Benchmark:
    """Measure the engines of a bundle that run on this machine.

    ``data`` and ``root`` name labelled pictures, as for `adedge.data.datasets.load_dataset`; without them only latency
    is measured, on the golden frames. ``command`` is recorded in the report; ``notify`` receives warnings. Raises
    `EngineError` if no engine runs here, `MissingDependency` if matplotlib or the model's framework is not installed,
    `DataError`.

    >>> from adedge import open_bundle
    >>> report = benchmark(open_bundle("bottle.adedge"), "photos", BenchmarkOptions(frames=20)).report
    >>> sorted(report.latency), sorted(report.accuracy)
    (['onnxruntime/fp32'], ['onnxruntime/fp32', 'pytorch/fp32'])
    """
    options = options or BenchmarkOptions()
    require_matplotlib()
    manifest = bundle.manifest
    dataset = None if data is None else load_dataset(str(data), root=root)
    for sentence in () if dataset is None else dataset.skipped:
        notify(sentence)
    samples = [] if dataset is None else [sample for sample in dataset.test if sample.label >= 0]
    labelled = len({sample.label for sample in samples}) == 2
    if dataset is not None and not labelled:
        notify(f"{dataset.name} has no good and anomalous test pictures: only latency is measured")
    known = trained_on(samples, bundle.json("training.json")["pictures"]) if labelled else []
    with ExitStack() as stack:
        engines, records, notes = _load_engines(bundle, options, stack)
        # Loaded first, so that a missing framework fails before latency is measured for minutes.
        reference = _load_reference(bundle, engines, stack) if labelled and options.reference else []
        latency = measure_latency(
            list(engines.values()),
            _images(bundle, samples),
            manifest.input,
            manifest.score,
            frames=options.frames,
            batch=options.batch,
            progress=progress,
        )
        metrics, sheets = dict[str, Accuracy](), dict[str, bytes]()
        if labelled:
            contenders = [*reference, *engines.values()]
            metrics, sheets, accuracy_notes = _measure_accuracy(bundle, contenders, samples, progress)
            notes += accuracy_notes
    if manifest.provenance.options.get("weights") == "none":
        notes.append(
            "The backbone has random features (--weights none): one trained on ImageNet is likely to do better."
        )
    notes += _latency_notes({name: one.frame.p50 for name, one in latency.items()}, has_int8_instructions())
    report = Report(
        bundle=bundle.path.name,
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        data=None if data is None else str(data),
        data_digest=None if dataset is None else dataset.digest,
        threads=options.threads or physical_cores(),
        input=manifest.input.shape,
        resident_mib=_resident_mib(),
        machine=machine_facts(),
        latency=latency,
        accuracy=metrics,
        trained_on=tuple(known),
        reference=manifest.reference,
        engines={str(key): record for key, record in records.items()},
        notes=tuple(notes),
    )
    if report.trained_on:
        notify(caution(report))
    return Benchmark(report=report, sheets=sheets)


def _load_engines(
    bundle: Bundle, options: BenchmarkOptions, stack: ExitStack
) -> tuple[dict[EngineKey, Contender], dict[EngineKey, EngineRecord], list[str]]:
    """Load the engines that run here; also returns their records, and a note for each reason why others do not."""
    contenders, records = dict[EngineKey, Contender](), dict[EngineKey, EngineRecord]()
    failures = dict[str, list[str]]()
    for key in engines_in(bundle):
        if key.precision not in options.precisions or options.target not in (None, key.target):
            continue
        try:
            record = read_record(bundle, key)
            backend = load_recorded(bundle, record, threads=options.threads)
        except AdedgeError as error:
            failures.setdefault(str(error), []).append(str(key))
            continue
        stack.callback(backend.close)
        records[key] = record
        contenders[key] = Contender(name=str(key), backend=backend, threshold=bundle.manifest.threshold(key))
    notes = [f"Not measured: {', '.join(names)}: {error}" for error, names in failures.items()]
    if not contenders:
        target = options.target or TARGETS[0]
        build = command_line("build-engine", bundle.path, "--target", target)
        reason = " ".join(notes) or f"run '{build}' first"
        raise EngineError(f"{bundle.path} has no engine to measure here: {reason}")
    return contenders, records, notes


def _load_reference(bundle: Bundle, engines: Mapping[EngineKey, Contender], stack: ExitStack) -> list[Contender]:
    """Load the reference as a contender, unless it already is one of the engines."""
    name = bundle.manifest.reference
    if name in map(str, engines):
        return []
    backend = load_reference(bundle)
    stack.callback(backend.close)
    return [Contender(name=name, backend=backend, threshold=bundle.manifest.threshold(name))]


def _images(bundle: Bundle, samples: Sequence[Sample]) -> list[NDArray[np.uint8]]:
    """The pictures to measure latency on: uint8 (H, W, C), BGR or grey."""
    if samples:
        return [sample.read() for sample in samples[:: max(1, len(samples) // TIMED_PICTURES)]]
    rgb = bundle.manifest.input.color == "rgb"
    return [frame[:, :, ::-1] if rgb else frame for frame in read_golden(bundle).frames]


def _measure_accuracy(
    bundle: Bundle, contenders: Sequence[Contender], samples: Sequence[Sample], progress: Progress | None
) -> tuple[dict[str, Accuracy], dict[str, bytes], list[str]]:
    """Accuracy and heat maps of each contender by name, and notes for the report."""
    manifest, notes = bundle.manifest, []
    scored = {
        contender.name: score_samples(contender, samples, manifest.input, manifest.score, progress)
        for contender in contenders
    }
    first = scored[contenders[0].name]
    labels = np.array([sample.label for sample in samples])
    masks = masks_at_map_size(samples, first.maps)
    if masks is None:
        notes.append("No pixel metrics: some anomalous pictures have no mask, or pictures differ in size.")
    metrics = {name: accuracy(one, labels, masks, scored.get(manifest.reference)) for name, one in scored.items()}
    for verdict in ("accepts", "rejects"):
        if names := [name for name, one in metrics.items() if one.one_verdict == verdict]:
            notes.append(
                f"The threshold {verdict} all {len(samples)} pictures, good and anomalous: {', '.join(names)}. Run "
                "'adedge calibrate' again, and read its warnings."
            )
    # The same pictures for all contenders, so that their maps are comparable.
    shown = telling_pictures(samples, first, [one.verdicts for one in scored.values()])
    draw = partial(heat_maps, outline=manifest.score.reduce == "max", margin=manifest.score.margin)
    sheets = {c.name: draw(samples, scored[c.name], shown, c.threshold) for c in contenders}
    return metrics, sheets, notes


def _latency_notes(frame_ms: Mapping[str, float], int8_instructions: bool) -> list[str]:
    """Notes that keep readers from drawing wrong conclusions from ONNX Runtime's latencies."""
    notes = []
    fp32, fp16, int8 = (frame_ms.get(str(EngineKey("onnxruntime", precision))) for precision in PRECISIONS)
    if fp16:
        notes.append("ONNX Runtime on a CPU computes FP16 graphs in FP32, with weights rounded to FP16.")
    if fp32 and int8 and int8 > fp32:
        processor = (
            "although this processor has INT8 instructions"
            if int8_instructions
            else "on a processor without INT8 instructions"
        )
        notes.append(
            f"INT8 takes {int8 / fp32:.2f} times as long as FP32 here, {processor}; this does not apply to GPUs."
        )
    return notes


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
