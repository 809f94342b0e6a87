"""One cell: train a task's bundle, measure it on the test set, store what was measured.

    python -m adedge.benchmarks.evaluation.measure < request.json

A process of its own for each cell: see `adedge.benchmarks.evaluation.evaluate`. It reads a `Request`.
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
from adedge.console import note, progress
from adedge.data.datasets import Dataset, load_dataset
from adedge.errors import AdedgeError, DataError
from adedge.specs import Record

BATCH = 8  # pictures at once while measuring


class Settings(Record):
    """What does not change a cell: the folder of the results, where pictures lie, and with what it is computed."""

    folder: Path
    root: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    keep_bundle: bool = False


class Request(Record):
    """What a cell's process is given."""

    task: Task
    settings: Settings


def measure(request: Request) -> Cell:
    """Train the task's bundle, or take it where it is, measure it on the test set, and write its cell."""
    from adedge.methods.training import checkpoint_directory

    task, settings = request.task, request.settings
    # All training pictures are used, as in the papers: nothing is calibrated here.
    dataset = load_dataset(task.column.data, holdout=0.0, root=settings.root)
    if {sample.label for sample in dataset.test} != {0, 1}:
        raise DataError(f"the test set of {task.column.data} needs good and anomalous pictures, to tell them apart")
    path = settings.folder / "bundles" / f"{task.stem}.adedge"
    resumed = checkpoint_directory(path).is_dir() or path.is_dir()
    started = time.monotonic()
    bundle = _trained(task, settings, dataset, path)
    trained = time.monotonic()
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
        training_s=None if resumed else round(trained - started, 1),
        measuring_s=round(time.monotonic() - trained, 1),
    )
    store(settings.folder, cell)
    if not settings.keep_bundle:
        shutil.rmtree(path)
    return cell


def _trained(task: Task, settings: Settings, dataset: Dataset, path: Path) -> Bundle:
    """The task's bundle: the one at ``path`` if it is just that, else trained."""
    from adedge.methods import method_named
    from adedge.methods.training import TrainingOptions, recorded_options, train

    method = method_named(task.system.partition("/")[0]).for_dataset(dataset, **task.options)
    options = TrainingOptions(
        seed=task.seed, amp=task.amp, device=settings.device, threads=settings.threads, overwrite=True
    )
    if (path / "bundle.json").is_file():
        bundle = Bundle.open(path)
        source = bundle.manifest.provenance
        wanted = recorded_options(method, options), options.seed, dataset.digest
        if (source.options, source.seed, source.data_digest) == wanted:
            return bundle
    with progress(task.stem) as step:
        return train(method, dataset, output=path, options=options, progress=step, announce=note)


def _metrics(bundle: Bundle, dataset: Dataset) -> dict[str, Measured]:
    """The reference's metrics on the test set: those of pixels only where all masks are known."""
    from adedge.benchmarks.accuracy import accuracy, masks_at_map_size, score_samples
    from adedge.benchmarks.latency import Contender
    from adedge.methods import detector_function
    from adedge.runtime.backends import FakeBackend

    manifest = bundle.manifest
    backend = FakeBackend(detector_function(bundle), manifest.input.shape, batch=BATCH)
    contender = Contender(name=manifest.reference, backend=backend)
    with progress("measuring") as step:
        scored = score_samples(contender, dataset.test, manifest.input, manifest.score, step)
    labels = np.array([sample.label for sample in dataset.test], np.int64)
    found = accuracy(scored, labels, masks_at_map_size(dataset.test, scored.maps), None)
    metrics = {"image_auroc": Measured(value=found.auroc, low=found.auroc_low, high=found.auroc_high)}
    for name, value, interval in (
        ("pixel_auroc", found.pixel_auroc, found.pixel_auroc_interval),
        ("aupro", found.aupro, found.aupro_interval),
    ):
        if value is not None and interval is not None:
            metrics[name] = Measured(value=value, low=interval[0], high=interval[1])
    return metrics


def _machine(settings: Settings) -> dict[str, str]:
    from adedge.benchmarks.machine import machine_facts

    return {**machine_facts(), "device": settings.device, "threads": str(settings.threads or "torch's choice")}


def main() -> int:
    """What a cell's process does: a `Request` as JSON on standard input."""
    import cv2

    # `evaluate` ends processes by SIGTERM; a training takes either signal as the wish to save and stop.
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
