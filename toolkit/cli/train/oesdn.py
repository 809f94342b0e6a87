"""`adedge train oesdn`: AE + OE-SDN."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from adedge.cli.train.options import Budget, FitOption

# Copied from the method, so that --help need not import torch.
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
            help="What the autoencoder's output is compared with. oe-sdn: the output of a style network, which only "
            "imitates the autoencoder's blur. sdn: the same, trained without outlier exposure. ae: the input."
        ),
    ] = "oe-sdn",
    budget: Annotated[
        Budget,
        typer.Option(
            help="quick: minutes on two cores, with 128 x 128 patches of large pictures. paper: the published number "
            "of iterations, hours on a CPU for large pictures; an estimate of the time is printed before training "
            "starts."
        ),
    ] = "quick",
    fit: FitOption = "resize",
    size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=4096,
            help="Side of the square input in pixels, a multiple of 16.  "
            "[default: 256; one-class sets: their pictures' size]",
        ),
    ] = None,
    color: Annotated[
        Literal["gray", "rgb"] | None,
        typer.Option(help="Colour of the network's input.  [default: gray if the first picture is gray, else rgb]"),
    ] = None,
    auxiliary: Annotated[
        Auxiliary,
        typer.Option(
            help="Transform that turns good pictures into outliers, which oe-sdn learns to reproduce unchanged."
        ),
    ] = "rotation",
    outlier_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of the outliers in oe-sdn's loss (lambda).")
    ] = 0.5,
    smoothing: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Side of the map's uniform filter in pixels: about the size of the smallest defect to detect.  "
            "[default: --size / 8, 32 for 256; one-class sets: none]",
        ),
    ] = None,
    margin: Annotated[
        int,
        typer.Option(
            min=0,
            help="Width in pixels of the border that the score ignores: what the edge of a crop cuts off is "
            "reconstructed badly.",
        ),
    ] = 0,
    ae_iterations: Annotated[
        int | None, typer.Option(min=1, help="Training iterations of the autoencoder; overrides the budget.")
    ] = None,
    sdn_iterations: Annotated[
        int | None, typer.Option(min=1, help="Training iterations of the style network; overrides the budget.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures per iteration; overrides the budget.")] = None,
) -> dict[str, Any]:
    """OE-SDN (2020): an autoencoder and a style network that imitates it; anomalies are where the two disagree.

    Only good pictures are used for training. Test pictures, if the data has any, serve the bundle's self-test and
    `adedge benchmark`. Ctrl-C saves a checkpoint beside the bundle; the same command resumes from it.

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
