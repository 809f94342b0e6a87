"""Tables of cells with known values."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest

from adedge.benchmarks.evaluation.cells import METRICS, Cell
from adedge.benchmarks.evaluation.tables import csv_text, markdown, tables_from
from adedge.benchmarks.evaluation.tasks import Column
from adedge.benchmarks.plots import seed_tables

Maker = Callable[..., Any]  # a fixture of conftest.py that makes what it is called


def test_tables_are_mean_and_deviation_over_seeds_beside_published_values(task: Maker, made_cell: Maker) -> None:
    def cell(digit: int, seed: int, value: float) -> Cell:
        column = Column(collection="mnist", name=str(digit), data=f"mnist:{digit}")
        made = task(column, "oesdn/oe-sdn", seed)
        return made_cell(made, {"image_auroc": value}, known=("mnist", str(digit)))

    cells = [cell(0, 0, 0.90), cell(1, 0, 0.80), cell(0, 1, 0.94), cell(1, 1, 0.86), cell(0, 2, 0.98)]
    (table,) = tables_from(cells)
    assert table.columns == ("0", "1", "mean")
    first, mean = table.entries["oesdn/oe-sdn", "0"], table.entries["oesdn/oe-sdn", "mean"]
    assert (first.mean, first.std) == (pytest.approx(0.94), pytest.approx(0.04))
    # Seed 2 lacks a class; published: 0.984 and 0.998, whose mean is 0.991.
    assert mean.values == (pytest.approx(0.85), pytest.approx(0.90))
    assert mean.published is not None
    assert mean.published[0] == pytest.approx(0.991)
    assert first.interval is None
    (single,) = tables_from(cells[:1])
    assert single.entries["oesdn/oe-sdn", "0"].interval == (0, 1)
    assert "| `oesdn/oe-sdn` | 0.900 [0.000, 1.000] (0.984) |" in markdown(cells[:1], "adedge evaluate")
    assert "One seed" in markdown(cells[:1], "adedge evaluate")
    text = markdown(cells, "adedge evaluate")
    assert "| `oesdn/oe-sdn` | 0.940 ± 0.040 (0.984) | 0.830 ± 0.042 of 2 seeds (0.998) |" in text
    assert "a fraction of the papers' training" in text
    rows = list(csv.DictReader(io.StringIO(csv_text(cells))))
    assert rows[0]["source"] == "[1] table 1"
    decoded = cv2.imdecode(np.frombuffer(seed_tables([table], METRICS), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None


def test_tables_keep_collections_and_metrics_apart(task: Maker, made_cell: Maker) -> None:
    cells = [
        made_cell(task(Column(collection=collection, name="bottle", data=collection)), metrics)
        for collection, metrics in (("mvtec", {"image_auroc": 0.9, "aupro": 0.8}), ("own", {"image_auroc": 0.7}))
    ]
    found = [(table.collection, table.metric, table.columns) for table in tables_from(cells)]
    assert found == [
        ("mvtec", "image_auroc", ("bottle",)),
        ("mvtec", "aupro", ("bottle",)),
        ("own", "image_auroc", ("bottle",)),
    ]
