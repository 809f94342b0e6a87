"""`adedge train hfr`: hierarchical feature reconstruction."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from adedge.bundle import check_creatable
from adedge.cli.train.options import (
    Amp,
    Data,
    Device,
    Download,
    Holdout,
    Output,
    Overwrite,
    Restart,
    Root,
    Seed,
    Strict,
    Threads,
    Weights,
    load_pictures,
    note_backbone,
    train_method,
)

# The command line's own copies of adedge.methods.hfr's choices: --help must not wait for torch.
Encoder = Literal["resnet18", "wide-resnet50-2"]
Budget = Literal["quick", "paper"]


def train_hfr(
    data: Data,
    output: Output,
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
    seed: Seed = 0,
    device: Device = "cpu",
    amp: Amp = False,
    threads: Threads = None,
    holdout: Holdout = 0.2,
    root: Root = None,
    download: Download = False,
    strict: Strict = False,
    overwrite: Overwrite = False,
    restart: Restart = False,
) -> None:
    """Frozen ImageNet features rebuilt from the deepest level (HFR, 2024): anomalies are what is rebuilt badly.

    One forward pass gives map and score; of the four methods the quickest to train. The encoder's weights become part
    of the bundle.

    Example: `adedge train hfr photos -o bottle.adedge`
    """
    check_creatable(output, overwrite=overwrite)
    dataset = load_pictures(data, strict=strict, holdout=holdout, root=root, download=download)
    from adedge.methods.hfr import Hfr

    note_backbone(dataset, weights)
    method = Hfr.for_dataset(
        dataset,
        encoder=encoder,
        weights=weights,
        budget=budget,
        size=size,
        iterations=iterations,
        batch=batch,
        learning_rate=learning_rate,
    )
    train_method(
        method,
        dataset,
        output,
        seed=seed,
        device=device,
        amp=amp,
        threads=threads,
        overwrite=overwrite,
        restart=restart,
    )
