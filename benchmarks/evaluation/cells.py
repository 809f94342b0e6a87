"""What was measured, as it is stored: one JSON file for each finished task.

results/
  cells/<method>.<data set>.<seed>.json   a cell: found there, its task is not measured again
  logs/<the same>.log                     what its process said
  bundles/<the same>.adedge               its bundle, while it is in work, or kept if asked for
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from adedge.benchmarks.evaluation.tasks import Task
from adedge.errors import UsageError
from adedge.files import write_whole
from adedge.specs import Record

METRICS: Mapping[str, str] = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}


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


def store(folder: Path, cell: Cell) -> None:
    """Write a cell where `finished` finds it, whole or not at all."""
    write_whole(folder / "cells" / f"{cell.task.stem}.json", cell.model_dump_json(indent=2) + "\n")
