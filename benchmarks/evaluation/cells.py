"""Stored results: one JSON file, a cell, for each finished task.

results/
  cells/<method>.<data set>.<seed>.json   a cell; if it exists, its task is not run again
  logs/<the same>.log                     output of the task's process
  bundles/<the same>.adedge               the task's bundle, deleted when it is finished unless the settings keep it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from adedge.benchmarks.evaluation.tasks import Task
from adedge.errors import UsageError
from adedge.files import write_whole
from adedge.json_files import parse_json
from adedge.limits import JSON_BYTES, read_file
from adedge.specs import Record

METRICS: Mapping[str, str] = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}


class Measured(Record):
    """A metric with its interval (95%, bootstrap over test pictures)."""

    value: float
    low: float
    high: float


class Cell(Record):
    """The result of a task, with everything required to repeat it.

    ``system`` is that of the trained bundle. ``known`` is the published (collection, class) that the data is recognised
    as, to look up the values to compare with. ``training_s`` is None if the training was resumed.
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


def finished(folder: Path, task: Task) -> Cell | None:
    """The cell of a task, or None if there is none yet. Raises `UsageError` if its file belongs to another task."""
    path = folder / "cells" / f"{task.stem}.json"
    if not path.is_file():
        return None
    try:
        data = read_file(path, JSON_BYTES, UsageError)
        what, remedy = f"{path} is no cell of this version: it", "delete it, and it is measured again"
        cell = Cell.model_validate(parse_json(data, what, UsageError, remedy))
    except (ValidationError, OSError) as error:
        raise UsageError(f"{path} is no cell of this version: delete it, and it is measured again") from error
    if differences := [name for name in type(task).model_fields if getattr(task, name) != getattr(cell.task, name)]:
        raise UsageError(
            f"{path} was measured with other {' and '.join(differences)}: delete it, or choose another --output"
        )
    return cell


def store(folder: Path, cell: Cell) -> None:
    """Write a cell, atomically, to the file that `finished` reads."""
    write_whole(folder / "cells" / f"{cell.task.stem}.json", cell.model_dump_json(indent=2) + "\n")
