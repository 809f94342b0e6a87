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
            help="quick: a few minutes on two cores. paper: the published number of epochs, meant for a GPU; an "
            "estimate of the time is printed before training starts."
        ),
    ] = "quick",
    fit: FitOption = "resize",
    size: Annotated[
        int | None,
        typer.Option(
            min=32, help="Side of the square input in pixels, a multiple of 32.  [default: 128; one-class sets: 32]"
        ),
    ] = None,
    sigma: Annotated[
        float,
        typer.Option(min=0.1, help="Standard deviation of the map's Gaussian filter, in pixels of the input."),
    ] = 4.0,
    iterations: Annotated[int | None, typer.Option(min=1, help="Training iterations; overrides the budget.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Pictures per iteration; overrides the budget.")] = None,
) -> dict[str, Any]:
    """MKD (2021): distils VGG-16 into a small network; anomalies are where the two networks disagree.

    The distillation loss is the score, and its gradient is the map; an engine computes both in one graph. The bundle
    includes VGG-16's weights (59 MB).

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
