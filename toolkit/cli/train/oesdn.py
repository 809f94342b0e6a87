"""`adedge train oesdn`: AE + OE-SDN."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from adedge.cli.train.options import Budget, FitOption

# The command line's own copies of the method's choices: --help must not wait for torch.
Variant = Literal["oe-sdn", "sdn", "ae"]
Auxiliary = Literal[
    "rotation",
    "vertical-flip",
    "horizontal-flip",
    "shear",
    "gaussian-noise",
    "gaussian-blur",
    "svd-blur",
    "reconstruction",
    "adversarial-noise",
]
CHANNELS = {"gray": 1, "rgb": 3}


def oesdn_options(
    variant: Annotated[
        Variant,
        typer.Option(
            help="oe-sdn: the autoencoder's output against that of a network that imitates its style only. "
            "sdn: the same without outlier exposure. ae: the autoencoder's output against its input."
        ),
    ] = "oe-sdn",
    budget: Annotated[
        Budget,
        typer.Option(
            help="quick: minutes on two cores, on 128 x 128 patches of large pictures. paper: the published "
            "iterations; hours on a CPU for large pictures, and you are told how many before it starts."
        ),
    ] = "quick",
    fit: FitOption = "resize",
    size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=4096,
            help="Side of the input in pixels, a multiple of 16.  [default: 256; one-class sets: theirs]",
        ),
    ] = None,
    color: Annotated[
        Literal["gray", "rgb"] | None,
        typer.Option(help="What the network sees.  [default: gray where the first picture is gray]"),
    ] = None,
    auxiliary: Annotated[
        Auxiliary, typer.Option(help="How good pictures become the outliers that oe-sdn must reproduce unchanged.")
    ] = "rotation",
    outlier_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Lambda: the share of the outliers in oe-sdn's loss.")
    ] = 0.5,
    smoothing: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Side in pixels of the uniform filter over the map: about the size of the smallest defect that "
            "matters.  [default: an eighth of --size, 32 for 256; one-class sets: none]",
        ),
    ] = None,
    margin: Annotated[
        int,
        typer.Option(
            min=0,
            help="Border in pixels that a picture's score leaves out: what a crop's edge cuts off reconstructs badly.",
        ),
    ] = 0,
    ae_iterations: Annotated[
        int | None, typer.Option(min=1, help="Iterations of the autoencoder, instead of the budget's.")
    ] = None,
    sdn_iterations: Annotated[
        int | None, typer.Option(min=1, help="Iterations of the style network, instead of the budget's.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures an iteration, instead of the budget's.")] = None,
) -> dict[str, Any]:
    """Autoencoder and style network (OE-SDN, 2020): anomalies show where the two disagree.

    Only good pictures are learnt; test pictures, where the data has them, are used for the bundle's self-test and by
    `adedge benchmark`. Ctrl-C keeps a checkpoint beside the bundle, and the same command resumes it.

    Example: `adedge train oesdn photos/good -o bottle.adedge`
    """
    return {
        "variant": variant,
        "budget": budget,
        "fit": fit,
        "size": size,
        "channels": None if color is None else CHANNELS[color],
        "auxiliary": auxiliary,
        "outlier_weight": outlier_weight,
        "smoothing": smoothing,
        "margin": margin,
        "ae_iterations": ae_iterations,
        "sdn_iterations": sdn_iterations,
        "batch": batch,
    }
