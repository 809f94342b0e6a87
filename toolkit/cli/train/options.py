"""What training takes whatever the method, and how it is shown on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adedge.console import note, progress, warn
from adedge.progress import Progress

if TYPE_CHECKING:
    from adedge.data.datasets import Dataset
    from adedge.methods import Method

Data = Annotated[
    str,
    typer.Argument(
        help="A folder of good pictures; a folder laid out as MVTec AD (train/good, test/KIND, ground_truth/KIND), "
        "BTAD, VisA or MVTec LOCO AD; a CSV file with columns path, split and label; or a class of a data set to call "
        "normal: mnist:3, fashion-mnist:0, cifar10:5."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The bundle (a directory) to write.")]
Weights = Annotated[
    str,
    typer.Option(
        help="Weights of the network trained on ImageNet: torchvision (downloaded once), a FILE with torchvision's "
        "state dict (.pth or .safetensors), or none for random features."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same weights (on a CPU, with as many threads).")]
Device = Annotated[str, typer.Option(help="Where torch computes: cpu, cuda, cuda:1.")]
Amp = Annotated[
    bool,
    typer.Option(
        "--amp", help="Compute in bfloat16 what gains by it: several times faster where the processor has it."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: torch's choice]")]
Holdout = Annotated[
    float,
    typer.Option(min=0, max=0.9, help="Share of the good pictures kept for calibrate, where the data has none apart."),
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a one-class set's files, in their published formats (idx, CIFAR-10's binary version)."
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Allow downloading a one-class set into --root.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse unreadable pictures instead of skipping them with a warning.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")]
Restart = Annotated[
    bool,
    typer.Option("--restart", help="Discard the checkpoint of an interrupted training instead of resuming it."),
]


def load_pictures(data: str, *, strict: bool, holdout: float, root: Path | None, download: bool) -> Dataset:
    """Load the pictures, warn of those that were skipped and say how many there are."""
    from adedge.data.datasets import load_dataset
    from adedge.methods import require_torch

    require_torch()
    dataset = load_dataset(data, strict=strict, holdout=holdout, root=root, download=download)
    for sentence in dataset.skipped:
        warn(sentence)
    note(
        f"{dataset.name}: {len(dataset.train)} good pictures to train on, {len(dataset.calibration)} held out, "
        f"{len(dataset.test)} to test"
    )
    return dataset


def note_backbone(dataset: Dataset, weights: str) -> None:
    """Say what a network for colour pictures makes of grey ones, and that random features are no good features."""
    if dataset.train and dataset.train[0].read().shape[2] == 1:
        note("grey pictures: their one channel is repeated for the network, which expects three")
    if weights == "none":
        warn("--weights none: the features are random; expect a far worse detector than with ImageNet weights")


def train_method(
    method: Method,
    dataset: Dataset,
    output: Path,
    *,
    seed: int,
    device: str,
    amp: bool,
    threads: int | None,
    overwrite: bool,
    restart: bool,
) -> None:
    """Train with a progress bar for each stage; say how an interrupted training goes on, and what comes next."""
    from adedge.methods.training import checkpoint_directory, train

    try:
        with _bar_per_stage() as step:
            train(
                method,
                dataset,
                output=output,
                seed=seed,
                device=device,
                amp=amp,
                threads=threads,
                overwrite=overwrite,
                restart=restart,
                progress=step,
                announce=note,
            )
    except KeyboardInterrupt:
        checkpoint = checkpoint_directory(output)
        if checkpoint.is_dir():
            note(f"interrupted: the same command resumes from {checkpoint}, --restart begins anew")
        raise
    note(f"wrote {output}; next: adedge export {output}")


@contextmanager
def _bar_per_stage() -> Iterator[Progress]:
    """A progress bar for each stage, opened by the first report ("<stage>: ...") of it."""
    with ExitStack() as bars:
        shown = ""
        bar: Progress | None = None

        def step(done: int, total: int, text: str) -> None:
            nonlocal shown, bar
            stage, _, detail = text.partition(": ")
            if bar is None or stage != shown:
                bars.close()
                shown, bar = stage, bars.enter_context(progress(f"training {stage}"))
            bar(done, total, detail)

        yield step
