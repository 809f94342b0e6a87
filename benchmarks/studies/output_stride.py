"""What the output stride of a `students` bundle costs in accuracy and saves in time, on labelled pictures.

    python -m adedge.benchmarks.studies.output_stride tile.adedge DATA --strides 1,4 [--pictures 60]

The same weights judge the same pictures at every stride, in PyTorch in FP32. `--pictures` draws some of the test
pictures (seed 0), because stride 1 is slow on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from adedge.benchmarks.accuracy import masks_at_map_size
from adedge.bundle import Bundle
from adedge.console import output, progress
from adedge.data.datasets import Sample, load_dataset
from adedge.data.pictures import conform
from adedge.errors import UsageError
from adedge.methods import method_named, predict, read_weights, require_torch
from adedge.metrics import aupro, auroc, pixel_auroc

if TYPE_CHECKING:
    from torch import nn

HEADER = "| output stride | pictures | image AUROC | pixel AUROC | AUPRO | s a picture |\n| --- " + "| ---: " * 5 + "|"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Metrics of one stride; pixel metrics are None without masks."""

    stride: int
    pictures: int
    auroc: float
    pixel_auroc: float | None
    aupro: float | None
    picture_s: float

    def __str__(self) -> str:
        pixels = " | ".join("-" if value is None else f"{value:.3f}" for value in (self.pixel_auroc, self.aupro))
        return f"| {self.stride} | {self.pictures} | {self.auroc:.3f} | {pixels} | {self.picture_s:.2f} |"


def measure(bundle: Bundle, samples: Sequence[Sample], stride: int) -> Row:
    """Judge pictures with the bundle's weights at ``stride``, one picture at a time.

    Raises `UsageError` for a bundle of another method or of single patches.
    """
    detector = deployed(bundle, stride)
    spec = bundle.manifest.input
    maps, scores = [], []
    total_s = 0.0
    with progress(f"stride {stride}") as step:
        for index, sample in enumerate(samples):
            frames = conform(sample.read(), spec)[None]
            started = time.perf_counter()
            batch_maps, batch_scores = predict(detector, bundle.manifest, frames)
            total_s += time.perf_counter() - started
            maps.append(batch_maps[0])
            scores.append(batch_scores[0])
            step(index + 1, len(samples), "")
    labels: NDArray[np.int64] = np.array([sample.label for sample in samples])
    masks = masks_at_map_size(samples, maps)
    return Row(
        stride=stride,
        pictures=len(samples),
        auroc=auroc(labels, np.array(scores)),
        pixel_auroc=None if masks is None else pixel_auroc(masks, np.stack(maps)),
        aupro=None if masks is None else aupro(masks, np.stack(maps)),
        picture_s=total_s / len(samples),
    )


def deployed(bundle: Bundle, stride: int) -> nn.Module:
    """The bundle's detector with output stride ``stride``. Raises `UsageError` if it cannot be changed."""
    require_torch()
    manifest = bundle.manifest
    if manifest.method != "students" or not manifest.network["output_stride"] or manifest.input.resize == "tile":
        raise UsageError(f"{bundle.path} has no output stride to change: give a students bundle of whole pictures")
    method = method_named("students")
    networks = method.networks(manifest.variant, {**manifest.network, "output_stride": stride})
    read_weights(bundle, networks)
    return method.deploy(networks).eval()


def drawn(samples: Sequence[Sample], count: int | None) -> Sequence[Sample]:
    """``count`` random samples (seed 0) in their original order; all of them if it is None or exceeds their number."""
    if count is None or count >= len(samples):
        return samples
    indices = np.random.default_rng(0).choice(len(samples), count, replace=False)
    return [samples[index] for index in sorted(indices)]


def main(
    bundle: Annotated[Path, typer.Argument(help="A students bundle.")],
    data: Annotated[str, typer.Argument(help="Labelled pictures, laid out as MVTec AD.")],
    strides: Annotated[str, typer.Option(help="Output strides to compare, separated by commas.")] = "1,4",
    pictures: Annotated[int | None, typer.Option(min=2, help="Number of test pictures to draw (default: all).")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
) -> None:
    """Print a Markdown table with one row per stride."""
    if threads is not None:
        require_torch()
        import torch

        torch.set_num_threads(threads)
    samples = drawn(load_dataset(data).test, pictures)
    output.print(HEADER)
    for part in strides.split(","):
        output.print(str(measure(Bundle.open(bundle), samples, int(part))))


if __name__ == "__main__":
    typer.run(main)
