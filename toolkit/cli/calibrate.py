"""`adedge calibrate`: INT8 graphs and decision thresholds from pictures of good parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from adedge.bundle import Bundle, Manifest
from adedge.cli import app, finite
from adedge.cli.export import print_graphs
from adedge.console import note, output, progress, warn
from adedge.specs import PRECISIONS, parse_precisions

RangeMethod = Literal["entropy", "percentile", "minmax"]
FALSE_ALARM_RATE = 0.01


@app.command("calibrate")
def calibrate_command(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle that 'adedge train' wrote.")],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Good pictures: a folder, an MVTec-AD layout or a one-class set, as for 'adedge train'. Pictures "
            "that were trained on serve for INT8, all others for thresholds.",
        ),
    ],
    precision: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="What to make graphs and thresholds of, beside FP32. Leave FP16 out where a network's values exceed "
            "its range.",
        ),
    ] = ",".join(PRECISIONS),
    method: Annotated[
        RangeMethod, typer.Option(help="How large a value INT8 must still represent; the rest is clipped.")
    ] = "minmax",
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            callback=finite,
            help="Share of good pictures that may be called anomalous, at most.  [default: 0.01; with "
            "--thresholds-only that of the bundle]",
        ),
    ] = None,
    thresholds_only: Annotated[
        bool,
        typer.Option(
            "--thresholds-only",
            help="Fit thresholds for the bundle's engines that run here, and leave graphs and INT8 as they are: what a "
            "device does after 'adedge build-engine', without PyTorch.",
        ),
    ] = False,
    max_score_noise: Annotated[
        float,
        typer.Option(
            min=0,
            callback=finite,
            help="What INT8 may do to scores, as a fraction of the spread of good pictures' scores.",
        ),
    ] = 0.05,
    max_map_error: Annotated[
        float | None,
        typer.Option(min=0, callback=finite, help="What INT8 may do to a map value, in raw map units.  [default: any]"),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of a one-class set's files.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse unreadable pictures instead of skipping them with a warning.")
    ] = False,
) -> None:
    """Fit INT8 ranges, score normalisation and one decision threshold for each precision on good pictures alone.

    A threshold promises: a further good picture is called anomalous with probability at most --false-alarm-rate. For
    that, 1 / rate - 1 good pictures are needed that the detector was not trained on (99 for 0.01, 19 for 0.05).
    """
    from adedge.data.datasets import load_dataset
    from adedge.export.calibrate import calibrate, fit_thresholds

    precisions = parse_precisions(precision)
    bundle = Bundle.open(path)
    dataset = load_dataset(data, strict=strict, root=root)
    for sentence in dataset.skipped:
        warn(sentence)
    if thresholds_only:
        with progress("calibrate") as step:
            result = fit_thresholds(bundle, dataset, false_alarm_rate=false_alarm_rate, progress=step)
        note(f"{len(result.parts.thresholds)} good pictures; {result.parts.trained_on} others were trained on")
        output.print(_thresholds(result.bundle.manifest))
        for sentence in result.notes:
            warn(sentence)
        note(f"next: adedge prove {path}")
        return
    from adedge.calibration.sensitivity import Limits

    with progress("calibrate") as step:
        result = calibrate(
            bundle,
            dataset,
            precisions=precisions,
            method=method,
            false_alarm_rate=FALSE_ALARM_RATE if false_alarm_rate is None else false_alarm_rate,
            limits=Limits(score_noise=max_score_noise, map_error=max_map_error),
            progress=step,
        )
    parts, manifest = result.parts, result.bundle.manifest
    note(
        f"{len(parts.thresholds)} good pictures for thresholds, {len(parts.int8)} others for INT8; {parts.trained_on} "
        "were trained on and fit no threshold"
    )
    print_graphs(manifest.graphs)
    output.print(_thresholds(manifest))
    for sentence in result.notes:
        warn(sentence)
    note(f"next: adedge build-engine {path} --target onnxruntime --precision int8")


def _thresholds(manifest: Manifest) -> Table:
    table = Table("threshold of", "raw score", "false alarms at most", "pictures")
    for name, threshold in sorted(manifest.thresholds.items()):
        table.add_row(name, f"{threshold.value:.5f}", f"{threshold.false_alarm_rate:g}", str(threshold.pictures))
    return table
