"""What SmoothGrad gains over plain gradients for an `mkd` bundle's maps, on labelled pictures: the paper's Table 1.

    python -m adedge.benchmarks.studies.smoothgrad bottle.adedge DATA [--samples 50] [--noise 0.01] [--pictures 60]

Both maps come from the same weights in PyTorch in FP32, without and with the bundle's filters (Gaussian and opening).
The score is the loss in both cases, so verdicts do not differ. `--pictures` draws some of the test pictures (seed 0),
because SmoothGrad takes one pass per sample and picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from adedge.benchmarks.accuracy import masks_at_map_size
from adedge.benchmarks.studies.output_stride import drawn
from adedge.bundle import Bundle
from adedge.console import output, progress
from adedge.data.datasets import Sample, load_dataset
from adedge.data.pictures import conform
from adedge.errors import DataError, UsageError
from adedge.methods import input_from_frames, load_detector, require_torch
from adedge.metrics import aupro, pixel_auroc
from adedge.scoring import score_maps
from adedge.specs import InputSpec

if TYPE_CHECKING:
    from torch import Tensor

HEADER = "| map | filters | pictures | pixel AUROC | AUPRO | s a picture |\n| --- | --- | " + "---: | " * 3 + "---: |"

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Metrics of one kind of map."""

    name: str
    filtered: bool
    pictures: int
    pixel_auroc: float
    aupro: float
    picture_s: float

    def __str__(self) -> str:
        figures = f"{self.pixel_auroc:.3f} | {self.aupro:.3f} | {self.picture_s:.2f}"
        return f"| {self.name} | {'yes' if self.filtered else 'no'} | {self.pictures} | {figures} |"


def measure(bundle: Bundle, samples: Sequence[Sample], *, count: int = 50, noise: float = 0.01) -> list[Row]:
    """Gradients and SmoothGrad of ``count`` noisy copies, without and with the bundle's filters: four rows.

    Raises `UsageError` for a bundle of another method or of tiled pictures, `DataError` if masks are missing.
    """
    require_torch()
    from adedge.methods.mkd import Detector, smooth_gradients

    spec = bundle.manifest.input
    if bundle.manifest.method != "mkd" or spec.resize == "tile":
        raise UsageError(f"{bundle.path} has no gradients to smooth: give an mkd bundle of whole pictures")
    detector = load_detector(bundle)
    assert isinstance(detector, Detector)

    def plain(x: Tensor) -> Tensor:
        anomaly_map: Tensor = detector(x)[0]
        return anomaly_map

    def smooth(x: Tensor) -> Tensor:
        return smooth_gradients(detector, x, samples=count, noise=noise)

    rows = []
    for name, map_of in (("gradients", plain), (f"SmoothGrad, {count} copies", smooth)):
        maps, picture_s = _maps(samples, spec, map_of, name)
        masks = masks_at_map_size(samples, maps)
        if masks is None:
            raise DataError("maps are judged by masks, but an anomalous picture has none: see docs/data.md")
        raw = np.stack(maps)
        filtered = score_maps(bundle.manifest.score, [raw[:, None], np.zeros(len(raw), np.float32)])
        rows += [
            Row(
                name=name,
                filtered=variant is filtered,
                pictures=len(samples),
                pixel_auroc=pixel_auroc(masks, variant),
                aupro=aupro(masks, variant),
                picture_s=picture_s,
            )
            for variant in (raw, filtered)
        ]
    return rows


def _maps(
    samples: Sequence[Sample], spec: InputSpec, map_of: Callable[[Tensor], Tensor], name: str
) -> tuple[list[Floats], float]:
    """The map (H, W) of each picture, and the mean time per picture in seconds."""
    import torch

    maps: list[Floats] = []
    total_s = 0.0
    with progress(name) as step:
        for index, sample in enumerate(samples):
            x = input_from_frames(conform(sample.read(), spec)[None], spec)
            started = time.perf_counter()
            with torch.inference_mode():
                maps.append(map_of(x)[0, 0].numpy())
            total_s += time.perf_counter() - started
            step(index + 1, len(samples), "")
    return maps, total_s / len(samples)


def main(
    bundle: Annotated[Path, typer.Argument(help="An mkd bundle.")],
    data: Annotated[str, typer.Argument(help="Labelled pictures with masks, laid out as MVTec AD.")],
    samples: Annotated[int, typer.Option(min=1, help="Noisy copies of each picture.")] = 50,
    noise: Annotated[float, typer.Option(min=0, help="Standard deviation, as a fraction of the input's range.")] = 0.01,
    pictures: Annotated[int | None, typer.Option(min=2, help="Number of test pictures to draw (default: all).")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
) -> None:
    """Print a Markdown table with one row per kind of map."""
    if threads is not None:
        require_torch()
        import torch

        torch.set_num_threads(threads)
    output.print(HEADER)
    for row in measure(Bundle.open(bundle), drawn(load_dataset(data).test, pictures), count=samples, noise=noise):
        output.print(str(row))


if __name__ == "__main__":
    typer.run(main)
