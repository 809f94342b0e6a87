"""Measures the demo's accuracy over seeds, beside detectors that need no training.

    python -m adedge.benchmarks.studies.demo_accuracy -o OUT

Each seed draws its own crops and defects and trains its own networks, with the settings of `adedge demo`, in FP32. The
untrained detectors show how far the defects' grey values alone give them away.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from adedge.bundle import Bundle
from adedge.errors import DataError
from adedge.metrics import aupro, auroc, pixel_auroc

output = Console(highlight=False)

HEADER = (
    "| seed | image AUROC | pixel AUROC | AUPRO | false alarms | misses | training s "
    "| untrained: mean | std | darkest | brightest |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The results of one seed.

    ``untrained`` are the image AUROCs of the untrained detectors by name, ``kinds`` those of the trained one by kind of
    defect. ``false_alarms`` and ``misses`` are rates among good and defective test pictures, at the threshold fitted to
    the calibration pictures for the demo's false-alarm rate.
    """

    seed: int
    image_auroc: float
    pixel_auroc: float
    aupro: float
    false_alarms: float
    misses: float
    training_s: float | None
    kinds: dict[str, float]
    untrained: dict[str, float]

    def __str__(self) -> str:
        seconds = "" if self.training_s is None else f"{self.training_s:.0f}"
        untrained = " | ".join(f"{value:.3f}" for value in self.untrained.values())
        return (
            f"| {self.seed} | {self.image_auroc:.3f} | {self.pixel_auroc:.3f} | {self.aupro:.3f} "
            f"| {self.false_alarms:.1%} | {self.misses:.1%} | {seconds} | {untrained} |"
        )


def untrained_aurocs(labels: NDArray[np.int64], frames: NDArray[np.uint8]) -> dict[str, float]:
    """Image AUROC of four statistics of a picture; ``labels`` (N,) 0 or 1, ``frames`` (N, H, W, C) uint8.

    Mean and standard deviation may separate in either direction; the better one counts.
    """
    mean, std = (auroc(labels, values) for values in (frames.mean((1, 2, 3)), frames.std((1, 2, 3))))
    return {
        "mean": max(mean, 1 - mean),
        "std": max(std, 1 - std),
        "darkest": auroc(labels, -frames.min((1, 2, 3)).astype(np.float64)),
        "brightest": auroc(labels, frames.max((1, 2, 3)).astype(np.float64)),
    }


def evaluate(bundle: Bundle, data: Path, *, seed: int, training_s: float | None = None) -> Row:
    """Measure a bundle with PyTorch and the NumPy scoring reference on the test pictures of ``data``, all one size."""
    from adedge.data.datasets import load_dataset
    from adedge.data.pictures import conform
    from adedge.data.synthesis import DEMO
    from adedge.methods import load_detector, predict

    dataset = load_dataset(str(data), strict=True)
    samples = dataset.test
    held_out, frames = (
        np.stack([conform(sample.read(), bundle.manifest.input) for sample in part])
        for part in (dataset.calibration, samples)
    )
    labels = np.array([sample.label for sample in samples])
    kinds = np.array([sample.kind for sample in samples])
    masks = np.zeros(frames.shape[:3], bool)
    for mask, sample in zip(masks, samples, strict=True):
        defect = sample.read_mask() if sample.label else None
        if defect is not None:
            mask[:] = defect
        elif sample.label:
            raise DataError(f"{sample.path} has no mask: write the pictures again with write_demo_dataset")
    model = load_detector(bundle)
    maps, scores = predict(model, bundle.manifest, frames)
    # The split-conformal quantile, by its definition; the threshold of `adedge calibrate` lies between it and the next.
    rank = math.ceil((len(held_out) + 1) * (1 - DEMO.false_alarm_rate))
    threshold = np.sort(predict(model, bundle.manifest, held_out)[1])[rank - 1]
    good = labels == 0
    return Row(
        seed=seed,
        image_auroc=auroc(labels, scores),
        pixel_auroc=pixel_auroc(masks, maps),
        aupro=aupro(masks, maps),
        false_alarms=float(np.mean(scores[good] > threshold)),
        misses=float(np.mean(scores[~good] <= threshold)),
        training_s=training_s,
        kinds={
            str(kind): auroc(labels[good | (kinds == kind)], scores[good | (kinds == kind)])
            for kind in np.unique(kinds[~good])
        },
        untrained=untrained_aurocs(labels, frames),
    )


def measure(seed: int, folder: Path) -> Row:
    """Write the pictures of ``seed`` to ``folder``, train as the demo does unless the bundle exists, and measure."""
    from adedge.data.synthesis import DEMO, write_demo_dataset

    folder.mkdir(parents=True, exist_ok=True)
    data, path = folder / f"data-{seed}", folder / f"{DEMO.texture}-{seed}.adedge"
    write_demo_dataset(data, texture=DEMO.texture, seed=seed)
    training_s = None
    if not (path / "bundle.json").is_file():
        started = time.monotonic()
        words = ["train", "oesdn", str(data), "-o", str(path), "--seed", str(seed), *DEMO.train_options]
        subprocess.run([sys.executable, "-m", "adedge", *words], check=True)
        training_s = time.monotonic() - started
    return evaluate(Bundle.open(path), data, seed=seed, training_s=training_s)


def main(
    results: Annotated[Path, typer.Option("--output", "-o", help="Folder for bundles and demo_accuracy.json.")],
    seeds: Annotated[
        str, typer.Option(help="Comma-separated seeds; no setting was tuned on the default ones.")
    ] = "102,103,104",
) -> None:
    """Train and measure the demo for each seed; after an interruption, the same command continues."""
    output.print(HEADER)
    rows = []
    for seed in seeds.split(","):
        rows.append(measure(int(seed), results))
        output.print(str(rows[-1]))
        text = json.dumps([asdict(row) for row in rows], indent=2) + "\n"
        (results / "demo_accuracy.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
