"""`adedge calibrate`: INT8 graphs and decision thresholds from pictures of good parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from adedge.bundle import Bundle
from adedge.cli import app, finite
from adedge.cli.export import print_graphs
from adedge.console import note, output, progress, warn
from adedge.errors import GateError
from adedge.escaping import command_line
from adedge.manifest import Manifest
from adedge.specs import PRECISIONS, parse_precisions

if TYPE_CHECKING:
    from adedge.export.calibrate import Parts

RangeMethod = Literal["entropy", "percentile", "minmax"]
FALSE_ALARM_RATE = 0.01


@app.command("calibrate")
def calibrate_command(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Bundle written by 'adedge train' or 'adedge import'.")
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Good pictures: a folder, an MVTec AD layout or a one-class set, as for 'adedge train'. Training "
            "pictures are used for INT8, all others for thresholds.",
        ),
    ],
    precision: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Precisions of graphs and thresholds, besides FP32. Leave out FP16 if the network's values exceed its "
            "range.",
        ),
    ] = ",".join(PRECISIONS),
    method: Annotated[
        RangeMethod, typer.Option(help="How the INT8 range of a tensor is chosen; values beyond it are clipped.")
    ] = "minmax",
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            callback=finite,
            help="Largest share of good pictures that may be judged anomalous.  [default: 0.01; with "
            "--thresholds-only, the bundle's rate]",
        ),
    ] = None,
    thresholds_only: Annotated[
        bool,
        typer.Option(
            "--thresholds-only",
            help="Only fit thresholds, for the engines that run on this machine; graphs and INT8 ranges stay "
            "unchanged. For devices, after 'adedge build-engine'; does not require PyTorch.",
        ),
    ] = False,
    max_score_noise: Annotated[
        float,
        typer.Option(
            min=0,
            callback=finite,
            help="Largest noise that INT8 may add to scores, as a fraction of the standard deviation of good pictures' "
            "scores.",
        ),
    ] = 0.05,
    max_map_error: Annotated[
        float | None,
        typer.Option(
            min=0, callback=finite, help="Largest error that INT8 may cause in a raw map.  [default: no limit]"
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the files of a one-class set.")] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Fail on pictures that cannot be read, or are of another kind, instead of skipping them."
        ),
    ] = False,
) -> None:
    """Fit INT8 ranges, score normalisation and one decision threshold per precision, from good pictures only.

    A threshold guarantees that a new good picture is judged anomalous with probability at most --false-alarm-rate. This
    takes at least 1 / rate - 1 good pictures that the detector was not trained on: 99 for 0.01, 19 for 0.05.

    A precision that cannot be made, or deviates too far from the model, gets no graph and no threshold; the others do,
    and the exit code is 1.
    """
    from adedge.data.datasets import load_dataset, trained_on
    from adedge.data.folders import first_few
    from adedge.export.calibrate import calibrate, fit_thresholds

    precisions = parse_precisions(precision)
    bundle = Bundle.open(path)
    dataset = load_dataset(data, strict=strict, root=root)
    for message in dataset.skipped:
        warn(message)
    known = trained_on((*dataset.train, *dataset.calibration), bundle.json("training.json")["pictures"])
    named = f" ({first_few(known)})" if known else ""
    if thresholds_only:
        with progress("calibrate") as step:
            result = fit_thresholds(bundle, dataset, false_alarm_rate=false_alarm_rate, progress=step)
        note(
            f"{len(result.parts.thresholds)} good pictures for thresholds; {result.parts.trained_on} training pictures "
            f"left out{named}{_golden(result.parts)}"
        )
        output.print(_thresholds(result.bundle.manifest))
        for message in result.notes:
            warn(message)
        note(f"next: {command_line('prove', path)}")
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
        f"training pictures left out of the thresholds{named}{_golden(parts)}"
    )
    print_graphs(manifest.graphs)
    output.print(_thresholds(manifest))
    for message in result.notes:
        warn(message)
    if result.problems:
        raise GateError("; ".join(result.problems))
    precision = "int8" if "model.int8" in manifest.graphs else "fp32"
    note(f"next: {command_line('build-engine', path, '--target', 'onnxruntime', '--precision', precision)}")


def _golden(parts: Parts) -> str:
    count = len(parts.golden)
    return f", and {count} golden frame{'s' if count > 1 else ''}" if count else ""


def _thresholds(manifest: Manifest) -> Table:
    table = Table("threshold of", "raw score", "false alarms at most", "pictures")
    for name, threshold in sorted(manifest.thresholds.items()):
        table.add_row(name, f"{threshold.value:.5f}", f"{threshold.false_alarm_rate:g}", str(threshold.pictures))
    return table
