"""`adedge train students`: Uninformed Students."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adedge.cli.train.options import Budget, FitOption, Weights, warn_of_random_features
from adedge.console import note
from adedge.errors import UsageError


def students_options(
    patch: Annotated[
        list[str] | None,
        typer.Option(
            help="Side in pixels of the patches that are described: 17, 33, 65, or several (--patch 17,33,65, or the "
            "option repeated), whose maps are averaged. About the size of the defects; larger ones see more "
            "context.  [default: 33]",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        Budget,
        typer.Option(
            help="quick: for p = 33, tens of minutes on two cores, a few with --amp on a recent Xeon. paper: the "
            "published iterations, on every pixel; for GPUs, and you are told how long before it starts."
        ),
    ] = "quick",
    members: Annotated[
        int | None,
        typer.Option("--students", min=1, help="Students of each scale.  [default: 3; one-class sets: 5]"),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Take the teachers from this bundle of an earlier training (or its weights.safetensors) instead of "
            "training them: a teacher knows nothing of the product, so one that learnt long serves all of them."
        ),
    ] = None,
    teacher_data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures that the teacher learns from: natural photographs, the more kinds the better.  "
            "[default: the training pictures, for want of better ones]",
            show_default=False,
        ),
    ] = None,
    weights: Weights = "torchvision",
    lambda_k: Annotated[
        float,
        typer.Option(
            "--lambda-k",
            min=0,
            help="Weight of distilling ResNet-18 in the teacher's loss. 0 needs no pretrained network: the teacher "
            "then learns by --lambda-m 1.",
        ),
    ] = 1.0,
    lambda_m: Annotated[
        float, typer.Option("--lambda-m", min=0, help="Weight of metric learning from triplets of patches.")
    ] = 0.0,
    lambda_c: Annotated[
        float, typer.Option("--lambda-c", min=0, help="Weight of compactness: descriptors that do not repeat.")
    ] = 1.0,
    output_stride: Annotated[
        int | None,
        typer.Option(
            help="1: a score for every pixel. 2, 4, 8: for every second, fourth, eighth one of a row and column, "
            "interpolated between; for p = 33 six times less arithmetic at 4, and defects of a few pixels blur.  "
            "[default: 4 for quick, 1 for paper]",
            show_default=False,
        ),
    ] = None,
    fit: FitOption = "resize",
    size: Annotated[
        int | None,
        typer.Option(min=16, max=4096, help="Side of the input in pixels, a multiple of 8.  [default: 256]"),
    ] = None,
    margin: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Border in pixels that a picture's score leaves out, where patches see mirror images; what lies there "
            "is in the patches further inside too.  [default: half the largest patch]",
            show_default=False,
        ),
    ] = None,
    teacher_iterations: Annotated[
        int | None, typer.Option(min=1, help="Iterations of each teacher, instead of the budget's.")
    ] = None,
    student_iterations: Annotated[
        int | None, typer.Option(min=1, help="Iterations of the students of each scale, instead of the budget's.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Pictures an iteration of the students, instead of the budget's.")
    ] = None,
) -> dict[str, Any]:
    """Uninformed Students (2020): anomalies show where students cannot repeat what a teacher says of each patch.

    The teacher learns to describe patches of natural pictures, once and for all products; students learn its
    descriptors on good parts only. A tenth of the good pictures is kept to normalise the scores with.

    Examples: `adedge train students photos/good -o bottle.adedge --teacher-data natural --weights resnet18.pth`, and
    for the next product `adedge train students caps/good -o cap.adedge --teacher bottle.adedge`
    """
    if teacher is None and lambda_k > 0:
        warn_of_random_features(weights)
    if teacher is None and teacher_data is None:
        note(
            "the teacher learns from the training pictures alone: it describes more when it has seen a thousand "
            "natural photographs (--teacher-data), or when an earlier one is reused (--teacher)"
        )
    return {
        "budget": budget,
        "patches": parse_patches(patch),
        "members": members,
        "size": size,
        "fit": fit,
        "output_stride": output_stride,
        "margin": margin,
        "teacher": None if teacher is None else str(teacher),
        "teacher_data": None if teacher_data is None else str(teacher_data),
        "weights": weights,
        "lambda_k": lambda_k,
        "lambda_m": lambda_m,
        "lambda_c": lambda_c,
        "teacher_iterations": teacher_iterations,
        "student_iterations": student_iterations,
        "batch": batch,
    }


def parse_patches(texts: list[str] | None) -> tuple[int, ...] | None:
    """["17", "33,65"] -> (17, 33, 65), in ascending order; None where nothing was given.

    Raises `UsageError` for what is no number.
    """
    if not texts:
        return None
    parts = [part.strip() for text in texts for part in text.split(",")]
    for part in parts:
        if not part.isdecimal():
            raise UsageError(f"--patch '{part}': give 17, 33, 65, or several of them as 17,33,65")
    return tuple(sorted(int(part) for part in parts))
