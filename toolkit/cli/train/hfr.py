"""`adedge train hfr`: hierarchical feature reconstruction."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from adedge.cli.train.options import Budget, Weights, warn_of_random_features

# Copied from the method, so that --help need not import torch.
Encoder = Literal["resnet18", "wide-resnet50-2"]


def hfr_options(
    encoder: Annotated[
        Encoder,
        typer.Option(
            help="Pretrained network, kept frozen. wide-resnet50-2 is slightly more accurate and several times slower."
        ),
    ] = "resnet18",
    weights: Weights = "torchvision",
    budget: Annotated[
        Budget,
        typer.Option(help="quick: 400 iterations, minutes on two cores. paper: 10 000 iterations, hours on a CPU."),
    ] = "quick",
    size: Annotated[
        int | None,
        typer.Option(
            min=32,
            help="Side of the square input in pixels, a multiple of 16. Pictures are stretched to this size.  "
            "[default: 256; one-class sets: 64]",
        ),
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Training iterations; overrides the budget.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Pictures per iteration.  [default: 16]")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, help="Initial learning rate of SGD, decayed to zero.  [default: 0.4, as published]"),
    ] = None,
) -> dict[str, Any]:
    """HFR (2024): reconstructs frozen ImageNet features from their deepest level; anomalies are reconstructed badly.

    The fastest of the four methods to train; map and score take one forward pass. The bundle includes the encoder's
    weights.

    Example: `adedge train hfr photos -o bottle.adedge`
    """
    warn_of_random_features(weights)
    return {
        "encoder": encoder,
        "weights": weights,
        "budget": budget,
        "size": size,
        "iterations": iterations,
        "batch": batch,
        "learning_rate": learning_rate,
    }
