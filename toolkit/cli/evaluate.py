"""`adedge evaluate`: accuracy tables over methods, data sets and seeds."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adedge.cli import app
from adedge.console import note, output, progress, warn

if TYPE_CHECKING:
    from adedge.benchmarks.evaluation.cells import Cell

Budget = Literal["quick", "paper"]


@app.command("evaluate")
def evaluate(
    data: Annotated[
        list[str],
        typer.Option(
            help="Data to train and test on, repeatable: a folder of data sets (as in MVTec AD, one per class), one "
            "data set, or classes of a one-class set, such as mnist:3, mnist:0-4 or mnist."
        ),
    ],
    results: Annotated[Path, typer.Option("--output", "-o", help="Folder for results, tables and plot.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: oesdn, oesdn/sdn, oesdn/ae; students (p33), students/p17, students/p65, "
            "students/multi-scale; mkd; hfr (ResNet-18), hfr/wide-resnet50-2; memory (attention), memory/nearest."
        ),
    ] = "oesdn,students,mkd,hfr",
    seeds: Annotated[
        str, typer.Option(help="Seeds, such as 0,1,2 or 0-2. A single seed does not show the spread.")
    ] = "0",
    budget: Annotated[
        Budget, typer.Option(help="Training budget; paper is the budget of the published values.")
    ] = "quick",
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD.NAME=VALUE",
            help="Option of a method, repeatable: hfr.weights=resnet18.pth, students.teacher=teacher.adedge, "
            "students.patches=[17,33]. Most are named as in 'adedge train METHOD --help'; an unknown name lists all.",
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the files of a one-class set.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings to run in parallel, each in its own process.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads per training.  [default: physical cores / --jobs]")
    ] = None,
    device: Annotated[str, typer.Option(help="PyTorch device: cpu, cuda, cuda:1.")] = "cpu",
    amp: Annotated[bool, typer.Option("--amp", help="Train in bfloat16 where it is faster.")] = False,
    keep_bundles: Annotated[
        bool, typer.Option("--keep-bundles", help="Keep each bundle after measuring it (several megabytes each).")
    ] = False,
) -> None:
    """Train and measure methods on data sets with several seeds, and tabulate them next to published values.

    Finished combinations are kept: to continue after an interruption, or to add methods, data or seeds, run the command
    again. Reports image AUROC, and pixel AUROC and AUPRO if the test set has masks. Trains on all good training
    pictures, as the papers do.

    Examples: `adedge evaluate --data mvtec_ad --methods hfr,mkd --seeds 0-2 --jobs 2 -o results`, and
    `adedge evaluate --data mnist:0-9 --root DATA --methods oesdn,oesdn/sdn,oesdn/ae --budget paper -o results`
    """
    from adedge.benchmarks import plots
    from adedge.benchmarks.evaluation.evaluate import evaluate as measure_all
    from adedge.benchmarks.evaluation.measure import Settings
    from adedge.benchmarks.evaluation.tasks import (
        columns_from,
        parse_numbers,
        parse_options,
        parse_systems,
        tasks_from,
    )
    from adedge.methods import require_torch
    from adedge.processors import physical_cores

    require_torch()
    plots.require_matplotlib()
    systems = parse_systems(methods)
    tasks = tasks_from(
        systems,
        columns_from(data),
        parse_numbers(seeds, "--seeds"),
        budget=budget,
        options=parse_options(option or (), systems),
        amp=amp,
    )
    threads_per_job = threads or max(1, physical_cores() // jobs)
    settings = Settings(folder=results, root=root, device=device, threads=threads_per_job, keep_bundle=keep_bundles)
    note(f"{len(tasks)} trainings, {jobs} at a time with {threads_per_job} thread(s) each; logs in {results / 'logs'}")
    try:
        with progress("evaluate") as step:
            evaluation = measure_all(tasks, settings, jobs=jobs, progress=step)
    except KeyboardInterrupt:
        note("interrupted: run the same command again to continue")
        raise
    for name, message in evaluation.failures.items():
        warn(f"{name} failed: {message}")
    if evaluation.cells:
        _write_tables(evaluation.cells, results)
    if evaluation.failures:
        raise typer.Exit(1)


def _write_tables(cells: Sequence[Cell], results: Path) -> None:
    """As Markdown, which is printed as well, as CSV and as a picture."""
    from adedge.benchmarks import plots
    from adedge.benchmarks.evaluation.cells import METRICS
    from adedge.benchmarks.evaluation.tables import csv_text, markdown, tables_from

    text = markdown(cells, shlex.join(["adedge", *sys.argv[1:]]))
    (results / "evaluation.md").write_text(text, encoding="utf-8")
    (results / "evaluation.csv").write_text(csv_text(cells), encoding="utf-8")
    (results / "evaluation.png").write_bytes(plots.seed_tables(tables_from(cells), METRICS))
    output.print(text, markup=False, soft_wrap=True)
    note(f"wrote {results / 'evaluation.md'}, .csv and .png")
