"""`adedge train hfr`: hierarchical feature reconstruction."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from adedge.cli.train.options import Budget, Weights, warn_of_random_features

# The command line's own copy of the method's choices: --help must not wait for torch.
Encoder = Literal["resnet18", "wide-resnet50-2"]


def hfr_options(
    encoder: Annotated[
        Encoder,
        typer.Option(help="The frozen network. wide-resnet50-2 is a little more accurate and several times slower."),
    ] = "resnet18",
    weights: Weights = "torchvision",
    budget: Annotated[
        Budget, typer.Option(help="quick: 400 iterations, minutes on two cores. paper: 10 000, hours on a CPU.")
    ] = "quick",
    size: Annotated[
        int | None,
        typer.Option(
            min=32,
            help="Side of the input in pixels, a multiple of 16: pictures are stretched to it.  "
            "[default: 256; one-class sets: 64]",
        ),
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Instead of the budget's.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Pictures an iteration.  [default: 16]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Of SGD, falling to zero.  [default: 0.4, as published]")
    ] = None,
) -> dict[str, Any]:
    """Frozen ImageNet features rebuilt from the deepest level (HFR, 2024): anomalies are what is rebuilt badly.

    One forward pass gives map and score; of the four methods the quickest to train. The encoder's weights become part
    of the bundle.

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
