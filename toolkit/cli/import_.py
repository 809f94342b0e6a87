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
from adedge.specs import Filter, Gaussian, Opening, Uniform


@app.command("import")
def import_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The detector, with its weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle (a directory) to write.")],
    golden: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Pictures for the self-test of every graph and engine, as for train: up to 16 good and 16 anomalous "
            "test pictures, or good ones and copies of them with a stain.",
        ),
    ],
    map_output: Annotated[
        str | None, typer.Option("--map", metavar="OUTPUT", help="The output that is the anomaly map.")
    ] = None,
    score_output: Annotated[
        str | None,
        typer.Option(
            "--score", metavar="OUTPUT", help="The output that is the picture's score.  [default: of the map]"
        ),
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Height and width, where the model takes pictures of any size.")
    ] = None,
    color: Annotated[
        Literal["rgb", "bgr", "gray"] | None,
        typer.Option(help="The order of the input's channels.  [default: rgb, or gray for one channel]"),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="What pixels of 0 to 255 are multiplied by before mean and std."),
    ] = 1 / 255,
    mean: Annotated[
        str, typer.Option(metavar="R,G,B", help="Subtracted from each channel, after --scale.  [default: nothing]")
    ] = "",
    std: Annotated[
        str, typer.Option(metavar="R,G,B", help="Each channel is divided by it.  [default: by nothing]")
    ] = "",
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="KIND:SIZE",
            help="A filter of the map, in order where given several times: gaussian:SIGMA, uniform:SIDE, opening:SIDE.",
        ),
    ] = None,
    reduce: Annotated[
        Literal["max", "mean"], typer.Option(help="How the map becomes a score, where the model gives none.")
    ] = "max",
    trained_on: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="The good pictures that the model was trained on: calibrate fits no threshold on them.",
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of a one-class set's files.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
) -> None:
    """Make a bundle of an ONNX anomaly detector that gives a map, a score, or both; then go on with export.

    What the graph does not say about itself is said here: how pixels become its input, and which output is what. Look
    at the exporting tool's preprocessing; a wrong --mean, --std or --color is not an error, only a bad detector.

    Example, for a model of anomalib 2, which normalises in the graph:
    `adedge import model.onnx -o bottle.adedge --golden mvtec/bottle --map anomaly_map --score pred_score`
    """
    check_creatable(output, overwrite=overwrite)
    size, means, stds = _size(input_size), _numbers("--mean", mean), _numbers("--std", std)
    chosen = tuple(_filter(text) for text in filters or ())
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
        filters=chosen,
        reduce=reduce,
    )
    frames = load_dataset(golden, root=root)
    for sentence in frames.skipped:
        warn(sentence)
    seen = None if trained_on is None else load_dataset(trained_on, root=root, holdout=0)
    bundle, notes = import_model(model, description, frames, output=output, trained_on=seen, overwrite=overwrite)
    spec, score = bundle.manifest.input, bundle.manifest.score
    for sentence in notes:
        warn(sentence)
    if seen is None:
        warn("without --trained-on, thresholds hold only if the model never saw the pictures that calibrate gets")
    by = "given by the model" if score.reduce == "output" else f"the map's {score.reduce}"
    note(f"input {spec.width} × {spec.height} × {spec.channels} {spec.color}; score {by}")
    note(f"wrote {output}; next: adedge export {output}")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)[x×](\d+)", text.strip().lower())
    if found is None:
        raise UsageError(f"--input-size '{text}': give height and width in pixels, as 256x256")
    return int(found[1]), int(found[2])


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise UsageError(f"{option} '{text}': give a number for each channel, as 0.485,0.456,0.406") from None


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
        raise UsageError(f"--filter '{text}': its size is not one that this filter takes") from error
    raise UsageError(f"--filter '{text}': give gaussian:SIGMA, uniform:SIDE or opening:SIDE")
