"""`adedge export`: write the networks as ONNX graphs, and compare the graphs with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from adedge.bundle import Bundle
from adedge.cli import app
from adedge.console import note, output, progress, warn
from adedge.escaping import command_line
from adedge.manifest import Graph
from adedge.specs import PRECISIONS, parse_precisions


@app.command("export")
def export_command(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Bundle written by 'adedge train' or 'adedge import'.")
    ],
    precision: Annotated[
        str,
        typer.Option(metavar="LIST", help="Graphs to write besides FP32; INT8 requires an earlier 'adedge calibrate'."),
    ] = ",".join(PRECISIONS),
    with_scoring: Annotated[
        bool,
        typer.Option(
            "--with-scoring", help="Also write scored.*.onnx: frame in, map and score out, for any ONNX runtime."
        ),
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(min=17, help="ONNX opset of the graphs.  [default: 17, the newest that TensorRT 8.5 parses]"),
    ] = None,
) -> None:
    """Write ONNX graphs in each precision, and compare them with PyTorch on the golden frames.

    A graph that deviates too far from PyTorch, or cannot be made, is not written, and the exit code is 1; the others
    are. Without the FP32 graph, the source of the others, the bundle stays unchanged.
    """
    from adedge.export.graphs import PartialExport, export_graphs

    precisions = parse_precisions(precision)
    failure = None
    with progress("export") as step:
        try:
            bundle, notes = export_graphs(
                Bundle.open(path), precisions, opset=opset, with_scoring=with_scoring, progress=step
            )
        except PartialExport as error:
            failure, bundle, notes = error, error.bundle, error.notes
    print_graphs(bundle.manifest.graphs)
    for message in notes:
        warn(message)
    if failure is not None:
        raise failure
    if "model.int8" in bundle.manifest.graphs:
        note(f"next: {command_line('build-engine', path, '--target', 'onnxruntime', '--precision', 'fp32')}")
    else:
        calibrate = command_line("calibrate", path, "PICTURES")
        note(f"INT8 graphs and decision thresholds need pictures of good parts; next: {calibrate}")


def print_graphs(graphs: Mapping[str, Graph]) -> None:
    """Print a table of each graph's deviation from PyTorch, and the notes on the graphs."""
    table = Table("graph", "opset", "map error", "score error", "flips", "AUROC change")
    for stem, graph in graphs.items():
        difference = graph.difference
        if difference is None:
            continue
        table.add_row(
            stem,
            str(graph.opset),
            f"{difference.map_error:.1e}",
            f"{difference.score_error:.1e}",
            "unknown" if difference.flips is None else f"{difference.flips} of {difference.frames}",
            "unknown" if difference.auroc_change is None else f"{difference.auroc_change:+.4f}",
        )
    output.print(table)
    for text, stems in _stems_by_note(graphs).items():
        note(f"{', '.join(stems)}: {text}")


def _stems_by_note(graphs: Mapping[str, Graph]) -> dict[str, list[str]]:
    """Each note once, with the graphs it applies to."""
    stems: dict[str, list[str]] = {}
    for stem, graph in graphs.items():
        for text in graph.notes:
            stems.setdefault(text, []).append(stem)
    return stems
