"""`adedge train oesdn`: AE + OE-SDN."""

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
    load_pictures,
    train_method,
)

# The command line's own copies of adedge.methods.oesdn.method's choices: --help must not wait for torch.
Variant = Literal["oe-sdn", "sdn", "ae"]
Budget = Literal["quick", "paper"]
Fit = Literal["resize", "crop"]
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


def train_oesdn(
    data: Data,
    output: Output,
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
    fit: Annotated[
        Fit,
        typer.Option(
            help="resize: stretch the whole picture to the input (parts that fill the frame). crop: keep the "
            "resolution, learn random crops and inspect overlapping tiles (textures, large pictures)."
        ),
    ] = "resize",
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
    """Autoencoder and style network (OE-SDN, 2020): anomalies show where the two disagree.

    Only good pictures are learnt; test pictures, where the data has them, are used for the bundle's self-test and by
    `adedge benchmark`. Ctrl-C keeps a checkpoint beside the bundle, and the same command resumes it.

    Example: `adedge train oesdn photos/good -o bottle.adedge`
    """
    check_creatable(output, overwrite=overwrite)
    dataset = load_pictures(data, strict=strict, holdout=holdout, root=root, download=download)
    from adedge.methods.oesdn.method import OeSdn

    method = OeSdn.for_dataset(
        dataset,
        variant=variant,
        budget=budget,
        fit=fit,
        size=size,
        channels=None if color is None else CHANNELS[color],
        auxiliary=auxiliary,
        outlier_weight=outlier_weight,
        smoothing=smoothing,
        margin=margin,
        ae_iterations=ae_iterations,
        sdn_iterations=sdn_iterations,
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
