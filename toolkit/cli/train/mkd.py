"""`adedge train mkd`: multiresolution knowledge distillation."""

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

# The command line's own copies of adedge.methods.mkd's choices: --help must not wait for torch.
Budget = Literal["quick", "paper"]
Fit = Literal["resize", "crop"]


def train_mkd(
    data: Data,
    output: Output,
    weights: Weights = "torchvision",
    budget: Annotated[
        Budget,
        typer.Option(
            help="quick: some minutes on two cores. paper: the published epochs; for GPUs, and you are told how long "
            "before it starts."
        ),
    ] = "quick",
    fit: Annotated[
        Fit,
        typer.Option(
            help="resize: stretch the whole picture to the input (parts that fill the frame). crop: keep the "
            "resolution, learn random crops and inspect overlapping tiles (textures, large pictures)."
        ),
    ] = "resize",
    size: Annotated[
        int | None,
        typer.Option(min=32, help="Side of the input in pixels, a multiple of 32.  [default: 128; one-class sets: 32]"),
    ] = None,
    sigma: Annotated[
        float, typer.Option(min=0.1, help="Of the Gaussian filter over the map, in pixels of the input.")
    ] = 4.0,
    iterations: Annotated[int | None, typer.Option(min=1, help="Instead of the budget's.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Pictures an iteration, instead of the budget's.")] = None,
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
    """VGG-16 distilled into a small network (MKD, 2021): anomalies are where the two disagree.

    The loss is a picture's score, its gradient the map: engines compute both in one graph. VGG-16's weights become
    part of the bundle (59 MB).

    Example: `adedge train mkd photos -o bottle.adedge`
    """
    check_creatable(output, overwrite=overwrite)
    dataset = load_pictures(data, strict=strict, holdout=holdout, root=root, download=download)
    from adedge.methods.mkd import Mkd

    note_backbone(dataset, weights)
    method = Mkd.for_dataset(
        dataset,
        weights=weights,
        budget=budget,
        fit=fit,
        size=size,
        sigma=sigma,
        iterations=iterations,
        batch=batch,
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
