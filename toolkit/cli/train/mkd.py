"""`adedge train mkd`: multiresolution knowledge distillation."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adedge.cli.train.options import Budget, FitOption, Weights, warn_of_random_features


def mkd_options(
    weights: Weights = "torchvision",
    budget: Annotated[
        Budget,
        typer.Option(
            help="quick: some minutes on two cores. paper: the published epochs; for GPUs, and you are told how long "
            "before it starts."
        ),
    ] = "quick",
    fit: FitOption = "resize",
    size: Annotated[
        int | None,
        typer.Option(min=32, help="Side of the input in pixels, a multiple of 32.  [default: 128; one-class sets: 32]"),
    ] = None,
    sigma: Annotated[
        float, typer.Option(min=0.1, help="Of the Gaussian filter over the map, in pixels of the input.")
    ] = 4.0,
    iterations: Annotated[int | None, typer.Option(min=1, help="Instead of the budget's.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Pictures an iteration, instead of the budget's.")] = None,
) -> dict[str, Any]:
    """VGG-16 distilled into a small network (MKD, 2021): anomalies are where the two disagree.

    The loss is a picture's score, its gradient the map: engines compute both in one graph. VGG-16's weights become
    part of the bundle (59 MB).

    Example: `adedge train mkd photos -o bottle.adedge`
    """
    warn_of_random_features(weights)
    return {
        "weights": weights,
        "budget": budget,
        "fit": fit,
        "size": size,
        "sigma": sigma,
        "iterations": iterations,
        "batch": batch,
    }
