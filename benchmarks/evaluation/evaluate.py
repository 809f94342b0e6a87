"""Run the tasks of an evaluation in parallel, each in a separate process.

Each process has its own number of threads, and a failure does not affect the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adedge.benchmarks.evaluation.cells import Cell, finished
from adedge.benchmarks.evaluation.measure import Request, Settings
from adedge.benchmarks.evaluation.tasks import Task
from adedge.progress import Progress

POLL_S = 0.1  # interval at which running processes are polled


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Finished cells, and the reason why a task failed by its stem."""

    cells: tuple[Cell, ...]
    failures: dict[str, str]


def evaluate(
    tasks: Sequence[Task], settings: Settings, *, jobs: int = 1, progress: Progress | None = None
) -> Evaluation:
    """Run the tasks that have no cell in the settings' folder yet, ``jobs`` at a time.

    On Ctrl-C every running training saves a checkpoint, from which the same call resumes. Raises `UsageError` if a cell
    was measured with other options.
    """
    folder = settings.folder
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
                running[task.stem] = task, _start(Request(task=task, settings=settings))
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
        # In sessions of their own, the processes do not receive the terminal's Ctrl-C: each gets one signal and saves.
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return Evaluation(cells=tuple(cells[task.stem] for task in tasks if task.stem in cells), failures=failures)


def _start(request: Request) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    settings = request.settings
    if settings.threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(settings.threads)
    with (settings.folder / "logs" / f"{request.task.stem}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "adedge.benchmarks.evaluation.measure"],
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
    """Why a task failed: the last line of its process's log, or the signal that killed it."""
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return f"its process was ended by {name}" + ("; the machine may lack memory" if name == "SIGKILL" else "")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process exited with code {returncode} and printed nothing"
