"""Cells as they are stored: found again, and refused where they are another task's or damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adedge.benchmarks.evaluation.cells import finished
from adedge.benchmarks.evaluation.tasks import Column
from adedge.errors import UsageError

Maker = Callable[..., Any]  # a fixture of conftest.py that makes what it is called


def test_cells_of_other_options_and_damaged_ones_are_named(tmp_path: Path, task: Maker, made_cell: Maker) -> None:
    column = Column(collection="parts", name="plate", data="parts/plate")
    cell = made_cell(task(column), {"image_auroc": 0.9})
    (tmp_path / "cells").mkdir()
    path = tmp_path / "cells" / f"{cell.task.stem}.json"
    path.write_text(cell.model_dump_json())
    assert finished(tmp_path, cell.task) == cell
    with pytest.raises(UsageError, match="was measured with other options: delete it"):
        finished(tmp_path, task(column, batch=4))
    path.write_text("{")
    with pytest.raises(UsageError, match="is no cell of this version"):
        finished(tmp_path, cell.task)
