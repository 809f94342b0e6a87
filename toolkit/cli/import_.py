"""`adedge import`: a bundle from an ONNX file that another tool exported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from adedge.bundle import check_creatable
from adedge.cli import app, finite
from adedge.console import note, warn
from adedge.errors import UsageError
from adedge.escaping import command_line
from adedge.specs import Filter, Gaussian, Opening, Uniform


@app.command("import")
def import_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The detector, weights included.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle (a directory) to write.")],
    golden: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Pictures for the self-test of every graph and engine (as for train). Uses up to 16 good and 16 "
            "anomalous test pictures; without anomalous ones, copies of the good ones with a synthetic stain.",
        ),
    ],
    map_output: Annotated[
        str | None, typer.Option("--map", metavar="OUTPUT", help="Name of the output that is the anomaly map.")
    ] = None,
    score_output: Annotated[
        str | None,
        typer.Option(
            "--score", metavar="OUTPUT", help="Name of the output that is the score.  [default: computed from the map]"
        ),
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Height and width, for a model that accepts any size.")
    ] = None,
    color: Annotated[
        Literal["rgb", "bgr", "gray"] | None,
        typer.Option(help="Channel order of the input.  [default: rgb, or gray for one channel]"),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Factor for pixels (0 to 255), applied before --mean and --std."),
    ] = 1 / 255,
    mean: Annotated[
        str, typer.Option(metavar="R,G,B", help="Mean to subtract from each channel, after --scale.  [default: 0]")
    ] = "",
    std: Annotated[
        str, typer.Option(metavar="R,G,B", help="Standard deviation to divide each channel by.  [default: 1]")
    ] = "",
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="KIND:SIZE",
            help="Filter for the map, repeatable, applied in order: gaussian:SIGMA, uniform:SIDE or opening:SIDE.",
        ),
    ] = None,
    reduce: Annotated[
        Literal["max", "mean"], typer.Option(help="How to reduce the map to a score if the model has none.")
    ] = "max",
    trained_on: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Good pictures that the model was trained on; calibrate leaves them out of the thresholds.",
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the files of a one-class set.")] = None,
    timeout: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Longest time in seconds that the model may take for one picture."),
    ] = 60,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Create a bundle from an ONNX anomaly detector that outputs a map, a score, or both; continue with export.

    The options state what the graph does not: how pixels become its input, and which output is which. Use the
    preprocessing of the tool that exported the model: a wrong --mean, --std or --color raises no error, but gives a
    poor detector.

    Example for a model exported by anomalib 2, which normalises inside the graph:
    `adedge import model.onnx -o bottle.adedge --golden mvtec/bottle --map anomaly_map --score pred_score`
    """
    check_creatable(output, overwrite=overwrite)
    size, means, stds = _size(input_size), _numbers("--mean", mean), _numbers("--std", std)
    map_filters = tuple(_filter(text) for text in filters or ())
    from adedge.data.datasets import load_dataset
    from adedge.export.graphs import require_packages
    from adedge.export.imported import Description, import_model

    require_packages()
    description = Description(
        map=map_output,
        score=score_output,
        size=size,
        color=color,
        scale=scale,
        mean=means,
        std=stds,
        filters=map_filters,
        reduce=reduce,
    )
    frames = load_dataset(golden, root=root)
    for message in frames.skipped:
        warn(message)
    training = None if trained_on is None else load_dataset(trained_on, root=root, holdout=0)
    for message in () if training is None else training.skipped:
        warn(message)
    bundle, notes = import_model(
        model, description, frames, output=output, trained_on=training, overwrite=overwrite, timeout_s=timeout
    )
    spec, score = bundle.manifest.input, bundle.manifest.score
    for message in notes:
        warn(message)
    if training is None:
        warn(
            "without --trained-on, thresholds hold only if the model was not trained on the pictures given to calibrate"
        )
    origin = "from the model" if score.reduce == "output" else f"from the map's {score.reduce}"
    note(f"input {spec.width} × {spec.height} × {spec.channels} {spec.color}; score {origin}")
    note(f"wrote {output}; next: {command_line('export', output)}")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)[x×](\d+)", text.strip().lower())
    if match is None:
        raise UsageError(f"--input-size '{text}': give height and width in pixels, such as 256x256")
    return int(match[1]), int(match[2])


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise UsageError(f"{option} '{text}': give one number per channel, such as 0.485,0.456,0.406") from None


def _filter(text: str) -> Filter:
    kind, _, size = text.partition(":")
    try:
        match kind:
            case "gaussian":
                return Gaussian(sigma=float(size))
            case "uniform":
                return Uniform(size=int(size))
            case "opening":
                return Opening(size=int(size))
    except ValueError as error:  # pydantic's error is one too
        raise UsageError(f"--filter '{text}': this filter does not take the size '{size}'") from error
    raise UsageError(f"--filter '{text}': give gaussian:SIGMA, uniform:SIDE or opening:SIDE")
