"""Run one task: train its bundle, measure it on the test set, store the cell.

    python -m adedge.benchmarks.evaluation.measure < request.json

`adedge.benchmarks.evaluation.evaluate` starts one such process per task. Standard input is a `Request` as JSON.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from adedge.benchmarks.evaluation.cells import Cell, Measured, store
from adedge.benchmarks.evaluation.published import class_of
from adedge.benchmarks.evaluation.tasks import Task
from adedge.bundle import Bundle
from adedge.console import note, progress, warn
from adedge.data.datasets import Dataset, load_dataset, trained_on
from adedge.data.folders import first_few
from adedge.errors import AdedgeError, DataError
from adedge.specs import Record

BATCH = 8  # pictures per batch while measuring


class Settings(Record):
    """Settings that do not identify a cell: folder of the results, root of the pictures, device, and so on."""

    folder: Path
    root: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    keep_bundle: bool = False


class Request(Record):
    """The input of a task's process."""

    task: Task
    settings: Settings


def measure(request: Request) -> Cell:
    """Train the task's bundle unless it exists, measure it on the test set, and store the cell.

    Raises `DataError` unless the test set has good and anomalous pictures.
    """
    from adedge.methods.training import checkpoint_directory

    task, settings = request.task, request.settings
    # Nothing is held out, because nothing is calibrated: as in the papers, training uses all pictures.
    dataset = load_dataset(task.column.data, holdout=0.0, root=settings.root)
    for sentence in dataset.skipped:
        warn(sentence)
    if known := trained_on(dataset.test, [sample.digest for sample in dataset.train]):
        warn(f"{len(known)} of the {len(dataset.test)} test pictures are training pictures too ({first_few(known)})")
    if {sample.label for sample in dataset.test} != {0, 1}:
        raise DataError(f"the test set of {task.column.data} needs good and anomalous pictures: add the missing kind")
    path = settings.folder / "bundles" / f"{task.stem}.adedge"
    resumed = checkpoint_directory(path).is_dir() or path.is_dir()
    started = time.monotonic()
    bundle = _bundle(task, settings, dataset, path)
    trained_at = time.monotonic()
    metrics = _metrics(bundle, dataset)
    cell = Cell(
        task=task,
        system=f"{bundle.manifest.method}/{bundle.manifest.variant}",
        known=class_of(dataset, task.column.name),
        metrics=metrics,
        pictures=len(dataset.test),
        budget=bundle.manifest.provenance.budget,
        data_digest=dataset.digest,
        versions=bundle.manifest.provenance.versions,
        machine=_machine(settings),
        training_s=None if resumed else round(trained_at - started, 1),
        measuring_s=round(time.monotonic() - trained_at, 1),
    )
    store(settings.folder, cell)
    if not settings.keep_bundle:
        shutil.rmtree(path)
    return cell


def _bundle(task: Task, settings: Settings, dataset: Dataset, path: Path) -> Bundle:
    """The task's bundle: the one at ``path`` if it was trained with the same options, seed and data, else a new one."""
    from adedge.methods import method_named
    from adedge.methods.training import TrainingOptions, recorded_options, train

    method = method_named(task.system.partition("/")[0]).for_dataset(dataset, **task.options)
    options = TrainingOptions(
        seed=task.seed, amp=task.amp, device=settings.device, threads=settings.threads, overwrite=True
    )
    if (path / "bundle.json").is_file():
        bundle = Bundle.open(path)
        provenance = bundle.manifest.provenance
        expected = recorded_options(method, options), options.seed, dataset.digest
        if (provenance.options, provenance.seed, provenance.data_digest) == expected:
            return bundle
    with progress(task.stem) as step:
        return train(method, dataset, output=path, options=options, progress=step, announce=note)


def _metrics(bundle: Bundle, dataset: Dataset) -> dict[str, Measured]:
    """Metrics of the reference on the test set; pixel metrics only if every anomalous picture has a mask."""
    from adedge.benchmarks.accuracy import accuracy, masks_at_map_size, score_samples
    from adedge.benchmarks.latency import Contender
    from adedge.methods import detector_function
    from adedge.runtime.backends import FunctionBackend

    manifest = bundle.manifest
    backend = FunctionBackend(detector_function(bundle), manifest.input.shape, batch=BATCH)
    contender = Contender(name=manifest.reference, backend=backend)
    with progress("measuring") as step:
        scores = score_samples(contender, dataset.test, manifest.input, manifest.score, step)
    labels = np.array([sample.label for sample in dataset.test], np.int64)
    result = accuracy(scores, labels, masks_at_map_size(dataset.test, scores.maps), None)
    metrics = {"image_auroc": Measured(value=result.auroc, low=result.auroc_low, high=result.auroc_high)}
    for name, value, interval in (
        ("pixel_auroc", result.pixel_auroc, result.pixel_auroc_interval),
        ("aupro", result.aupro, result.aupro_interval),
    ):
        if value is not None and interval is not None:
            metrics[name] = Measured(value=value, low=interval[0], high=interval[1])
    return metrics


def _machine(settings: Settings) -> dict[str, str]:
    from adedge.benchmarks.machine import machine_facts

    return {**machine_facts(), "device": settings.device, "threads": str(settings.threads or "torch's choice")}


def main() -> int:
    """Run the `Request` on standard input; return the exit code."""
    import cv2

    # `evaluate` ends processes with SIGTERM, which must unwind like Ctrl-C outside of a training, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    request = Request.model_validate_json(sys.stdin.read())
    if request.settings.threads is not None:
        cv2.setNumThreads(request.settings.threads)
    try:
        measure(request)
    except AdedgeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
