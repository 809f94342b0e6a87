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
            help="Side of the patches in pixels: 17, 33 or 65, about the size of the defects; larger patches see more "
            "context. With several (--patch 17,33,65, or --patch repeated), their maps are averaged.  [default: 33]",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        Budget,
        typer.Option(
            help="quick: for --patch 33, tens of minutes on two cores, or a few with --amp on a recent Xeon. paper: "
            "the published number of iterations on every pixel, meant for a GPU; an estimate of the time is printed "
            "before training starts."
        ),
    ] = "quick",
    members: Annotated[
        int | None,
        typer.Option("--students", min=1, help="Students per patch size.  [default: 3; one-class sets: 5]"),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Reuse the teachers of this bundle (or weights.safetensors file) instead of training new ones. "
            "Teachers do not depend on the product, so a well-trained one serves them all."
        ),
    ] = None,
    teacher_data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures to train the teacher on: natural photographs, as varied as possible.  "
            "[default: the training pictures, which give a weaker teacher]",
            show_default=False,
        ),
    ] = None,
    weights: Weights = "torchvision",
    lambda_k: Annotated[
        float,
        typer.Option(
            "--lambda-k",
            min=0,
            help="Weight in the teacher's loss of distillation from a pretrained ResNet-18. With 0, which needs no "
            "pretrained network, set --lambda-m 1.",
        ),
    ] = 1.0,
    lambda_m: Annotated[
        float,
        typer.Option("--lambda-m", min=0, help="Weight in the teacher's loss of metric learning on patch triplets."),
    ] = 0.0,
    lambda_c: Annotated[
        float,
        typer.Option(
            "--lambda-c", min=0, help="Weight in the teacher's loss of compactness, which decorrelates descriptors."
        ),
    ] = 1.0,
    output_stride: Annotated[
        int | None,
        typer.Option(
            help="Spacing in pixels of the computed scores: 1, 2, 4 or 8, with interpolation between them. For "
            "--patch 33, 4 takes a sixth of the arithmetic of 1, but blurs defects of a few pixels.  "
            "[default: 4 for quick, 1 for paper]",
            show_default=False,
        ),
    ] = None,
    fit: FitOption = "resize",
    size: Annotated[
        int | None,
        typer.Option(min=16, max=4096, help="Side of the square input in pixels, a multiple of 8.  [default: 256]"),
    ] = None,
    margin: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Width in pixels of the border that the score ignores, because patches there are padded by mirroring; "
            "patches further inside still cover it.  [default: half the largest patch]",
            show_default=False,
        ),
    ] = None,
    teacher_iterations: Annotated[
        int | None, typer.Option(min=1, help="Training iterations of each teacher; overrides the budget.")
    ] = None,
    student_iterations: Annotated[
        int | None,
        typer.Option(min=1, help="Training iterations of the students of each patch size; overrides the budget."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Pictures per iteration when training students; overrides the budget.")
    ] = None,
) -> dict[str, Any]:
    """Uninformed Students (2020): students regress a teacher's descriptor of each patch; on anomalies they fail.

    The teacher learns to describe patches of natural pictures, once for all products; the students learn its
    descriptors on good parts only. A tenth of the good pictures is set aside to normalise the scores.

    Examples: `adedge train students photos/good -o bottle.adedge --teacher-data natural --weights resnet18.pth`, and
    for the next product `adedge train students caps/good -o cap.adedge --teacher bottle.adedge`
    """
    if teacher is None and lambda_k > 0:
        warn_of_random_features(weights)
    if teacher is None and teacher_data is None:
        note(
            "the teacher learns from the training pictures alone: for better descriptors, train it on a thousand "
            "natural photographs (--teacher-data), or reuse an earlier teacher (--teacher)"
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
    """["17", "33,65"] -> (17, 33, 65), in ascending order; None if ``texts`` is empty or None.

    Raises `UsageError` for a part that is not a number.
    """
    if not texts:
        return None
    parts = [part.strip() for text in texts for part in text.split(",")]
    for part in parts:
        if not part.isdecimal():
            raise UsageError(f"--patch '{part}': give 17, 33, 65, or several of them as 17,33,65")
    return tuple(sorted(int(part) for part in parts))
