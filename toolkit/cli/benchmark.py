"""`adedge benchmark`: a report of latency, at three boundaries, and accuracy for every engine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adedge.bundle import open_bundle
from adedge.cli import app
from adedge.cli.options import Expect, RequireSignature
from adedge.cli.storage import check_folder, is_writable
from adedge.console import note, output, progress, warn
from adedge.errors import BundleError, DataError
from adedge.processors import limit_opencv
from adedge.specs import Target, parse_precisions

if TYPE_CHECKING:
    from adedge.benchmarks.report import Report


@app.command("benchmark")
def benchmark(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle with the engines to measure.")],
    data: Annotated[
        str | None, typer.Option(help="Labelled pictures (as for train). Without them, only latency is measured.")
    ] = None,
    target: Annotated[Target | None, typer.Option(help="Measure only engines of this target.  [default: all]")] = None,
    precision: Annotated[str, typer.Option(help="Measure only engines of these precisions.")] = "fp32,fp16,int8",
    frames: Annotated[int, typer.Option(min=20, help="Frames to time for each engine.")] = 200,
    batch: Annotated[
        int,
        typer.Option(
            min=1, help="Frames per batch. Larger batches raise throughput, but each frame waits for its whole batch."
        ),
    ] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: physical cores]")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the files of a one-class set.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the report.  [default: reports/ in the bundle, unless it is signed]"
        ),
    ] = None,
    reference: Annotated[
        bool,
        typer.Option(
            help="Also run the reference on the pictures, to count flips against it: PyTorch, or ONNX Runtime for an "
            "imported model."
        ),
    ] = True,
    require_signature: RequireSignature = None,
    expect: Expect = None,
) -> None:
    """Measure latency and accuracy of every engine that runs on this machine, and write a report.

    Writes report.json, report.md and report.html. Writing into a signed bundle would remove its signature: without -o,
    its report is only printed.
    """
    limit_opencv()
    opened = open_bundle(bundle, require_signature, expect)
    signed = opened.signature is not None
    if folder is not None:
        check_folder(folder, "the report", DataError)
    elif signed:
        warn(f"{bundle} is signed, so the report is printed and not stored in it: give -o FOLDER to write it")
    elif not is_writable(opened):
        raise BundleError(f"{bundle} cannot be written by this user: give a folder for the report with -o")
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
        result = measure(opened, data, options, root=root, command=command, progress=step, notify=warn)
    report = result.report
    _print(report)
    note(headline(report))
    if folder is not None:
        save_report(folder, report, result.sheets)
    elif signed:
        return
    else:
        with opened.edit() as draft:
            for name, text in report_files(report, result.sheets).items():
                draft.write(f"reports/{name}", text)
        folder = bundle / "reports"
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
