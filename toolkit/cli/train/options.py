"""What every `adedge train METHOD` takes and does; what only one method has is in a file of its name."""

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
from adedge.progress import Progress

if TYPE_CHECKING:
    from adedge.data.datasets import Dataset
    from adedge.methods import Method
    from adedge.methods.training import TrainingOptions

# The command line's own copies of the methods' choices: --help must not wait for torch.
Budget = Literal["quick", "paper"]
Fit = Literal["resize", "crop"]

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
FitOption = Annotated[
    Fit,
    typer.Option(
        help="resize: stretch the whole picture to the input (parts that fill the frame). crop: keep the "
        "resolution, learn random crops and inspect overlapping tiles (textures, large pictures)."
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


def training_command(name: str, options_of: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """What `adedge train NAME` does; Typer reads its options from the signature.

    They are DATA and --output, the parameters of ``options_of``, and then what every training takes. ``options_of``
    turns its own into the method's options for `Method.for_dataset`; its docstring is the command's help.
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
        chosen = options_of(**own)
        from adedge.data.datasets import load_dataset
        from adedge.methods import method_named

        kind = method_named(name)
        dataset = load_dataset(data, strict=strict, holdout=holdout, root=root, download=download)
        _describe(dataset)
        method = kind.for_dataset(dataset, **chosen)
        if method.plan().input.channels == 3 and dataset.train[0].read().shape[2] == 1:
            note("grey pictures: their one channel is repeated for the network, which expects three")
        from adedge.methods.training import TrainingOptions

        options = TrainingOptions(
            seed=seed, device=device, amp=amp, threads=threads, overwrite=overwrite, restart=restart
        )
        _train(method, dataset, output, options)

    shared = [one for one in _parameters(run) if one.kind is not Parameter.VAR_KEYWORD]
    specific = _parameters(options_of)
    if taken := {one.name for one in shared} & {one.name for one in specific}:
        raise UsageError(
            f"the method '{name}' has a field '{min(taken)}', and every training has an option of that name: "
            "rename the field"
        )
    parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (*shared[:2], *specific, *shared[2:])]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__doc__ = options_of.__doc__
    return run


def _parameters(function: Callable[..., object]) -> list[Parameter]:
    return list(signature(function, eval_str=True).parameters.values())


def warn_of_random_features(weights: str) -> None:
    """Say that random features are no good features."""
    if weights == "none":
        warn("--weights none: the features are random; expect a far worse detector than with ImageNet weights")


def _describe(dataset: Dataset) -> None:
    """Warn of pictures that were skipped and say how many there are."""
    for sentence in dataset.skipped:
        warn(sentence)
    note(
        f"{dataset.name}: {len(dataset.train)} good pictures to train on, {len(dataset.calibration)} held out, "
        f"{len(dataset.test)} to test"
    )


def _train(method: Method, dataset: Dataset, output: Path, options: TrainingOptions) -> None:
    """Train with a progress bar for each stage; say how an interrupted training goes on, and what comes next."""
    from adedge.methods.training import checkpoint_directory, train

    try:
        with _bar_per_stage() as step:
            train(method, dataset, output=output, options=options, progress=step, announce=note)
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
