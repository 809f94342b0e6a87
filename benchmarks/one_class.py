"""The one-class protocol of the OE-SDN paper: one class is good, all others are anomalous, AUROC on the whole test set.

    python -m adedge.benchmarks.one_class mnist:3 --root DATA -o results --budget paper

Trains `oe-sdn` and `sdn`, measures both and `ae` (the autoencoder that both share), prints a row of a Markdown table
for each and writes them to one_class.json with what is needed to repeat them.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from adedge.bundle import Bundle
from adedge.console import note, output, progress
from adedge.intervals import auroc_interval
from adedge.metrics import auroc

if TYPE_CHECKING:
    from torch import nn

    from adedge.datasets import Dataset

HEADER = "| good class | variant | AUROC | 95% interval | budget |\n| --- | --- | --- | --- | --- |"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured AUROC with its bootstrap interval (95%, over test pictures), and what was trained for it."""

    data: str
    variant: str
    auroc: float
    low: float
    high: float
    pictures: int
    budget: str
    seed: int
    options: dict[str, Any]
    versions: dict[str, str]
    machine: str
    training_s: float | None

    def __str__(self) -> str:
        return (
            f"| {self.data} | {self.variant} | {self.auroc:.4f} | {self.low:.4f} to {self.high:.4f} | {self.budget} |"
        )


def measure(
    data: str,
    folder: Path,
    *,
    root: Path | None = None,
    budget: str = "paper",
    seed: int = 0,
    amp: bool = False,
    threads: int | None = None,
    ae_iterations: int | None = None,
    sdn_iterations: int | None = None,
) -> list[Row]:
    """Train both variants on ``data`` into ``folder`` (bundles that are there are measured again, not trained again).

    Returns the rows of ae, sdn and oe-sdn. Iterations that are None are the budget's.
    """
    from adedge.datasets import load_dataset
    from adedge.methods import load_detector
    from adedge.methods.oesdn import Detector, OeSdn
    from adedge.training import train

    # All training pictures are used, as in the paper: nothing is calibrated here.
    dataset = load_dataset(data, root=root, holdout=0.0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for variant in ("sdn", "oe-sdn"):
        path = folder / f"{data.replace(':', '-')}-{variant}-{budget}-{seed}.adedge"
        started, seconds = time.monotonic(), None
        if not (path / "bundle.json").is_file():
            method = OeSdn.for_dataset(
                dataset,
                variant=variant,
                budget=budget,
                ae_iterations=ae_iterations,
                sdn_iterations=sdn_iterations,
            )
            with progress(f"{data} {variant}") as step:
                train(
                    method,
                    dataset,
                    output=path,
                    seed=seed,
                    amp=amp,
                    threads=threads,
                    progress=step,
                    announce=note,
                )
            seconds = time.monotonic() - started
        bundle = Bundle.open(path)
        detector = load_detector(bundle)
        if variant == "sdn":
            autoencoder = Detector(detector.get_submodule("ae")).eval()
            rows.append(_row(bundle, "ae", autoencoder, dataset, training_s=None))
        rows.append(_row(bundle, variant, detector, dataset, training_s=seconds))
    return rows


def _row(bundle: Bundle, variant: str, module: nn.Module, dataset: Dataset, *, training_s: float | None) -> Row:
    from adedge.methods import predict
    from adedge.pictures import conform

    manifest = bundle.manifest
    labels: NDArray[np.int64] = np.array([sample.label for sample in dataset.test])
    scores = []
    for start in range(0, len(dataset.test), 500):
        frames = np.stack([conform(sample.read(), manifest.input) for sample in dataset.test[start : start + 500]])
        scores.append(predict(module, manifest, frames, batch_size=100)[1])
    measured = np.concatenate(scores)
    interval = auroc_interval(labels, measured)
    source = manifest.provenance
    return Row(
        data=dataset.name,
        variant=variant,
        auroc=auroc(labels, measured),
        low=interval.low,
        high=interval.high,
        pictures=len(labels),
        budget=source.budget,
        seed=source.seed,
        options=dict(source.options),
        versions=dict(source.versions),
        machine=platform.processor() or platform.machine(),
        training_s=training_s,
    )


def main(
    data: Annotated[list[str], typer.Argument(help="Classes to call good, for example mnist:3 mnist:8.")],
    results: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bundles and one_class.json.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    budget: Annotated[str, typer.Option(help="paper or quick.")] = "paper",
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    ae_iterations: Annotated[int | None, typer.Option(help="Instead of the budget's.")] = None,
    sdn_iterations: Annotated[int | None, typer.Option(help="Instead of the budget's.")] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Compute the style network in bfloat16.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
) -> None:
    """Measure ae, sdn and oe-sdn on one-class sets; interrupted, the same command goes on."""
    path = results / "one_class.json"
    output.print(HEADER)
    for name in data:
        rows = measure(
            name,
            results,
            root=root,
            budget=budget,
            seed=seed,
            amp=amp,
            threads=threads,
            ae_iterations=ae_iterations,
            sdn_iterations=sdn_iterations,
        )
        for row in rows:
            output.print(str(row))
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        kept = [row for row in earlier if (row["data"], row["budget"], row["seed"]) != (rows[0].data, budget, seed)]
        path.write_text(json.dumps([*kept, *(asdict(row) for row in rows)], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
