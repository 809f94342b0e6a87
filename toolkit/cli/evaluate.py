"""`adedge evaluate`: the seeds' tables, method x data set x seed."""

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
            help="What to train and test on, repeatable: a folder of data sets (MVTec AD: one for each class), one "
            "data set, or classes of a one-class set, as mnist:3, mnist:0-4 or mnist."
        ),
    ],
    results: Annotated[Path, typer.Option("--output", "-o", help="Folder for cells, tables and the picture.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: oesdn, oesdn/sdn, oesdn/ae; students (p33), students/p17, students/p65, "
            "students/multi-scale; mkd; hfr (ResNet-18), hfr/wide-resnet50-2."
        ),
    ] = "oesdn,students,mkd,hfr",
    seeds: Annotated[str, typer.Option(help="As 0,1,2 or 0-2. One seed says nothing about the spread.")] = "0",
    budget: Annotated[
        Budget, typer.Option(help="Of every training. paper: what the published values were measured with.")
    ] = "quick",
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD.NAME=VALUE",
            help="An option of a method, repeatable: hfr.weights=resnet18.pth, students.teacher=teacher.adedge, "
            "students.patches=[17,33]. Most names are those of 'adedge train METHOD --help'; an unknown one lists all.",
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of a one-class set's files.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at the same time, each in a process of its own.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each.  [default: the machine's cores / --jobs]")
    ] = None,
    device: Annotated[str, typer.Option(help="Where torch computes: cpu, cuda, cuda:1.")] = "cpu",
    amp: Annotated[bool, typer.Option("--amp", help="Train in bfloat16 what gains by it.")] = False,
    keep_bundles: Annotated[
        bool, typer.Option("--keep-bundles", help="Keep each bundle after it was measured (megabytes each).")
    ] = False,
) -> None:
    """Train and measure every method on every data set from every seed; write the tables beside published values.

    Each finished combination is kept: interrupted, or called again with more methods, data or seeds, the same command
    goes on where it was. Image AUROC always; pixel AUROC and AUPRO where the test set has masks. All good training
    pictures are trained on, as in the papers.

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
    from adedge.runtime.backends.onnxruntime import physical_cores

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
    each = threads or max(1, physical_cores() // jobs)
    settings = Settings(folder=results, root=root, device=device, threads=each, keep_bundle=keep_bundles)
    note(f"{len(tasks)} trainings, {jobs} at a time with {each} thread(s) each; what they say: {results / 'logs'}")
    try:
        with progress("evaluate") as step:
            found = measure_all(tasks, settings, jobs=jobs, progress=step)
    except KeyboardInterrupt:
        note("interrupted: the same command goes on where it was")
        raise
    for name, sentence in found.failures.items():
        warn(f"{name} failed: {sentence}")
    if found.cells:
        _write_tables(found.cells, results)
    if found.failures:
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
