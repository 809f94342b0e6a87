"""Options and behaviour shared by every `adedge train METHOD`; each method's own options are in a file of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from adedge.bundle import check_creatable
from adedge.console import note, progress, warn
from adedge.errors import UsageError
from adedge.escaping import command_line
from adedge.progress import Progress

if TYPE_CHECKING:
    from adedge.data.datasets import Dataset
    from adedge.methods import Method
    from adedge.methods.training import TrainingOptions

# Copied from the methods, so that --help need not import torch.
Budget = Literal["quick", "paper"]
Fit = Literal["resize", "crop"]

Data = Annotated[
    str,
    typer.Argument(
        help="A folder of good pictures; a folder laid out as MVTec AD (train/good, test/KIND, ground_truth/KIND), "
        "BTAD, VisA or MVTec LOCO AD; a CSV file with the columns path, split and label; or one class of a data set "
        "to treat as normal, such as mnist:3, fashion-mnist:0 or cifar10:5."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The bundle (a directory) to write.")]
Weights = Annotated[
    str,
    typer.Option(
        help="Weights of the pretrained network: torchvision (trained on ImageNet, downloaded once), a FILE with "
        "torchvision's state dict (.pth or .safetensors), or none for random features."
    ),
]
FitOption = Annotated[
    Fit,
    typer.Option(
        help="resize: stretch the whole picture to the input, for parts that fill the frame. crop: keep the "
        "resolution, train on random crops and inspect overlapping tiles, for textures and large pictures."
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, help="Random seed. On a CPU, the same seed and number of threads give the same weights."),
]
Device = Annotated[str, typer.Option(help="Device to train on, as PyTorch names it: cpu, cuda, cuda:1.")]
Amp = Annotated[
    bool,
    typer.Option(
        "--amp",
        help="Mixed precision with bfloat16 in the stages that benefit: several times faster on hardware with "
        "bfloat16 units.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: PyTorch's choice]")]
Holdout = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.9,
        help="Fraction of the good pictures to hold out for adedge calibrate, unless the data has calibration pictures "
        "of its own.",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the files of a one-class set, as published (idx, or CIFAR-10's binary version).  "
        "[default: $ADEDGE_DATA, else ~/.cache/adedge]"
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Download a missing one-class set into --root.")]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Fail on pictures that cannot be read, or are of another kind, instead of skipping them."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")]
Restart = Annotated[
    bool,
    typer.Option("--restart", help="Discard the checkpoint of an interrupted training instead of resuming it."),
]


def training_command(name: str, options_of: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """The function behind `adedge train NAME`; Typer reads the options from its signature.

    They are DATA and --output, the parameters of ``options_of``, and then the other shared options. ``options_of``
    turns its parameters into options for `Method.for_dataset`; its docstring becomes the command's help. Raises
    `UsageError` if a parameter of ``options_of`` has the name of a shared option.
    """

    def run(
        data: Data,
        output: Output,
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
        **own: Any,
    ) -> None:
        check_creatable(output, overwrite=overwrite)
        method_options = options_of(**own)
        from adedge.data.datasets import load_dataset
        from adedge.methods import method_named

        kind = method_named(name)
        dataset = load_dataset(data, strict=strict, holdout=holdout, root=root, download=download)
        _describe(dataset)
        method = kind.for_dataset(dataset, **method_options)
        if method.plan().input.channels == 3 and dataset.train[0].read().shape[2] == 1:
            note("the pictures are grey: their channel is repeated, because the network expects three")
        from adedge.methods.training import TrainingOptions

        options = TrainingOptions(
            seed=seed, device=device, amp=amp, threads=threads, overwrite=overwrite, restart=restart
        )
        _train(method, dataset, output, options)

    shared = [parameter for parameter in _parameters(run) if parameter.kind is not Parameter.VAR_KEYWORD]
    specific = _parameters(options_of)
    if conflicts := {parameter.name for parameter in shared} & {parameter.name for parameter in specific}:
        raise UsageError(
            f"the method '{name}' has a field '{min(conflicts)}', and every training has an option of that name: "
            "rename the field"
        )
    ordered = (*shared[:2], *specific, *shared[2:])
    parameters = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in ordered]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = options_of.__doc__
    return run


def _parameters(function: Callable[..., object]) -> list[Parameter]:
    return list(signature(function, eval_str=True).parameters.values())


def warn_of_random_features(weights: str) -> None:
    """Warn if ``weights`` is "none"."""
    if weights == "none":
        warn("--weights none: the features are random; expect far worse detection than with ImageNet weights")


def _describe(dataset: Dataset) -> None:
    """Warn about skipped pictures and training pictures among the test pictures; print the size of each split."""
    from adedge.data.datasets import trained_on
    from adedge.data.folders import first_few

    for sentence in dataset.skipped:
        warn(sentence)
    if known := trained_on(dataset.test, [sample.digest for sample in dataset.train]):
        warn(f"{len(known)} of the {len(dataset.test)} test pictures are training pictures too ({first_few(known)})")
    note(
        f"{dataset.name}: {len(dataset.train)} good pictures to train on, {len(dataset.calibration)} held out, "
        f"{len(dataset.test)} to test"
    )


def _train(method: Method, dataset: Dataset, output: Path, options: TrainingOptions) -> None:
    """Train with a progress bar for each stage; print the next command, or how to resume after an interrupt."""
    from adedge.methods.training import checkpoint_directory, train

    try:
        with _bar_per_stage() as step:
            train(method, dataset, output=output, options=options, progress=step, announce=note)
    except KeyboardInterrupt:
        checkpoint = checkpoint_directory(output)
        if checkpoint.is_dir():
            note(f"interrupted: the same command resumes from {checkpoint}; with --restart it starts over")
        raise
    note(f"wrote {output}; next: {command_line('export', output)}")


@contextmanager
def _bar_per_stage() -> Iterator[Progress]:
    """A progress bar for each stage, opened at the stage's first report ("<stage>: ...")."""
    with ExitStack() as bars:
        current = ""
        bar: Progress | None = None

        def step(done: int, total: int, text: str) -> None:
            nonlocal current, bar
            stage, _, detail = text.partition(": ")
            if bar is None or stage != current:
                bars.close()
                current, bar = stage, bars.enter_context(progress(f"training {stage}"))
            bar(done, total, detail)

        yield step
