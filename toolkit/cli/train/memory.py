"""`adedge train memory`: a bank of good descriptors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from adedge.cli.train.options import warn_of_random_features

# Copied from the method, so that --help need not import torch.
Encoder = Literal["efficientnet-lite0", "resnet18", "wide-resnet50-2"]
Form = Literal["attention", "nearest"]


def memory_options(
    encoder: Annotated[
        Encoder,
        typer.Option(
            help="Pretrained network that describes the pictures. efficientnet-lite0 is small and fast, and needs no "
            "download; the ResNets are larger."
        ),
    ] = "efficientnet-lite0",
    weights: Annotated[
        str | None,
        typer.Option(
            help="package (efficientnet-lite0's, installed with adedge), torchvision (the ResNets', downloaded once), "
            "a FILE with a state dict (.pth or .safetensors), or none for random features.  [default: the encoder's]"
        ),
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            help="Strides of the feature maps to compare, from fine to coarse: 4, 8, 16 and, for efficientnet-lite0, "
            "32.  [default: 16,32; the ResNets: 16; one-class sets: 8,16]"
        ),
    ] = None,
    form: Annotated[
        Form, typer.Option(help="Rebuild a descriptor as a mixture of similar ones, or take the most similar one.")
    ] = "attention",
    bank: Annotated[int | None, typer.Option(min=2, help="Descriptors kept of each level.  [default: 1000]")] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=32,
            help="Side of the square input in pixels, a multiple of 32. Pictures are stretched to this size.  "
            "[default: 224; the ResNets: 256; one-class sets: 64]",
        ),
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(min=0, help="Sigma of the Gaussian over the map, in pixels.  [default: 0, none]")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures at a time; changes the memory needed.")] = None,
) -> dict[str, Any]:
    """Remembers what good parts look like, in seconds and without training: a bank of descriptors (as PatchCore).

    The best start with few pictures: it reads each once. Map and score take one forward pass.

    Example: `adedge train memory photos -o bottle.adedge`
    """
    warn_of_random_features(weights or "")
    return {
        "encoder": encoder,
        "weights": weights,
        "levels": levels,
        "form": form,
        "bank": bank,
        "size": size,
        "sigma": sigma,
        "batch": batch,
    }
