"""`adedge export`: from trained networks to ONNX graphs that were compared with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from adedge.bundle import Bundle, Graph
from adedge.cli import app
from adedge.console import note, output, progress, warn
from adedge.specs import PRECISIONS, parse_precisions


@app.command("export")
def export_command(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle that 'adedge train' wrote.")],
    precision: Annotated[
        str,
        typer.Option(metavar="LIST", help="Which graphs to write beside FP32; INT8 needs 'adedge calibrate' once."),
    ] = ",".join(PRECISIONS),
    with_scoring: Annotated[
        bool,
        typer.Option("--with-scoring", help="Also write scored.*.onnx: frame in, map and score out, for any runtime."),
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(min=17, help="ONNX opset of the graphs.  [default: 17, the newest that TensorRT 8.5 parses]"),
    ] = None,
) -> None:
    """Write ONNX graphs of explicit precision, each compared with PyTorch on the golden frames.

    A graph that is too far from PyTorch is refused, and the bundle stays as it was.
    """
    from adedge.export.graphs import export_graphs

    precisions = parse_precisions(precision)
    with progress("export") as step:
        bundle, notes = export_graphs(
            Bundle.open(path), precisions, opset=opset, with_scoring=with_scoring, progress=step
        )
    print_graphs(bundle.manifest.graphs)
    for sentence in notes:
        warn(sentence)
    if "model.int8" in bundle.manifest.graphs:
        note(f"next: adedge build-engine {path} --target onnxruntime --precision fp32")
    else:
        note(f"next: adedge calibrate {path} PICTURES (INT8 graphs and decision thresholds)")


def print_graphs(graphs: Mapping[str, Graph]) -> None:
    """One row a graph, how far it is from PyTorch; below, what is to be known about it."""
    table = Table("graph", "opset", "map error", "score error", "flips", "AUROC change")
    for stem, graph in graphs.items():
        found = graph.difference
        if found is None:
            continue
        table.add_row(
            stem,
            str(graph.opset),
            f"{found.map_error:.1e}",
            f"{found.score_error:.1e}",
            "unknown" if found.flips is None else f"{found.flips} of {found.frames}",
            "unknown" if found.auroc_change is None else f"{found.auroc_change:+.4f}",
        )
    output.print(table)
    for sentence, stems in _by_note(graphs).items():
        note(f"{', '.join(stems)}: {sentence}")


def _by_note(graphs: Mapping[str, Graph]) -> dict[str, list[str]]:
    """Each note once, with the graphs that it is about."""
    found: dict[str, list[str]] = {}
    for stem, graph in graphs.items():
        for sentence in graph.notes:
            found.setdefault(sentence, []).append(stem)
    return found
