"""`adedge train METHOD`: from pictures of good parts to a bundle. One sub-command a method, with its own options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adedge.bundle import check_creatable
from adedge.cli import app
from adedge.console import Step, note, progress, warn

if TYPE_CHECKING:
    from adedge.datasets import Dataset
    from adedge.methods import Method

command = typer.Typer(no_args_is_help=True, help="Train a detector on pictures of good parts and write a bundle.")
app.add_typer(command, name="train")


# The command line's own copies of adedge.methods.oesdn's choices: --help must not wait for torch.
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


# What every method's training takes.
Data = Annotated[
    str,
    typer.Argument(
        help="A folder of good pictures; a folder laid out as MVTec AD (train/good, test/KIND, ground_truth/KIND); "
        "or a class of a data set to call normal: mnist:3, fashion-mnist:0, cifar10:5."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The bundle (a directory) to write.")]
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


@command.command("oesdn")
def oesdn(
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
            min=16, help="Side of the input in pixels, a multiple of 16.  [default: 256; one-class sets: theirs]"
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
    dataset = _dataset(data, strict=strict, holdout=holdout, root=root, download=download)
    from adedge.methods.oesdn import OeSdn

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
    _train(
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


def _dataset(data: str, *, strict: bool, holdout: float, root: Path | None, download: bool) -> Dataset:
    """Load the pictures, warn of those that were skipped and say how many there are."""
    from adedge.datasets import load_dataset
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


def _train(
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
    from adedge.training import checkpoint_directory, train

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
def _bar_per_stage() -> Iterator[Step]:
    """A progress bar for each stage, opened by the first report ("<stage>: ...") of it."""
    with ExitStack() as bars:
        shown = ""
        bar: Step | None = None

        def step(done: int, total: int, text: str) -> None:
            nonlocal shown, bar
            stage, _, detail = text.partition(": ")
            if bar is None or stage != shown:
                bars.close()
                shown, bar = stage, bars.enter_context(progress(f"training {stage}"))
            bar(done, total, detail)

        yield step
