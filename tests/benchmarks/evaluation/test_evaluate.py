"""All cells: side by side in processes of their own, resumed, and what happens when one fails."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from adedge.benchmarks.evaluation.evaluate import evaluate
from adedge.benchmarks.evaluation.measure import Settings
from adedge.benchmarks.evaluation.tasks import columns_from, tasks_from
from adedge.cli import app, inspect
from adedge.cli import evaluate as command

Maker = Callable[..., Any]  # a fixture of conftest.py that makes what it is called


def test_finished_cells_are_not_measured_again_and_failed_ones_take_no_others_with_them(
    root: Path, tmp_path: Path, write_class: Maker
) -> None:
    data = write_class(tmp_path / "plate")
    columns = [*columns_from(["mnist:3-4"]), columns_from([str(data)])[0]]
    options = {"oesdn": {"ae_iterations": 3, "batch": 2, "size": 30}}
    tasks = tasks_from(["oesdn/ae"], columns, [0], budget="quick", options=options)
    results = tmp_path / "results"
    found = evaluate(tasks, Settings(folder=results, root=root, threads=1), jobs=3)
    assert [cell.task.column.name for cell in found.cells] == ["3", "4"]
    ((failed, sentence),) = found.failures.items()
    assert failed.endswith(".plate.0")
    assert "size 30 is not a multiple of 16" in sentence

    written = {path: path.read_bytes() for path in (results / "cells").iterdir()}
    again = evaluate(tasks[:2], Settings(folder=results, root=root))
    assert again.cells == found.cells
    assert {path: path.read_bytes() for path in (results / "cells").iterdir()} == written
    assert not list((results / "bundles").iterdir())


def test_an_interrupted_evaluation_leaves_a_checkpoint_and_no_cell(root: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "adedge", "evaluate", "--data", "mnist:3", "--root", str(root), "--threads", "1"),
        *("-o", str(tmp_path), "--methods", "oesdn/ae", "--option", "oesdn.ae_iterations=1000000"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "logs" / "oesdn-ae.mnist.3.0.log"
    deadline = time.monotonic() + 120
    while not (log.is_file() and "loss" in log.read_text()):  # from the first iteration on there is something to save
        assert time.monotonic() < deadline, log.read_text() if log.is_file() else "no log"
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "run the same command again" in " ".join(said.split())
    assert (tmp_path / "bundles" / "oesdn-ae.mnist.3.0.adedge.checkpoint").is_dir()
    assert not list((tmp_path / "cells").iterdir())


def test_the_command_writes_tables_and_a_picture(root: Path, tmp_path: Path) -> None:
    assert {command.__name__, inspect.__name__} <= {
        one.callback.__module__ for one in app.registered_commands if one.callback
    }
    options = ["--root", str(root), "--methods", "oesdn/ae", "--seeds", "0-1", "--jobs", "2", "--threads", "1"]
    fast = ["--option", "oesdn.ae-iterations=3"]
    result = CliRunner().invoke(app, ["evaluate", "--data", "mnist:3,5", "-o", str(tmp_path), *options, *fast])
    assert result.exit_code == 0, result.output
    assert "| `oesdn/ae` |" in result.stdout
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").read_text().splitlines()))
    assert [(row["class"], row["seeds"]) for row in rows] == [("3", "2"), ("5", "2"), ("mean", "2")]
    cells = [json.loads(path.read_text()) for path in (tmp_path / "cells").iterdir()]
    threes = [cell["metrics"]["image_auroc"]["value"] for cell in cells if cell["task"]["column"]["name"] == "3"]
    assert float(rows[0]["mean"]) == pytest.approx(np.mean(threes), abs=1e-6)
    assert cv2.imread(str(tmp_path / "evaluation.png")) is not None
    assert "# Evaluation" in (tmp_path / "evaluation.md").read_text()
