"""`adedge benchmark`: latency at three boundaries against accuracy per precision, as one report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adedge.bundle import open_bundle
from adedge.cli import app
from adedge.cli.options import RequireSignature
from adedge.console import note, output, progress, warn
from adedge.specs import Target, parse_precisions

if TYPE_CHECKING:
    from adedge.benchmarks.report import Report


@app.command("benchmark")
def benchmark(
    bundle: Annotated[Path, typer.Argument(help="The bundle whose engines are measured.")],
    data: Annotated[
        str | None, typer.Option(help="Labelled pictures (as for train); without them only latency is measured.")
    ] = None,
    target: Annotated[Target | None, typer.Option(help="Only engines of this target.  [default: all]")] = None,
    precision: Annotated[str, typer.Option(help="Only engines of these precisions.")] = "fp32,fp16,int8",
    frames: Annotated[int, typer.Option(min=20, help="Frames for the latency of each engine.")] = 200,
    batch: Annotated[
        int, typer.Option(min=1, help="Frames at once: more throughput, and each waits for the last of its batch.")
    ] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: physical cores]")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of a one-class set's files.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report.  [default: reports/ in the bundle]")
    ] = None,
    reference: Annotated[
        bool,
        typer.Option(
            help="Also run PyTorch on the pictures (of an imported model: ONNX Runtime): the reference that flips are "
            "counted against."
        ),
    ] = True,
    require_signature: RequireSignature = None,
) -> None:
    """Measure every engine of a bundle that runs on this machine, and write report.json, report.md and report.html."""
    opened = open_bundle(bundle, require_signature)
    from adedge.benchmarks.measure import BenchmarkOptions
    from adedge.benchmarks.measure import benchmark as measure
    from adedge.benchmarks.report import headline, report_files, save_report

    options = BenchmarkOptions(
        target=target,
        precisions=parse_precisions(precision),
        frames=frames,
        batch=batch,
        threads=threads,
        reference=reference,
    )
    command = shlex.join(["adedge", *sys.argv[1:]])
    with progress("benchmark") as step:
        measured = measure(opened, data, options, root=root, command=command, progress=step, notify=warn)
    report = measured.report
    if folder is None:
        with opened.edit() as draft:
            for name, text in report_files(report, measured.sheets).items():
                draft.write(f"reports/{name}", text)
        folder = bundle / "reports"
    else:
        save_report(folder, report, measured.sheets)
    _print(report)
    note(headline(report))
    note(f"wrote {folder / 'report.html'}, report.md and report.json")


def _print(report: Report) -> None:
    from rich.table import Table

    from adedge.benchmarks.report import summary

    table = Table(box=None, header_style="bold", padding=(0, 2))
    for column in ("engine", "frame p50 in ms", "AUROC", "AUPRO", "flips"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name, cells in summary(report).items():
        table.add_row(name, *cells)
    output.print(table)
    for remark in report.notes:
        note(remark, style="dim")
