"""Method x data set x seed: train each combination, measure it on the test set, keep what was measured.

    results/
      cells/<method>.<data set>.<seed>.json   one finished combination: found there, it is not trained again
      logs/<the same>.log                     what its process said
      bundles/<the same>.adedge               its bundle, while it is in work, or kept if asked for

Every cell is a process of its own (this module, with a `Request` on its standard input): cells run beside each other
with the threads they were given, and one that fails takes no other with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, ValidationError

from adedge.benchmarks.published import class_of
from adedge.bundle import Bundle
from adedge.console import note, progress
from adedge.data.datasets import Dataset, load_dataset
from adedge.data.labelled_sets import CLASSES, SETS
from adedge.data.layouts import classes_in, found_in
from adedge.errors import AdedgeError, DataError, UsageError
from adedge.progress import Progress
from adedge.specs import Record

METRICS: Mapping[str, str] = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}

# What can be asked for: "<method>/<variant>", with the options that choose it. A method's first is its default.
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "oesdn/oe-sdn": {"variant": "oe-sdn"},
    "oesdn/sdn": {"variant": "sdn"},
    "oesdn/ae": {"variant": "ae"},
    "students/p33": {"patches": [33]},
    "students/p17": {"patches": [17]},
    "students/p65": {"patches": [65]},
    "students/multi-scale": {"patches": [17, 33, 65]},
    "mkd/vgg16": {},
    "hfr/resnet18": {"encoder": "resnet18"},
    "hfr/wide-resnet50-2": {"encoder": "wide-resnet50-2"},
}
POLL_S = 0.1  # how often running cells are looked after
BATCH = 8  # pictures at once while measuring


class Column(Record):
    """A data set, ``data`` as `load_dataset` takes it: class ``name`` of the ``collection`` that a table is about."""

    collection: str
    name: str
    data: str


class Task(Record):
    """One cell: ``system`` of `SYSTEMS`, what it is trained with, on ``column``, from ``seed``."""

    system: str
    options: dict[str, Any]
    column: Column
    seed: int
    amp: bool = False

    @property
    def stem(self) -> str:
        """What the cell's files are called."""
        return f"{self.system.replace('/', '-')}.{self.column.collection}.{self.column.name}.{self.seed}"


class Request(Record):
    """A task with what does not change its result: where things lie, and with what it is computed."""

    task: Task
    folder: Path
    root: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    keep_bundle: bool = False


class Measured(Record):
    """A metric with its interval (95%, bootstrap over test pictures)."""

    value: float
    low: float
    high: float


class Cell(Record):
    """What a task gave, with what is needed to repeat it.

    ``system`` is that of the trained bundle, and ``known`` the published collection and class that the data is, for the
    values to compare with. ``training_s`` is None where the training was resumed.
    """

    task: Task
    system: str
    known: tuple[str, str] | None
    metrics: dict[str, Measured]
    pictures: int
    budget: str
    data_digest: str
    versions: dict[str, str]
    machine: dict[str, str]
    training_s: float | None
    measuring_s: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Finished cells, and a sentence for each task that failed."""

    cells: tuple[Cell, ...]
    failures: dict[str, str]


# --- what is asked for ---------------------------------------------------------------------------------------------


def parse_systems(text: str) -> tuple[str, ...]:
    """ "oesdn,oesdn/ae" -> ("oesdn/oe-sdn", "oesdn/ae"). Raises `UsageError` naming the known ones."""
    chosen = []
    for part in text.split(","):
        name = part.strip()
        found = next((system for system in SYSTEMS if name in (system, system.partition("/")[0])), None)
        if found is None:
            raise UsageError(f"unknown method '{name}': choose from {', '.join(SYSTEMS)}")
        chosen.append(found)
    return tuple(dict.fromkeys(chosen))


def parse_numbers(text: str, what: str) -> tuple[int, ...]:
    """ "0,3-5" -> (0, 3, 4, 5). Raises `UsageError`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"{what}: give '{text}' as numbers, 0,1,2 or 0-2")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(dict.fromkeys(numbers))


def columns_from(texts: Sequence[str]) -> tuple[Column, ...]:
    """The data sets that each --data stands for.

    "mnist" and "mnist:0-9" are ten, a folder of MVTec AD's classes as many as it has, anything else one, of a
    collection called like its folder's parent. Raises `DataError` where a folder does not exist or has no test
    pictures, `UsageError` where two data sets would share their files.
    """
    found: dict[tuple[str, str], Column] = {}
    for text in texts:
        for column in _columns(text):
            other = found.setdefault((column.collection, column.name), column)
            if other != column:
                raise UsageError(f"{other.data} and {column.data} are called the same: rename one of the folders")
    return tuple(found.values())


def _columns(data: str) -> list[Column]:
    scheme, colon, chosen = data.partition(":")
    if scheme in SETS and not Path(data).exists():
        numbers = parse_numbers(chosen, data) if colon else range(CLASSES)
        return [Column(collection=scheme, name=str(number), data=f"{scheme}:{number}") for number in numbers]
    path = Path(data)
    if path.is_dir() and not (path / "train").is_dir() and (classes := classes_in(path)):
        return [Column(collection=path.resolve().name, name=one.name, data=str(one)) for one in classes]
    if not found_in(path).test:
        raise DataError(f"{data} has no test pictures, so nothing can be measured: see docs/data.md for the layouts")
    whole = path.resolve()
    return [Column(collection=whole.parent.name, name=whole.name if whole.is_dir() else whole.stem, data=data)]


def parse_options(texts: Sequence[str], systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """["hfr.iterations=400"] -> {"hfr": {"iterations": 400}}. Values are JSON where they can be, else text.

    Raises `UsageError` for an option that its method does not have, before anything is trained.
    """
    from adedge.methods import method_named

    methods = {system.partition("/")[0] for system in systems}
    options: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for text in texts:
        key, equals, value = text.partition("=")
        method, dot, name = key.partition(".")
        if not equals or not dot or not name:
            raise UsageError(f"--option '{text}': write METHOD.NAME=VALUE, for example hfr.iterations=400")
        if method not in methods:
            raise UsageError(f"--option '{text}': {method} is not among the methods, {', '.join(sorted(methods))}")
        name = name.replace("-", "_")
        known = cast(type[BaseModel], method_named(method)).model_fields
        if name not in known:
            raise UsageError(f"--option '{text}': {method} has no option '{name}': choose from {', '.join(known)}")
        try:
            options[method][name] = json.loads(value)
        except ValueError:
            options[method][name] = value
    return options


def tasks_from(
    systems: Sequence[str],
    columns: Sequence[Column],
    seeds: Sequence[int],
    *,
    budget: str,
    options: Mapping[str, Mapping[str, Any]],
    amp: bool = False,
) -> list[Task]:
    """Every combination, whole tables of one seed after another; ``options`` by method, see `parse_options`."""
    return [
        Task(
            system=system,
            options={"budget": budget, **SYSTEMS[system], **options.get(system.partition("/")[0], {})},
            column=column,
            seed=seed,
            amp=amp,
        )
        for seed in seeds
        for column in columns
        for system in systems
    ]


# --- all cells -----------------------------------------------------------------------------------------------------


def evaluate(
    tasks: Sequence[Task],
    folder: Path,
    *,
    root: Path | None = None,
    device: str = "cpu",
    jobs: int = 1,
    threads: int | None = None,
    keep_bundles: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure all tasks that ``folder`` has no cell of, ``jobs`` at a time with ``threads`` each.

    Ctrl-C lets every running training save its checkpoint; the same call goes on from there. Raises `UsageError` where
    a cell was measured with other options.
    """
    for name in ("cells", "logs", "bundles"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    cells = {task.stem: cell for task in tasks if (cell := finished(folder, task)) is not None}
    failures: dict[str, str] = {}
    waiting = [task for task in tasks if task.stem not in cells]
    running: dict[str, tuple[Task, subprocess.Popen[bytes]]] = {}

    def report(text: str) -> None:
        if progress is not None:
            progress(len(cells) + len(failures), len(tasks), text)

    report(f"{len(cells)} found" if cells else "")
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                request = Request(
                    task=task, folder=folder, root=root, device=device, threads=threads, keep_bundle=keep_bundles
                )
                running[task.stem] = task, _started(request)
            for stem, (task, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[stem]
                cell = finished(folder, task)
                if cell is None:
                    failures[stem] = _last_line(folder / "logs" / f"{stem}.log", process.returncode)
                else:
                    cells[stem] = cell
                report(stem)
            time.sleep(POLL_S)
    finally:
        # Of their own sessions, they do not see the terminal's Ctrl-C: each gets one signal, and time to save.
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return Evaluation(cells=tuple(cells[task.stem] for task in tasks if task.stem in cells), failures=failures)


def finished(folder: Path, task: Task) -> Cell | None:
    """The cell of a task, None where it is not measured yet. Raises `UsageError` where it is that of another task."""
    path = folder / "cells" / f"{task.stem}.json"
    if not path.is_file():
        return None
    try:
        cell = Cell.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no cell of this version: delete it, and it is measured again") from error
    if differing := [name for name in type(task).model_fields if getattr(task, name) != getattr(cell.task, name)]:
        raise UsageError(
            f"{path} was measured with other {' and '.join(differing)}: delete it, or choose another --output"
        )
    return cell


def _started(request: Request) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if request.threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(request.threads)
    with (request.folder / "logs" / f"{request.task.stem}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "adedge.benchmarks.evaluate"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(request.model_dump_json().encode())
    return process


def _last_line(log: Path, returncode: int) -> str:
    """Why a cell failed: what its process said last, or the signal that killed it."""
    if returncode < 0:
        return f"{signal.Signals(-returncode).name} ended its process; of SIGKILL, too little memory is the usual cause"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with {returncode} and without a word"


# --- one cell ------------------------------------------------------------------------------------------------------


def measure(request: Request) -> Cell:
    """Train the task's bundle, or take it where it is, measure it on the test set, and write its cell."""
    from adedge.methods.training import checkpoint_directory

    task = request.task
    # All training pictures are used, as in the papers: nothing is calibrated here.
    dataset = load_dataset(task.column.data, holdout=0.0, root=request.root)
    if {sample.label for sample in dataset.test} != {0, 1}:
        raise DataError(f"the test set of {task.column.data} needs good and anomalous pictures, to tell them apart")
    path = request.folder / "bundles" / f"{task.stem}.adedge"
    resumed = checkpoint_directory(path).is_dir() or path.is_dir()
    started = time.monotonic()
    bundle = _trained(request, dataset, path)
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
        machine=_machine(request),
        training_s=None if resumed else round(trained - started, 1),
        measuring_s=round(time.monotonic() - trained, 1),
    )
    _write(request.folder / "cells" / f"{task.stem}.json", cell.model_dump_json(indent=2) + "\n")
    if not request.keep_bundle:
        shutil.rmtree(path)
    return cell


def _trained(request: Request, dataset: Dataset, path: Path) -> Bundle:
    """The task's bundle: the one at ``path`` if it is just that, else trained."""
    from adedge.methods import method_named
    from adedge.methods.training import train

    task = request.task
    method = method_named(task.system.partition("/")[0]).for_dataset(dataset, **task.options)
    if (path / "bundle.json").is_file():
        bundle = Bundle.open(path)
        source = bundle.manifest.provenance
        wanted = {name: value for name, value in method.model_dump().items() if value is not None}
        if (source.options, source.seed, source.data_digest) == (
            {**wanted, "amp": task.amp},
            task.seed,
            dataset.digest,
        ):
            return bundle
    with progress(task.stem) as step:
        return train(
            method,
            dataset,
            output=path,
            seed=task.seed,
            device=request.device,
            amp=task.amp,
            threads=request.threads,
            overwrite=True,
            progress=step,
            announce=note,
        )


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


def _machine(request: Request) -> dict[str, str]:
    from adedge.benchmarks.machine import machine_facts

    return {**machine_facts(), "device": request.device, "threads": str(request.threads or "torch's choice")}


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a cell that is there is finished."""
    draft = path.with_suffix(".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def main() -> int:
    """What a cell's process does: a `Request` as JSON on standard input."""
    import cv2

    # `evaluate` ends cells by SIGTERM; a training takes either signal as the wish to save and stop.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    request = Request.model_validate_json(sys.stdin.read())
    if request.threads is not None:
        cv2.setNumThreads(request.threads)
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
